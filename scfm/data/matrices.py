"""Stored matrices -> CSR rows, as stored. Knows where values lie, not what they mean.

in   CSR, CSC or dense matrices, in memory, in HDF5 or in zarr
out  RawRows, a bounded number of values at a time; nothing is ever dense beyond a small block
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp

from scfm.data.compiled import compiled
from scfm.errors import UnreadableFileError

BLOCK_VALUES = 2**21  # values read at once: 16 MB of float32 + int32
MAX_ALIGNED_VALUES = 2**24  # dense storage chunks larger than this are cut, for memory's sake
SAMPLE_ROWS = 256


class RawRows(NamedTuple):
    """Some rows as they are stored: unchecked, possibly unsorted, possibly with explicit zeros.

    ``indptr`` (row + 1,) int64 from 0, ``indices`` (value,) integer, ``values`` (value,) number.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray


class SparseRows:
    """CSR arrays, in memory or on disk. ``indptr`` (8 bytes a row) is held in memory."""

    def __init__(self, indptr: Any, indices: Any, values: Any, n_columns: int) -> None:
        self.indptr = np.asarray(indptr[:]).astype(np.int64, copy=False)
        self.indices, self.values = indices, values
        self.shape = (len(self.indptr) - 1, int(n_columns))
        check_pointers(self.indptr, indices, values)

    @property
    def n_stored(self) -> int:
        return int(self.indptr[-1])

    @property
    def in_memory(self) -> bool:
        return isinstance(self.values, np.ndarray) and isinstance(self.indices, np.ndarray)

    def empty_rows(self) -> np.ndarray:
        """Rows without a stored value, known without reading one."""
        return np.flatnonzero(np.diff(self.indptr) == 0)

    def blocks(self) -> Iterator[RawRows]:
        """All rows in order. Each storage chunk is decoded once: a row cut by its end waits."""
        chunk = chunk_length(self.values, axis=0)
        row, read, total = 0, 0, self.n_stored
        indices, values = self.indices[:0], self.values[:0]
        while row < self.shape[0]:
            wanted = max(read + BLOCK_VALUES, int(self.indptr[row + 1]))
            stop = min(total, -(-wanted // chunk) * chunk)
            last = int(np.searchsorted(self.indptr, stop, side="right")) - 1
            if chunk == 1:  # in memory any cut is free: end with the row and carry nothing
                stop = int(self.indptr[last])
            indices = _extended(indices, self.indices[read:stop])
            values = _extended(values, self.values[read:stop])
            read = stop
            indptr = self.indptr[row : last + 1] - self.indptr[row]
            yield RawRows(indptr, indices[: indptr[-1]], values[: indptr[-1]])
            indices, values = indices[indptr[-1] :], values[indptr[-1] :]
            row = last

    def take(self, rows: np.ndarray) -> RawRows:
        """These rows, in this order; close ones share a read."""
        if self.in_memory:
            return gathered(RawRows(self.indptr, self.indices, self.values), rows)
        wanted, place = np.unique(rows, return_inverse=True)
        starts, stops = self.indptr[wanted], self.indptr[wanted + 1]
        far = starts[1:] - stops[:-1] > chunk_length(self.values, axis=0)
        far |= starts[1:] // BLOCK_VALUES != starts[:-1] // BLOCK_VALUES
        runs = np.split(np.arange(len(wanted)), np.flatnonzero(far) + 1)
        pieces = [self._run(wanted[run]) for run in runs if run.size]
        return gathered(joined(pieces, self), place)

    def _run(self, rows: np.ndarray) -> RawRows:
        first, last = int(rows[0]), int(rows[-1])
        start, stop = int(self.indptr[first]), int(self.indptr[last + 1])
        indptr = self.indptr[first : last + 2] - start
        span = RawRows(indptr, self.indices[start:stop], self.values[start:stop])
        return span if len(rows) == last + 1 - first else gathered(span, rows - first)

    def sample(self) -> RawRows:
        return self.take(spread_rows(self.shape[0]))

    def load(self) -> "SparseRows":
        return SparseRows(self.indptr, self.indices[:], self.values[:], self.shape[1])


class SparseColumns:
    """CSC arrays on disk. No row can be read from them: ``load`` reads all and turns it round."""

    def __init__(self, indptr: Any, indices: Any, values: Any, n_rows: int) -> None:
        self.indptr = np.asarray(indptr[:]).astype(np.int64, copy=False)
        self.indices, self.values = indices, values
        self.shape = (int(n_rows), len(self.indptr) - 1)
        check_pointers(self.indptr, indices, values)

    @property
    def n_stored(self) -> int:
        return int(self.indptr[-1])

    def empty_rows(self) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def sample(self) -> RawRows:
        """Values of evenly spread places, as one row: enough to see what kind they are."""
        length = BLOCK_VALUES // 32
        starts = np.unique(np.linspace(0, max(self.n_stored - length, 0), 8).astype(np.int64))
        values = np.concatenate([self.values[start : start + length] for start in starts])
        return RawRows(np.array([0, len(values)]), np.zeros(len(values), np.int32), values)

    def load(self) -> SparseRows:
        arrays = (self.values[:], self.indices[:], self.indptr)
        return from_scipy(sp.csc_matrix(arrays, shape=self.shape))


class DenseRows:
    """A dense matrix, cells x genes, or genes x cells where ``by_gene``; read by row blocks."""

    def __init__(self, stored: Any, *, by_gene: bool = False) -> None:
        self.stored, self.by_gene = stored, by_gene
        self.shape = tuple(int(n) for n in (stored.shape[::-1] if by_gene else stored.shape))

    @property
    def n_stored(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def in_memory(self) -> bool:
        return isinstance(self.stored, np.ndarray)

    @property
    def block_rows(self) -> int:
        """Rows to read at once: whole storage chunks, unless those are huge."""
        chunk = chunk_length(self.stored, axis=1 if self.by_gene else 0)
        width = max(self.shape[1], 1)
        rows = max(BLOCK_VALUES // width, 1)
        if chunk * width <= MAX_ALIGNED_VALUES:
            rows = max(rows // chunk, 1) * chunk
        return rows

    def empty_rows(self) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def blocks(self) -> Iterator[RawRows]:
        for start in range(0, self.shape[0], self.block_rows):
            yield self._span(start, min(start + self.block_rows, self.shape[0]))

    def take(self, rows: np.ndarray) -> RawRows:
        wanted, place = np.unique(rows, return_inverse=True)
        chunk = chunk_length(self.stored, axis=1 if self.by_gene else 0)
        far = np.diff(wanted) > chunk
        far |= np.diff(wanted // self.block_rows) > 0
        pieces = []
        for run in np.split(wanted, np.flatnonzero(far) + 1):
            if run.size:
                span = self._span(int(run[0]), int(run[-1]) + 1)
                pieces.append(gathered(span, run - run[0]))
        return gathered(joined(pieces, self), place)

    def _span(self, start: int, stop: int) -> RawRows:
        block = self.stored[:, start:stop].T if self.by_gene else self.stored[start:stop]
        return RawRows(*_nonzeros(np.ascontiguousarray(machine_numbers(np.asarray(block)))))

    def sample(self) -> RawRows:
        return self.take(spread_rows(self.shape[0]))

    def load(self) -> SparseRows:
        rows = joined(list(self.blocks()), self)
        return SparseRows(rows.indptr, rows.indices, rows.values, self.shape[1])


@runtime_checkable
class Rows(Protocol):
    """A matrix that can be read by rows: the two above, rows of a database, several in a stack.

    ``n_stored`` may be an estimate; it decides whether the matrix is read into memory.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def n_stored(self) -> int: ...

    @property
    def in_memory(self) -> bool: ...

    def empty_rows(self) -> np.ndarray: ...

    def blocks(self) -> Iterator[RawRows]: ...

    def take(self, rows: np.ndarray) -> RawRows: ...

    def sample(self) -> RawRows: ...

    def load(self) -> SparseRows: ...


Matrix = Rows | SparseColumns


def as_matrix(stored: Any) -> Matrix:
    """Wrap whatever a matrix is stored as, without reading it.

    NumPy and SciPy matrices, HDF5 and zarr arrays, AnnData's sparse groups and backed matrices.
    Raises UnreadableFileError for anything else.
    """
    if sp.issparse(stored):
        return from_scipy(stored)
    group = getattr(stored, "group", stored)  # anndata's backed matrix wraps its group
    if hasattr(group, "keys"):
        return _from_group(group)
    if getattr(stored, "ndim", None) == 2 and hasattr(stored, "__getitem__"):
        if np.dtype(stored.dtype).kind not in "biuf":
            raise UnreadableFileError(f"The matrix holds {stored.dtype}, not numbers.")
        if hasattr(stored, "compute"):
            raise UnreadableFileError(
                "The matrix is a dask array. Load it first: adata.X = adata.X.compute()."
            )
        return DenseRows(stored)
    raise UnreadableFileError(f"A matrix stored as {type(stored).__name__} is not understood.")


def from_scipy(matrix: Any) -> SparseRows:
    n_columns = matrix.shape[1]
    rows = sp.csr_matrix(matrix)  # no copy when it is CSR already
    return SparseRows(rows.indptr, rows.indices, rows.data, n_columns)


def _from_group(group: Any) -> Matrix:
    """A sparse group as anndata writes it; before 0.7 the attributes had other names."""
    kind = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", ""))
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    if shape is None or not {"indptr", "indices", "data"} <= set(group.keys()):
        raise UnreadableFileError("A matrix is stored as a group that is no sparse matrix.")
    arrays = [group[key] for key in ("indptr", "indices", "data")]
    if kind in ("csr_matrix", "csr"):
        rows = SparseRows(*arrays, n_columns=int(shape[1]))
    elif kind in ("csc_matrix", "csc"):
        rows = SparseColumns(*arrays, n_rows=int(shape[0]))
    else:
        raise UnreadableFileError(f"A matrix encoded as {kind or 'nothing known'!r}.")
    if rows.shape != tuple(int(n) for n in shape):
        raise UnreadableFileError(f"Stated shape {tuple(shape)} but row pointers for {rows.shape}.")
    return rows


def check_pointers(indptr: np.ndarray, indices: Any, values: Any) -> None:
    """Refuse compressed arrays that contradict each other; reading them could crash."""
    n_values = int(values.shape[0])
    well_formed = (
        len(indptr) > 0
        and indptr[0] == 0
        and indptr[-1] == n_values == int(indices.shape[0])
        and bool((np.diff(indptr) >= 0).all())
    )
    if not well_formed:
        raise UnreadableFileError(
            f"Its sparse matrix is damaged: the pointers do not fit the {n_values:,} stored values."
        )


def chunk_length(stored: Any, *, axis: int) -> int:
    """Length of a storage chunk; 1 where there is none and any cut is free."""
    chunks = getattr(stored, "chunks", None)
    return int(chunks[axis]) if chunks else 1


def spread_rows(n_rows: int) -> np.ndarray:
    """Up to SAMPLE_ROWS rows in eight runs over the whole matrix: few reads, no blind end."""
    if n_rows <= SAMPLE_ROWS:
        return np.arange(n_rows)
    length = SAMPLE_ROWS // 8
    starts = np.linspace(0, n_rows - length, 8).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(length))


def gathered(rows: RawRows, order: np.ndarray) -> RawRows:
    """Rows ``order`` of ``rows``."""
    lengths = np.diff(rows.indptr)[order]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    place = np.repeat(rows.indptr[:-1][order] - indptr[:-1], lengths) + np.arange(indptr[-1])
    return RawRows(indptr, rows.indices[place], rows.values[place])


def joined(pieces: list[RawRows], like: SparseRows | DenseRows) -> RawRows:
    """Pieces one below the other; of ``like``'s type where there are none."""
    if pieces:
        return stacked(pieces)
    stored = like.values if isinstance(like, SparseRows) else like.stored
    none = np.zeros(0, dtype=stored.dtype)
    return RawRows(np.zeros(1, np.int64), np.zeros(0, np.int32), none)


def stacked(pieces: list[RawRows]) -> RawRows:
    """Pieces, at least one, one below the other."""
    if len(pieces) == 1:
        return pieces[0]
    lengths = np.concatenate([np.diff(piece.indptr) for piece in pieces])
    return RawRows(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([piece.indices for piece in pieces]),
        np.concatenate([piece.values for piece in pieces]),
    )


def machine_numbers(values: np.ndarray) -> np.ndarray:
    """The same numbers in a type numba can work on."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _extended(kept: np.ndarray, more: np.ndarray) -> np.ndarray:
    return np.concatenate([kept, more]) if len(kept) else more


@compiled
def _nonzeros(block):
    """CSR arrays of a small dense block. NaN counts as a value, so that it is found later."""
    n_rows, n_columns = block.shape
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    for row in range(n_rows):
        found = 0
        for column in range(n_columns):
            found += block[row, column] != 0
        indptr[row + 1] = indptr[row] + found
    indices = np.empty(indptr[n_rows], dtype=np.int32)
    values = np.empty(indptr[n_rows], dtype=block.dtype)
    for row in range(n_rows):
        place = indptr[row]
        for column in range(n_columns):
            value = block[row, column]
            if value != 0:
                indices[place] = column
                values[place] = value
                place += 1
    return indptr, indices, values
