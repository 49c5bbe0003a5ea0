"""Gene modules of a model beside those of co-expression alone.

in   modules, expression of their genes in the cells they were made with, and in other cells
out  how alike the two groupings are, and how well the genes of a module go together in other cells

The last is measured on cells neither grouping has seen, and beside random modules of the same
sizes: a grouping into more and smaller modules would else look better for nothing.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scfm.tasks.gene_graph import leiden_modules
from scfm.tasks.perturbation import correlations

N_RANDOM = 100


def compare_modules(
    modules: Int[np.ndarray, " gene"],
    shown: Float[np.ndarray, "shown gene"],
    others: Float[np.ndarray, "other gene"],
    *,
    n_neighbours: int,
    resolution: float,
    seed: int,
) -> dict[str, Any]:
    """Both groupings' within-module Pearson's r in other cells, and their likeness.

    ARI: Hubert & Arabie 1985, doi:10.1007/BF01908075; NMI: arithmetic mean, as scikit-learn has it.
    """
    by_cells = (shown - shown.mean(0)).T  # cosine of these is Pearson's r
    coexpressed = leiden_modules(
        np.asarray(by_cells, dtype=np.float64),
        n_neighbours=n_neighbours,
        resolution=resolution,
        seed=seed,
    )
    r = correlations(others)
    found = {
        "ari": float(adjusted_rand_score(modules, coexpressed)),
        "nmi": float(normalized_mutual_info_score(modules, coexpressed)),
        "n_other_cells": len(others),
        "model": held_out_coexpression(r, modules, seed),
        "coexpression": held_out_coexpression(r, coexpressed, seed),
        "modules": [int(module) for module in coexpressed],
    }
    return {**found, "verdict": verdict_on(found)}


def held_out_coexpression(
    r: Float[np.ndarray, "gene gene"], modules: Int[np.ndarray, " gene"], seed: int
) -> dict[str, float]:
    """Mean r over pairs within modules, and the same of random modules of equal sizes (95 %)."""
    rng = np.random.default_rng(seed)
    random = np.array([within(r, rng.permutation(modules)) for _ in range(N_RANDOM)])
    low, high = np.percentile(random, [2.5, 97.5])
    return {
        "n_modules": int(modules.max()) + 1,
        "within": within(r, modules),
        "random": float(random.mean()),
        "random_low": float(low),
        "random_high": float(high),
    }


def within(r: Float[np.ndarray, "gene gene"], modules: Int[np.ndarray, " gene"]) -> float:
    """Mean of r over all pairs of genes that share a module; 0 where none do."""
    belongs = (modules[:, None] == np.arange(modules.max() + 1)).astype(np.float64)
    sums = np.einsum("gm,gm->m", belongs, r @ belongs) - np.diag(r) @ belongs
    sizes = belongs.sum(0)
    n_pairs = (sizes * (sizes - 1)).sum()
    return float(sums.sum() / n_pairs) if n_pairs else 0.0


def verdict_on(found: dict[str, Any]) -> str:
    """Whose modules hold better in other cells, over random ones; said plainly either way."""
    ours, theirs = found["model"], found["coexpression"]
    ahead = "The model's" if ours["within"] > theirs["within"] else "Co-expression's"
    return (
        f"{ahead} modules go together better in {found['n_other_cells']:,} other cells: "
        f"within-module r {ours['within']:.3f} for the model (random modules {ours['random']:.3f}) "
        f"and {theirs['within']:.3f} for co-expression (random {theirs['random']:.3f}); "
        f"ARI {found['ari']:.2f}, NMI {found['nmi']:.2f} between the two."
    )
