"""Cells -> metacells deep enough to have a signal.

in   counts of each cell; an embedding of the cells (obsm), or a grouping of them (obs)
out  Metacells: weights that sum to one, every cell at most once in each; pooled counts; signal

A single cell shows a few per cent of its open chromatin: pooling is what makes a signal of it. A
cell's metacell is the cell and its mutual nearest neighbours, those that have it among theirs too:
a cell between two types is not drawn into either, and no cell is everybody's neighbour. How many
neighbours is not fixed: the fewest that give the median metacell the depth that was asked for.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Num, Shaped

from scfm.data.counts import CellSource
from scfm.data.signal_tracks import TARGET_TOTAL
from scfm.errors import ConfigError, EmptyCellError, InputError, LabelError, ScfmWarning

MOST_NEIGHBOURS = 500
CHUNK_CELLS = 4096
TOLERATED_SHALLOW = 0.1  # share of metacells; some cells are nobody's neighbours


@dataclass(frozen=True, kw_only=True)
class Metacells:
    """Which cells each metacell is made of.

    Attributes
    ----------
    weights
        CSR (metacell, cell); every row sums to 1, all cells of a row weigh the same.
    names
        Of the metacells: the cell's at its centre, or the group's.
    depth
        Counts of all its cells together.
    k
        Neighbours looked at; None for groups.
    purity
        Share of a cell's partners that are of its own group; None where groups are not known.
    """

    weights: sp.csr_matrix
    names: tuple[str, ...]
    depth: Float[np.ndarray, " metacell"]
    k: int | None = None
    purity: float | None = None

    @property
    def n_cells(self) -> Int[np.ndarray, " metacell"]:
        """Cells in each."""
        return np.diff(self.weights.indptr)

    @property
    def members(self) -> sp.csr_matrix:
        """1 where a cell is in a metacell: what sums counts instead of averaging them."""
        ones = np.ones(self.weights.nnz, dtype=np.float32)
        return sp.csr_matrix(
            (ones, self.weights.indices, self.weights.indptr), shape=self.weights.shape
        )

    def take(self, rows: Int[np.ndarray, " row"]) -> "Metacells":
        """Some of the metacells."""
        return Metacells(
            weights=self.weights[rows],
            names=tuple(self.names[row] for row in rows),
            depth=self.depth[rows],
            k=self.k,
            purity=self.purity,
        )


def pooled(
    counts: Any,
    *,
    embedding: Num[np.ndarray, "cell d"] | None = None,
    groups: Shaped[np.ndarray, " cell"] | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    target_depth: float = 500_000,
    metric: str = "cosine",
    most_neighbours: int = MOST_NEIGHBOURS,
) -> Metacells:
    """Metacells of neighbours where there is an embedding, else one of each group.

    Parameters
    ----------
    counts
        Counts a cell: cells x peaks (sparse), or its row sums.
    embedding
        obsm the neighbours are looked for in: of the RNA, or LSI of the accessibility. Never one
        that labels to be predicted went into.
    groups
        obs column. Without an embedding, what is pooled; beside one, what the neighbours are held
        against: with a warning where more are taken than half of the smallest group has.
    names
        Of the cells.
    target_depth
        Counts the median metacell is to have.

    Raises ConfigError (neither embedding nor groups), InputError (one cell only, an embedding that
    is not finite), EmptyCellError (no counts at all), LabelError (a group is empty).
    """
    depth = cell_depth(counts)
    if not depth.sum() > 0:
        raise EmptyCellError(f"None of the {len(depth):,} cells has a count: nothing to pool.")
    if embedding is None and groups is None:
        raise ConfigError(
            "Neither an embedding nor groups to pool the cells by. Name an obsm (--use-rep X_lsi) "
            "or an obs column (--by cell_type)."
        )
    found = (
        _by_group(depth, np.asarray(groups))
        if embedding is None
        else _by_neighbours(depth, embedding, groups, names, target_depth, metric, most_neighbours)
    )
    _warn_if_shallow(found, target_depth)
    return found


def cell_depth(counts: Any) -> Float[np.ndarray, " cell"]:
    """Counts of each cell, of a matrix or as they are."""
    if sp.issparse(counts) or np.ndim(counts) == 2:
        return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return np.asarray(counts, dtype=np.float64)


def _by_group(depth: np.ndarray, groups: np.ndarray) -> Metacells:
    codes, names = group_codes_of(groups)
    is_in = codes >= 0
    weights = sp.csr_matrix(
        (np.ones(is_in.sum(), dtype=np.float32), (codes[is_in], np.flatnonzero(is_in))),
        shape=(len(names), len(codes)),
    )
    return Metacells(weights=_normalised(weights), names=names, depth=weights @ depth)


def group_codes_of(groups: np.ndarray) -> tuple[Int[np.ndarray, " cell"], tuple[str, ...]]:
    """Groups as codes, -1 where a cell has none, and their names in sorted order."""
    import pandas as pd

    values = pd.Series(groups).astype(object)
    codes, names = pd.factorize(values.where(values.isna(), values.astype(str)), sort=True)
    if not len(names):
        raise LabelError("No cell has a value in the column of groups.")
    return codes.astype(np.int64), tuple(map(str, names))


def _by_neighbours(
    depth: np.ndarray,
    embedding: np.ndarray,
    groups: Any,
    names: Sequence[str] | None,
    target_depth: float,
    metric: str,
    most: int,
) -> Metacells:
    n_cells = len(depth)
    _check_embedding(embedding, n_cells)
    codes = None if groups is None else group_codes_of(np.asarray(groups))[0]
    k, graph = _fewest_neighbours(depth, embedding, target_depth, metric, min(most, n_cells - 1))
    if codes is not None:
        _warn_if_wide(k, codes)
    return Metacells(
        weights=_normalised(graph),
        names=tuple(map(str, range(n_cells) if names is None else names)),
        depth=graph @ depth,
        k=k,
        purity=None if codes is None else _purity(graph, codes),
    )


def _check_embedding(embedding: np.ndarray, n_cells: int) -> None:
    if n_cells < 2:
        raise InputError(
            "One cell only: it has no neighbours to be pooled with. Give more cells, or use it as "
            "a group of its own."
        )
    if len(embedding) != n_cells:
        raise InputError(f"{n_cells:,} cells but an embedding of {len(embedding):,}.")
    is_bad = ~np.isfinite(embedding).all(axis=1) | ~np.any(embedding, axis=1)
    if is_bad.any():
        raise InputError(
            f"{is_bad.sum():,} cells have no place in the embedding (NaN or all 0; first rows: "
            f"{np.flatnonzero(is_bad)[:3].tolist()}). Drop these cells, or embed them."
        )


def _fewest_neighbours(
    depth: np.ndarray, embedding: np.ndarray, target: float, metric: str, most: int
) -> tuple[int, sp.csr_matrix]:
    """The least k whose mutual neighbours give the median metacell the target; at most ``most``."""
    per_cell = max(float(np.median(depth)), 1e-9)
    reach = min(most, max(1, int(np.ceil(2 * target / per_cell))))
    while True:
        nearest = _nearest(embedding, reach, metric)
        if _median_depth(nearest, reach, depth) >= target or reach == most:
            break
        reach = min(most, 2 * reach)
    low, high = 0, reach
    while low < high:  # pooled depth cannot fall when k grows
        middle = (low + high) // 2
        if _median_depth(nearest, middle, depth) >= target:
            high = middle
        else:
            low = middle + 1
    return low, _mutual(nearest, low)


def _nearest(embedding: np.ndarray, k: int, metric: str) -> Int[np.ndarray, "cell k"]:
    """The k nearest other cells, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    if metric == "cosine":  # the same order, without a matrix of distances in memory
        embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        metric = "euclidean"
    finder = NearestNeighbors(n_neighbors=k + 1, metric=metric, algorithm="brute").fit(embedding)
    found = finder.kneighbors(embedding, return_distance=False)
    is_self = found == np.arange(len(found))[:, None]
    is_self[~is_self.any(axis=1), -1] = True  # among identical cells it may not be listed: drop one
    return found[~is_self].reshape(len(found), k)


