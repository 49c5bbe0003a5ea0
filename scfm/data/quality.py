"""Which cells are worth keeping: thresholds on genes, counts and mitochondrial share.

in   CountRows, which of their columns are mitochondrial
out  Judged: the reason each cell is dropped, or none; nothing is removed before ``keep``

Numbers are over all columns of the file, as a file's own QC would have them, not over a model's
genes. Without thresholds only cells without a single count are dropped.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from scfm.data.compiled import compiled
from scfm.data.counts import CountRows

# a cell that fails several thresholds is counted once, under the first of these
REASONS = ("empty", "min_genes", "min_counts", "max_mito")
KEPT = len(REASONS)


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Thresholds below (or above) which a cell is dropped. 0 and 1 switch one off."""

    min_genes: int = 0  # columns with a count
    min_counts: int = 0  # sum of the counts
    max_mito: float = 1.0  # share of the counts on mitochondrial genes

    def __post_init__(self) -> None:
        if self.min_genes < 0 or self.min_counts < 0:
            raise ValueError(
                f"--min-genes and --min-counts must be at least 0, got {self.min_genes} and "
                f"{self.min_counts}"
            )
        if not 0 <= self.max_mito <= 1:
            raise ValueError(f"--max-mito is a share in [0, 1], got {self.max_mito}")


@dataclass(frozen=True)
class Judged:
    """What is held against each cell: a position in REASONS, or KEPT."""

    reason: Int[np.ndarray, " cell"]

    @property
    def is_kept(self) -> Bool[np.ndarray, " cell"]:
        return self.reason == KEPT

    def dropped(self) -> dict[str, int]:
        """Cells dropped for each reason, those with none left out."""
        counts = np.bincount(self.reason, minlength=KEPT + 1)
        return {name: int(n) for name, n in zip(REASONS, counts[:KEPT], strict=True) if n}


def judge_cells(
    rows: CountRows, is_mito: Bool[np.ndarray, " column"], config: QualityConfig
) -> Judged:
    """Hold every cell to the thresholds."""
    n_genes = np.diff(rows.indptr)
    failed = [n_genes == 0, n_genes < config.min_genes]
    if config.min_counts > 0 or config.max_mito < 1:  # a pass over all counts, if it is asked for
        n_counts, n_mito = cell_sums(rows, is_mito)
        failed += [n_counts < config.min_counts, n_mito / np.maximum(n_counts, 1) > config.max_mito]
    return Judged(np.select(failed, range(len(failed)), default=KEPT).astype(np.int8))


def cell_sums(
    rows: CountRows, is_mito: Bool[np.ndarray, " column"]
) -> tuple[Int[np.ndarray, " cell"], Int[np.ndarray, " cell"]]:
    """Sum of each cell's counts, and of those on mitochondrial genes."""
    return _sums(rows.indptr, rows.indices, rows.counts, is_mito)


def keep(rows: CountRows, is_kept: Bool[np.ndarray, " cell"]) -> CountRows:
    """Only these cells, in the same order."""
    if is_kept.all():
        return rows
    lengths = np.diff(rows.indptr)
    of_kept = np.repeat(is_kept, lengths)
    return CountRows(
        indptr=np.concatenate([[0], np.cumsum(lengths[is_kept])]).astype(np.int64),
        indices=rows.indices[of_kept],
        counts=rows.counts[of_kept],
        cell_index=rows.cell_index[is_kept],
    )


@compiled
def _sums(indptr, indices, counts, is_mito):
    """Sum of the counts of every row, and of those on marked columns."""
    n_rows = len(indptr) - 1
    total = np.zeros(n_rows, dtype=np.int64)
    marked = np.zeros(n_rows, dtype=np.int64)
    for row in range(n_rows):
        for i in range(indptr[row], indptr[row + 1]):
            count = np.int64(counts[i])
            total[row] += count
            if is_mito[indices[i]]:
                marked[row] += count
    return total, marked
