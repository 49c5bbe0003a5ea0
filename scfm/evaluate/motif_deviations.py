"""How much more open than expected the peaks of a motif are in each cell: chromVAR's deviations.

in   counts (cell, peak) in chunks, which peaks have which annotation, matched background peaks
out  bias-corrected deviations and z scores, cells by annotations

deviation   (observed - expected) / expected counts in the annotated peaks, minus its mean over
            backgrounds in which every peak is exchanged for one like it; z: over their deviation
Source: Schep et al. 2017, doi:10.1038/nmeth.4401. Sparse throughout: a chunk of cells at a time.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Num

from scfm.errors import EmptyCellError, InputError


class Deviations(NamedTuple):
    """Cells by annotations, float32."""

    deviation: Float[np.ndarray, "cell annotation"]
    z: Float[np.ndarray, "cell annotation"]


def chromvar_deviations(
    chunks: Callable[[], Iterable[sp.csr_matrix]],
    annotation: sp.csr_matrix | Num[np.ndarray, "peak annotation"],
    background: Int[np.ndarray, "background peak"],
) -> Deviations:
    """Deviations of every cell.

    Parameters
    ----------
    chunks
        Gives all cells' counts, some rows at a time; called twice.
    annotation
        1 (or a weight) where a peak has the motif.
    background
        From `scfm.data.matched_peaks`.

    Raises InputError for one cell only: what is expected of a cell is what all cells show.
    EmptyCellError for cells without a count.
    """
    totals, n_cells = _peak_totals(chunks())
    if n_cells < 2:
        raise InputError(
            f"There is {n_cells} cell; deviations are from what all cells show. Give two or more."
        )
    matrix = sp.csc_matrix(annotation, dtype=np.float64)
    share = totals / totals.sum()
    exchanged = [sp.csr_matrix(_exchange(peaks).T @ matrix) for peaks in background]
    own = sp.csr_matrix(matrix)
    found = [_chunk(rows, share, own, exchanged) for rows in chunks()]
    return Deviations(
        *(np.concatenate(parts).astype(np.float32) for parts in zip(*found, strict=True))
    )


def _peak_totals(chunks: Iterable[sp.csr_matrix]) -> tuple[Float[np.ndarray, " peak"], int]:
    totals, n_cells = np.zeros(0), 0
    for rows in chunks:
        per_cell = np.asarray(rows.sum(1)).ravel()
        if (per_cell <= 0).any():
            empty = n_cells + np.flatnonzero(per_cell <= 0)
            raise EmptyCellError(
                f"Cells without a count in any peak, the first in row {empty[0]}. Filter them with "
                "scanpy.pp.filter_cells(adata, min_counts=1)."
            )
        per_peak = np.asarray(rows.sum(0), dtype=np.float64).ravel()
        totals = per_peak if n_cells == 0 else totals + per_peak
        n_cells += len(per_cell)
    return totals, n_cells


def _exchange(peaks: Int[np.ndarray, " peak"]) -> sp.csr_matrix:
    """A one in column ``peaks[i]`` of row i."""
    n = len(peaks)
    return sp.csr_matrix((np.ones(n), (np.arange(n), peaks)), (n, n))


def _chunk(
    rows: sp.csr_matrix,
    share: Float[np.ndarray, " peak"],
    own: sp.csr_matrix,
    exchanged: list[sp.csr_matrix],
) -> tuple[np.ndarray, np.ndarray]:
    counts = sp.csr_matrix(rows, dtype=np.float64)
    depth = np.asarray(counts.sum(1))
    raw = _relative(counts, depth, share, own)
    others = np.stack([_relative(counts, depth, share, matrix) for matrix in exchanged])
    deviation, spread = raw - others.mean(0), others.std(0, ddof=1)
    is_flat = ~(spread > 1e-12)
    return deviation, np.where(is_flat, 0, deviation / np.where(is_flat, 1, spread))


def _relative(
    counts: sp.csr_matrix,
    depth: Float[np.ndarray, "cell 1"],
    share: Float[np.ndarray, " peak"],
    matrix: sp.csr_matrix,
) -> Float[np.ndarray, "cell annotation"]:
    """(observed - expected) / expected; 0 where nothing is expected of an annotation."""
    observed = sp.csr_matrix(counts @ matrix).toarray()
    expected = depth * (matrix.T @ share)
    has_any = expected > 0
    return np.where(has_any, observed / np.where(has_any, expected, 1) - 1, 0.0)
