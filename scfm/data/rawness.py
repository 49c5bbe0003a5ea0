"""Values as stored -> raw counts, or a refusal that says what they are and what to do.

in   RawRows of any number type
out  Verdict on a sample of a matrix; CountRows, checked value by value, for every chunk

A value within 1e-3 of an integer is that integer: counts kept as float32 or passed through a
text file may be off by rounding, while log-normalised values are that close to one only by chance.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfm.data.compiled import compiled
from scfm.data.counts import CountRows
from scfm.data.matrices import RawRows, machine_numbers
from scfm.errors import CountsError, EmptyCellError, UnreadableFileError

INTEGER_TOLERANCE = 1e-3
LARGEST_COUNT = int(np.iinfo(np.int32).max)
LARGEST_LOG = 21.0  # log2(1e6 + 1) = 19.9 is the largest log value of a common normalisation
LOG_INTEGER_SHARE = 0.05  # expected counts are integers for most genes, log values for almost none

REMEDY = (
    "scfm needs raw counts. Name the matrix that holds them with layer= (--layer on the command "
    'line), or keep them before normalising: adata.layers["counts"] = adata.X.copy().'
)
EXPECTED_REMEDY = (
    "If they are expected counts, such as RSEM's, say so: expected_counts=True (--expected-counts)."
)

Kind = Literal[
    "counts", "expected", "log", "scaled", "normalised", "negative", "missing", "large", "empty"
]


@dataclass(frozen=True)
class Verdict:
    """What a matrix's values are, by a sample. ``found`` completes "X ..."."""

    kind: Kind
    found: str


@dataclass(frozen=True)
class Place:
    """Which matrix of which data is being read, for messages."""

    name: str
    counts_from: str
    columns: pd.Index

    def at(self, row: int, column: int) -> str:
        return f"{self.name}: {self.counts_from}, cell {row}, gene {str(self.columns[column])!r}"


def judge(sample: RawRows) -> Verdict:
    """Say what kind of values a sample of rows holds.

    One row that mixes many cells (SparseColumns.sample) is judged by its values alone.
    """
    values = machine_numbers(sample.values)
    values = values[values != 0]
    if not values.size:
        return Verdict("empty", "holds no counts at all")
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0].item()
        return Verdict("missing", f"holds {_spelled(bad)}, which no count can be")
    low, high = values.min(), values.max()
    is_integer = np.abs(values - np.rint(values)) <= INTEGER_TOLERANCE
    if low < 0 and not (low >= -INTEGER_TOLERANCE and is_integer.all()):
        return _judge_negative(values, is_integer)
    if high > LARGEST_COUNT:
        return Verdict("large", f"holds {high:.4g}, above the largest count ({LARGEST_COUNT:,})")
    if is_integer.all():
        return Verdict("counts", "holds raw counts")
    return _judge_fractions(sample, values, is_integer)


def _judge_negative(values: np.ndarray, is_integer: np.ndarray) -> Verdict:
    low, mean = float(values.min()), float(values.mean())
    if not is_integer.all() and abs(mean) < 0.25 * float(values.std()):
        found = f"looks like scaled values (z-scores): min {low:.2f}, mean {mean:.2f}"
        return Verdict("scaled", found)
    return Verdict("negative", f"holds negative values: min {low:.3g}")


def _judge_fractions(sample: RawRows, values: np.ndarray, is_integer: np.ndarray) -> Verdict:
    high = float(values.max())
    total = _common_total(sample, np.expm1) if high < LARGEST_LOG else None
    if total or (high < LARGEST_LOG and is_integer.mean() < LOG_INTEGER_SHARE):
        sums = f"; every cell sums to {total:,.0f} after expm1" if total else ""
        found = f"looks like log1p of normalised counts: max {high:.1f}, non-integer{sums}"
        return Verdict("log", found)
    total = _common_total(sample, np.asarray)
    if total:
        return Verdict("normalised", f"is normalised: every cell sums to {total:,.0f}, non-integer")
    example = float(values[~is_integer][0])
    share = 1 - is_integer.mean()
    found = f"holds non-integer values: {share:.0%} of them, for example {example:.4g}"
    return Verdict("expected", f"{found}, max {high:,.1f}")


def _common_total(sample: RawRows, undo) -> float | None:
    """The sum all of the sampled cells share after ``undo``, if they do."""
    lengths = np.diff(sample.indptr)
    starts = sample.indptr[:-1][lengths > 0]
    if len(starts) < 3:
        return None
    sums = np.add.reduceat(undo(sample.values.astype(np.float64)), starts)
    middle = float(np.median(sums))
    return middle if np.abs(sums - middle).max() <= 1e-3 * middle else None


def clean(
    raw: RawRows,
    cell_index: np.ndarray,
    *,
    place: Place,
    column_map: np.ndarray | None = None,
    expected_counts: bool = False,
    keep_empty: bool = False,
) -> CountRows:
    """Rows as stored -> CountRows: ascending columns, no zeros, every value checked.

    ``column_map`` (stored column,) gives the column to hand out, -1 for one that is left out.
    Columns that occur twice in a row are summed, as SciPy understands them. ``keep_empty`` hands
    out cells without a count, for callers that drop and count them.

    Raises CountsError (NaN, infinite, negative, non-integer or above int32), EmptyCellError,
    UnreadableFileError (a column that does not exist).
    """
    if column_map is not None:
        raw = _mapped(raw, column_map, place)
    n_columns = len(place.columns)
    order = _column_order(raw.indptr, raw.indices, n_columns)
    if order == _BROKEN:
        raise UnreadableFileError(
            f"{place.name}: {place.counts_from} is damaged: it points to genes beyond its "
            f"{n_columns:,} columns. Get the file again."
        )
    counts, has_zeros = _checked(raw, cell_index, place, expected_counts)
    indptr, indices = raw.indptr, raw.indices
    if has_zeros or order == _UNSORTED:
        indptr, indices, counts = _tidied(indptr, indices, counts, n_columns, place)
    if not keep_empty:
        refuse_empty(cell_index[np.diff(indptr) == 0], len(cell_index), place.name)
    return CountRows(
        indptr=indptr.astype(np.int64, copy=False),
        indices=indices.astype(np.int32, copy=False),
        counts=counts,
        cell_index=cell_index,
    )


