"""How long cells are, as tokens: assumed, or sampled from data.

in   a run, and genes a cell or count files
out  Lengths: tokens the encoder sees, and targets, of some cells
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from scfm.tasks.pretrain_run import PretrainRun
from scfm.tokens.collate import N_SPECIALS
from scfm.tokens.masking import MaskConfig
from scfm.tokens.sentence_config import SentenceConfig

GENES_PER_CELL = 1500.0  # expressed, of a cell of present-day 10x data; assumed where none is said
CELLS_SAMPLED = 512
N_DEPTHS = 2  # [T], [S]: scFoundation has no [CELL]
N_TASK = 2  # a sentence's task word, and its end


@dataclass(frozen=True)
class Lengths:
    """Visible tokens and targets of some cells, and where they are from."""

    visible: Int[np.ndarray, " cell"]
    targets: Int[np.ndarray, " cell"]
    source: str
    genes_per_cell: float

    @property
    def mean(self) -> tuple[float, float]:
        return float(self.visible.mean()), float(self.targets.mean())


def assumed_lengths(genes_per_cell: float | None, run: PretrainRun) -> Lengths:
    """One cell of so many expressed genes, not thinned: the most that training makes of it."""
    genes = genes_per_cell or GENES_PER_CELL
    visible, targets = _made_of(round(genes), run)
    said = "as given" if genes_per_cell else "assumed"
    return Lengths(
        np.array([visible]),
        np.array([targets]),
        f"{genes:,.0f} expressed genes a cell, {said}; no thinning",
        genes,
    )


def _made_of(genes: int, run: PretrainRun) -> tuple[int, int]:
    """Tokens that the encoder sees and targets of a cell with so many expressed genes."""
    tokens = run.tokens
    if isinstance(tokens, SentenceConfig):
        kept = min(genes, tokens.max_genes, run.vocab().n_genes)
        others = len(tokens.columns) / 2 + N_TASK  # half of the words are said of a cell
        return round(kept + others), round(tokens.generate_share * kept + others - 1)
    if isinstance(tokens, MaskConfig):
        n_zeros = max(0, run.vocab().n_genes - genes)
        selected = tokens.mask_expressed * min(genes, tokens.max_genes)
        zeros = tokens.mask_zero * n_zeros
        shown = (1 - tokens.replace_share) * selected + tokens.random_share * zeros
        corrupted = shown if tokens.corrupted_in_encoder else 0.0
        kept = min(genes, tokens.max_genes) - selected
        return N_DEPTHS + round(kept + corrupted), round(selected + zeros)
    kept = min(genes, tokens.max_genes)
    hidden = min(kept, max(1, round(tokens.target_share * kept)))
    return N_SPECIALS + kept - hidden, hidden + round(tokens.zero_ratio * hidden)


def most_tokens(run: PretrainRun, genes_per_cell: float) -> float:
    """The bound on a cell's tokens by which ``loader.batch_tokens`` deals cells out."""
    tokens = run.tokens
    if isinstance(tokens, SentenceConfig):
        genes = min(genes_per_cell, tokens.max_genes, run.vocab().n_genes)
        return genes + len(tokens.columns) + N_TASK
    if isinstance(tokens, MaskConfig):
        n_genes, p = run.vocab().n_genes, tokens.mask_zero
        zeros = math.ceil(n_genes * p + 8 * math.sqrt(n_genes * p * (1 - p)) + 20) if p else 0
        return N_DEPTHS + min(genes_per_cell + zeros, n_genes)
    kept = min(genes_per_cell, tokens.max_genes)
    return N_SPECIALS + kept + math.ceil(tokens.zero_ratio * (tokens.target_share * kept + 1)) + 1


def sample_lengths(run: PretrainRun) -> Lengths:
    """Of cells spread over the run's data, tokenized as training does."""
    from scfm.tasks.run_data import open_data
    from scfm.train.throughput import token_counts

    loader = replace(run.loader, held_out_by=None)
    pool = open_data(replace(run, loader=loader), run.vocab()).pool
    cells = np.unique(np.linspace(0, pool.n_cells - 1, CELLS_SAMPLED).astype(np.int64))
    batch = pool.training(cells, np.zeros(len(cells), np.int64))
    visible, targets = token_counts(batch)
    genes = _genes_of(float(visible.mean()), float(targets.mean()), run)
    said = f"{len(cells):,} cells of {', '.join(run.data)}: about {genes:,.0f} expressed genes kept"
    return Lengths(visible, targets, said, genes)


def _genes_of(visible: float, targets: float, run: PretrainRun) -> float:
    """Expressed genes of a cell with so many tokens: the inverse of `_made_of`."""
    tokens = run.tokens
    if isinstance(tokens, SentenceConfig):
        return max(0.0, visible - len(tokens.columns) / 2 - N_TASK)
    if isinstance(tokens, MaskConfig):
        of_zeros = tokens.mask_zero * run.vocab().n_genes
        return max(0.0, targets - of_zeros) / (tokens.mask_expressed - tokens.mask_zero)
    return targets / (1 + tokens.zero_ratio) / tokens.target_share