def _mutual(nearest: Int[np.ndarray, "cell reach"], k: int) -> sp.csr_matrix:
    """1 for a cell itself, once, and for those among its k nearest that have it among theirs."""
    n_cells = len(nearest)
    indptr = np.arange(0, n_cells * k + 1, k) if k else np.zeros(n_cells + 1, dtype=np.int64)
    ones = np.ones(n_cells * k, dtype=np.float32)
    has = sp.csr_matrix((ones, nearest[:, :k].ravel(), indptr), shape=(n_cells, n_cells))
    both = has.multiply(has.T).tocsr()
    return sp.csr_matrix(both + sp.eye_array(n_cells, format="csr"), dtype=np.float32)


def _median_depth(nearest: np.ndarray, k: int, depth: np.ndarray) -> float:
    return float(np.median(_mutual(nearest, k) @ depth))


def _normalised(members: sp.csr_matrix) -> sp.csr_matrix:
    members.sort_indices()
    n_cells = np.diff(members.indptr)
    weights = np.repeat(1 / np.maximum(n_cells, 1), n_cells)
    return sp.csr_matrix((weights, members.indices, members.indptr), shape=members.shape)


def _purity(graph: sp.csr_matrix, codes: np.ndarray) -> float:
    row = np.repeat(np.arange(len(codes)), np.diff(graph.indptr))
    is_other = (graph.indices != row) & (codes[row] >= 0) & (codes[graph.indices] >= 0)
    if not is_other.any():
        return float("nan")
    return float((codes[row[is_other]] == codes[graph.indices[is_other]]).mean())