def _tidied(
    indptr: np.ndarray, indices: np.ndarray, counts: np.ndarray, n_columns: int, place: Place
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns sorted and summed, zeros dropped; wide while summing, so that no sum wraps round."""
    wide = counts.astype(np.float64)
    matrix = sp.csr_matrix((wide, indices, indptr), (len(indptr) - 1, n_columns), copy=True)
    matrix.sum_duplicates()  # sorts as well
    matrix.eliminate_zeros()
    if matrix.nnz and matrix.data.max() > LARGEST_COUNT:
        found = f"a gene listed twice in one cell sums to {matrix.data.max():.4g}, which"
        where = f"{place.name}: {place.counts_from}"
        raise CountsError(f"{where}: {found} {_WRONG[_LARGE]}. {REMEDY}")
    return matrix.indptr, matrix.indices, matrix.data.astype(counts.dtype)


def refuse_empty(empty: np.ndarray, n_cells: int, name: str) -> None:
    """Raise EmptyCellError if any cell is empty; ``n_cells`` is how many were looked at."""
    if empty.size:
        raise EmptyCellError(
            f"{name}: {empty.size:,} of {n_cells:,} cells have no counts (first rows: "
            f"{empty[:3].tolist()}). Filter them with scanpy.pp.filter_cells(adata, min_counts=1)."
        )


def _mapped(raw: RawRows, column_map: np.ndarray, place: Place) -> RawRows:
    if raw.indices.size and not 0 <= raw.indices.min() <= raw.indices.max() < len(column_map):
        raise UnreadableFileError(f"{place.name}: {place.counts_from} points beyond its columns.")
    columns = column_map[raw.indices]
    is_kept = columns >= 0
    indptr = np.concatenate([[0], np.cumsum(is_kept)])[raw.indptr]
    return RawRows(indptr, columns[is_kept], raw.values[is_kept])


def _checked(
    raw: RawRows, cell_index: np.ndarray, place: Place, expected_counts: bool
) -> tuple[np.ndarray, bool]:
    """Counts of the values' order, and whether zeros are among them."""
    values = machine_numbers(raw.values)
    if expected_counts and values.dtype.kind == "f":
        counts = values.astype(np.float32)
        problem, position, n_zeros = _check_expected(values)
    else:
        counts = np.empty(len(values), dtype=np.int32)
        problem, position, n_zeros = _to_integers(values, counts, INTEGER_TOLERANCE)
    if problem != _FINE:
        row = int(np.searchsorted(raw.indptr, position, side="right")) - 1
        where = place.at(int(cell_index[row]), int(raw.indices[position]))
        what = f"{where}: {_spelled(values[position].item())} {_WRONG[problem]}."
        remedy = f"{EXPECTED_REMEDY} Else " if problem == _FRACTION else ""
        raise CountsError(f"{what} {remedy}{REMEDY}")
    return counts, n_zeros > 0


def _spelled(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    return f"{value:.6g}" if np.isfinite(value) else "an infinite value"


_FINE, _MISSING, _NEGATIVE, _LARGE, _FRACTION = range(5)
_WRONG = {
    _MISSING: "is not a count",
    _NEGATIVE: "is negative",
    _LARGE: f"is above the largest count scfm holds ({LARGEST_COUNT:,})",
    _FRACTION: "is no integer",
}
_SORTED, _UNSORTED, _BROKEN = range(3)


@compiled
def _to_integers(values, counts, tolerance):
    """Fill ``counts``; report the first value that is no count, and the number of zeros."""
    n_zeros = 0
    for i in range(len(values)):
        value = values[i]
        nearest = np.rint(value)
        if not np.isfinite(value):
            return _MISSING, i, n_zeros
        if nearest > LARGEST_COUNT:
            return _LARGE, i, n_zeros
        if value < -tolerance:
            return _NEGATIVE, i, n_zeros
        if abs(value - nearest) > tolerance:
            return _FRACTION, i, n_zeros
        counts[i] = np.int32(nearest)
        n_zeros += counts[i] == 0
    return _FINE, 0, n_zeros


@compiled
def _check_expected(values):
    n_zeros = 0
    for i in range(len(values)):
        if not np.isfinite(values[i]):
            return _MISSING, i, n_zeros
        if values[i] < 0:
            return _NEGATIVE, i, n_zeros
        if values[i] > LARGEST_COUNT:
            return _LARGE, i, n_zeros
        n_zeros += np.float32(values[i]) == 0
    return _FINE, 0, n_zeros


@compiled
def _column_order(indptr, indices, n_columns):
    """Strictly ascending in every row, not so, or out of range."""
    order = _SORTED
    for row in range(len(indptr) - 1):
        previous = -1
        for i in range(indptr[row], indptr[row + 1]):
            column = np.int64(indices[i])
            if column < 0 or column >= n_columns:
                return _BROKEN
            if column <= previous:
                order = _UNSORTED
            previous = column
    return order
