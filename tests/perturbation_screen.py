"""A simulated screen whose truth is known: the change is linear in the perturbed gene's embedding.

Every gene has an embedding u (d,). Perturbing gene t adds ``effect[t] = A u_t`` to log1p(cp10k)
of every measured gene; combinations add up. Cells have noise of their own and a shift by batch.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scfm.tasks.perturbation_data import CONTROL, PerturbedCells
from tests.toys import toy_vocab

N_VOCABULARY, N_GENES, D = 60, 40, 6


@dataclass
class Screen:
    cells: PerturbedCells
    embeddings: np.ndarray
    effects: np.ndarray  # (vocabulary, gene): what perturbing each gene adds


def simulated_screen(
    rng: np.random.Generator,
    *,
    n_perturbations: int = 24,
    cells_each: int = 40,
    noise: float = 0.3,
    offset: float = 0.0,
    combinations: int = 0,
) -> Screen:
    embeddings = rng.normal(size=(N_VOCABULARY, D))
    to_change = rng.normal(size=(D, N_GENES)) * 0.3
    effects = embeddings @ to_change + offset
    genes = np.arange(5, 5 + N_GENES)
    symbols = toy_vocab(N_VOCABULARY).symbols
    single = rng.choice(N_VOCABULARY, n_perturbations, replace=False)
    targets = [(int(t),) for t in single]
    pairs = (rng.choice(single, 2, replace=False) for _ in range(combinations))
    targets += [tuple(sorted(int(t) for t in pair)) for pair in pairs]
    named = sorted({"+".join(symbols[t] for t in ts): ts for ts in targets}.items())
    base = rng.uniform(2.5, 4.0, N_GENES)
    shift = rng.normal(size=(2, N_GENES)) * 0.2
    perturbation = np.concatenate(
        [np.full(6 * cells_each, CONTROL), np.repeat(np.arange(len(named)), cells_each)]
    )
    batch = rng.integers(2, size=len(perturbation))
    added = np.stack([effects[list(ts)].sum(0) for _, ts in named] + [np.zeros(N_GENES)])
    x = base + shift[batch] + added[perturbation]
    x = x + noise * rng.normal(size=x.shape)
    cells = PerturbedCells(
        expression=sp.csr_matrix(x.astype(np.float32)),
        genes=genes,
        perturbation=perturbation,
        names=tuple(name for name, _ in named),
        targets=tuple(ts for _, ts in named),
        batch=batch,
        left_out={},
    )
    return Screen(cells, embeddings.astype(np.float32), effects)