def _warn_if_wide(k: int, codes: np.ndarray) -> None:
    smallest = int(np.bincount(codes[codes >= 0]).min())
    if k > 0.5 * smallest:
        warnings.warn(
            f"k = {k} neighbours is more than half of the smallest group's {smallest} cells: its "
            "metacells take in cells of other groups. Ask for less depth, or pool by the groups.",
            ScfmWarning,
            stacklevel=4,
        )


def _warn_if_shallow(found: Metacells, target_depth: float) -> None:
    is_shallow = found.depth < 0.5 * target_depth
    tolerated = 0.0 if found.k is None else TOLERATED_SHALLOW
    if is_shallow.mean() > tolerated:
        k = "" if found.k is None else f" at k = {found.k}"
        warnings.warn(
            f"{is_shallow.sum():,} of {len(found.depth):,} metacells have less than half of the "
            f"{target_depth:,.0f} counts asked for{k} (median {np.median(found.depth):,.0f}, least "
            f"{found.depth.min():,.0f}): their signal is noisy. Give more cells, or pool more of "
            "them.",
            ScfmWarning,
            stacklevel=3,
        )


def pool_counts(members: sp.csr_matrix, source: CellSource) -> sp.csr_matrix:
    """Counts of metacells, (metacell, peak), reading the cells once, in file order.

    ``members`` are weights of the cells: 1 for sums. Memory is that of the result.
    """
    n_peaks = len(source.var)
    by_cell: Any = members.tocsc()
    out: Any = sp.csr_matrix((len(members.indptr) - 1, n_peaks), dtype=np.float64)
    for rows in source.chunks(CHUNK_CELLS):
        chunk = sp.csr_matrix(
            (rows.counts.astype(np.float64), rows.indices, rows.indptr),
            shape=(rows.n_cells, n_peaks),
        )
        out = out + by_cell[:, rows.cell_index[0] : rows.cell_index[-1] + 1] @ chunk
    return sp.csr_matrix(out)


def accessible_share(weights: sp.csr_matrix, counts: sp.csr_matrix) -> sp.csr_matrix:
    """Share of a metacell's cells that have a peak open: the plainest predictor of binding."""
    is_open = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    is_open.data = (is_open.data > 0).astype(np.float64)
    return sp.csr_matrix(weights @ is_open)


def log_rate(
    counts: sp.csr_matrix, width: Int[np.ndarray, " peak"], total: Num[np.ndarray, " group"]
) -> sp.csr_matrix:
    """log1p of counts a base pair, scaled to 20 million counts in all, of groups x peaks.

    The scale is that of the bulk tracks models are trained on, so that neither the number of cells
    nor their depth shows. A group without a count is 0 throughout.
    """
    counts = sp.csr_matrix(counts, dtype=np.float64)
    n_groups = len(total)
    factor = np.divide(TARGET_TOTAL, total, out=np.zeros(n_groups), where=np.asarray(total) > 0)
    row = np.repeat(np.arange(n_groups), np.diff(counts.indptr))
    values = np.log1p(counts.data * factor[row] / width[counts.indices]).astype(np.float32)
    return sp.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)
