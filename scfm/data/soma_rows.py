"""Sparse or dense SOMA arrays -> raw rows, and SOMA dataframes -> Arrow tables.

in   an open array of tiledbsoma, the soma_joinid of the cells and genes wanted
out  RawRows a bounded number of values at a time, as scfm.data.matrices hands them out
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from scfm.data.matrices import (
    RawRows,
    SparseRows,
    gathered,
    machine_numbers,
    spread_rows,
    stacked,
)
from scfm.errors import UnreadableFileError

READ_VALUES = 2**22  # values of one read: 84 MB as TileDB hands them out, 20 bytes each
# A range is read twice as fast as one third of its rows, each named.
RANGE_ROWS = 4


class SomaRows:
    """Some cells of a sparse array: scfm.data.matrices.Rows.

    ``joinids`` (cell,) and ``columns`` (gene,) are the soma_joinid of cells and genes, ascending.
    ``n_stored`` may be an estimate: how many values a read brings is learnt from the last one.
    """

    in_memory = False

    def __init__(
        self, array: Any, joinids: np.ndarray, columns: np.ndarray, n_stored: int, name: str
    ) -> None:
        self.array, self.joinids, self.columns = array, joinids, columns
        self.n_stored, self.name = n_stored, name
        self.shape = (len(joinids), len(columns))
        self._per_cell = max(n_stored / max(len(joinids), 1), 1.0)

    def empty_rows(self) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def blocks(self) -> Iterator[RawRows]:
        first = 0
        while first < len(self.joinids):
            last = first + self._rows_at_once()
            yield self._read(self.joinids[first:last])
            first = last

    def take(self, rows: np.ndarray) -> RawRows:
        """These rows, in this order; each is read once."""
        wanted, place = np.unique(rows, return_inverse=True)
        pieces, first = [], 0
        while first < len(wanted) or not pieces:
            last = first + self._rows_at_once()
            pieces.append(self._read(self.joinids[wanted[first:last]]))
            first = last
        return gathered(stacked(pieces), place)

    def sample(self) -> RawRows:
        return self.take(spread_rows(self.shape[0]))

    def load(self) -> SparseRows:
        rows = stacked(list(self.blocks()))
        return SparseRows(rows.indptr, rows.indices, rows.values, self.shape[1])

    def _rows_at_once(self) -> int:
        return max(int(READ_VALUES / self._per_cell), 1)

    def _read(self, joinids: np.ndarray) -> RawRows:
        """Rows of these cells, which ascend. TileDB hands the values out in any order."""
        n_cells, n_columns = len(joinids), self.shape[1]
        kind = pa_to_numpy(self.array.schema.field("soma_data").type)
        parts = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, kind))]
        if n_cells:
            with soma_errors(self.name):
                tables = self.array.read((_coordinates(joinids),)).tables()
                parts.extend(self._placed(table, joinids) for table in tables)
        rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        del parts
        matrix = sp.csr_matrix((machine_numbers(values), (rows, columns)), (n_cells, n_columns))
        matrix.sort_indices()
        if n_cells:
            self._per_cell = max(matrix.nnz / n_cells, 1.0)
        return RawRows(matrix.indptr.astype(np.int64), matrix.indices, matrix.data)

    def _placed(
        self, table: pa.Table, joinids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, column and value of what a table holds of these cells."""
        cells, genes = table.column("soma_dim_0").to_numpy(), table.column("soma_dim_1").to_numpy()
        values = table.column("soma_data").to_numpy()
        rows = _places(joinids, cells)
        if len(joinids) <= joinids[-1] - joinids[0]:  # a range holds cells not asked for
            is_wanted = rows >= 0
            rows, genes, values = rows[is_wanted], genes[is_wanted], values[is_wanted]
        columns = _places(self.columns, genes)
        if (columns < 0).any():
            raise UnreadableFileError(f"{self.name}: X points to genes that var does not list.")
        return rows, columns, values


class SomaBlocks:
    """A dense SOMA array as what DenseRows reads from: something with a shape and row slices."""

    ndim = 2

    def __init__(self, array: Any, joinids: np.ndarray, columns: np.ndarray, name: str) -> None:
        self.array, self.joinids, self.columns, self.name = array, joinids, columns, name
        self.shape = (len(joinids), len(columns))
        self.dtype = pa_to_numpy(array.schema.field("soma_data").type)

    def __getitem__(self, rows: slice) -> np.ndarray:
        joinids = self.joinids[rows]
        if not len(joinids):
            return np.zeros((0, len(self.columns)), self.dtype)
        first, last = int(joinids[0]), int(joinids[-1])
        with soma_errors(self.name):
            block = self.array.read((slice(first, last), slice(None))).to_numpy()
        return block[joinids - first][:, self.columns]


def soma_table(
    frame: Any,
    columns: Sequence[str] | None = None,
    *,
    value_filter: str | None = None,
    joinids: np.ndarray | None = None,
) -> pa.Table:
    """Columns of a SOMA dataframe as one Arrow table, rows in any order.

    ``joinids``, which ascend, choose rows by soma_joinid.
    """
    by_joinid = tuple(frame.index_column_names) == ("soma_joinid",)
    where = (_coordinates(joinids),) if joinids is not None and by_joinid else ()
    names = None if columns is None else list(columns)
    tables = list(frame.read(where, column_names=names, value_filter=value_filter))
    found = pa.concat_tables(tables).unify_dictionaries()
    if joinids is None or len(found) == len(joinids):
        return found
    is_wanted = np.isin(found.column("soma_joinid").to_numpy(), joinids)
    return found.filter(pa.array(is_wanted))


def pa_to_numpy(kind: pa.DataType) -> np.dtype:
    return np.dtype(kind.to_pandas_dtype())


def _places(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted number is among the known ones, which ascend; -1 where it is not."""
    first, last = int(known[0]), int(known[-1])
    if last - first > RANGE_ROWS * len(known):
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[place] == wanted, place, -1).astype(np.int32)
    # of numbers close to each other a table is four times as fast
    table = np.full(last - first + 2, -1, dtype=np.int32)
    table[known - first] = np.arange(len(known), dtype=np.int32)
    offset = wanted - first
    return table[np.where((offset < 0) | (offset > last - first), -1, offset)]


def _coordinates(joinids: np.ndarray) -> Any:
    """What tiledbsoma reads fastest: one range, unless most of that is not asked for."""
    first, last = int(joinids[0]), int(joinids[-1])
    if last - first < RANGE_ROWS * len(joinids):
        return slice(first, last)
    return pa.array(joinids, pa.int64())


@contextmanager
def soma_errors(name: str) -> Iterator[None]:
    """What tiledbsoma raises on a database it cannot read -> UnreadableFileError."""
    import tiledbsoma

    try:
        yield
    except tiledbsoma.SOMAError as error:
        raise UnreadableFileError(
            f"{name}: cannot be read as a SOMA experiment ({first_line(error)}). Check the path "
            "or URI, and that the database is whole."
        ) from error


def first_line(error: BaseException) -> str:
    """Of a message; tiledbsoma adds a trace to some of them."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
