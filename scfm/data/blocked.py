"""Count files as blocks of cells, so that training reads them straight from disk without a store.

in   a CellSource: a file read by rows, or data in memory
out  BlockedSource: the same cells, read 16 neighbours at a time, the blocks used last kept

A file on disk answers 16 neighbouring rows about as fast as one. The order (scfm.data.order) uses a
block up while it is kept, so nearly every block is read once an epoch. Data in memory has blocks of
one cell: it is shuffled through and through and nothing is kept twice.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from scfm.data.counts import CellSource, CountRows
from scfm.data.order import LANES, Blocks
from scfm.data.split import group_codes
from scfm.data.store import Store

BLOCK_CELLS = 16  # of a file on disk
DATASET = "dataset"  # the column that names the file a cell is from
CHUNK_CELLS = 4096


class BlockedSource:
    """A file's cells in blocks, with what a loader asks of a store. For one thread at a time.

    Attributes
    ----------
    source
        Whose cells they are.
    in_memory
        Whether its counts are in memory; then a block is one cell.
    """

    def __init__(self, source: CellSource):
        self.source = source
        self.name, self.counts_from, self.n_cells = source.name, source.counts_from, source.n_cells
        self.in_memory = bool(getattr(source, "in_memory", True))
        self.block_cells = 1 if self.in_memory else BLOCK_CELLS
        self._kept: dict[int, CountRows] = {}  # least recently used first
        self._n_kept = LANES

    @property
    def var(self) -> pd.DataFrame:
        return self.source.var

    @property
    def obs(self) -> pd.DataFrame:
        return self.source.obs

    @property
    def blocks(self) -> Blocks:
        """How the cells lie, for scfm.data.order."""
        return Blocks.even(self.n_cells, self.block_cells)

    def keep_blocks(self, n: int) -> None:
        """How many blocks to keep in memory, those used last."""
        self._n_kept = n

    def column(self, name: str) -> tuple[Int[np.ndarray, " cell"], list[str]]:
        """An obs column of all cells as codes (-1: no value) and names; LabelError without it."""
        if name == DATASET and name not in self.obs.columns:
            return np.zeros(self.n_cells, dtype=np.int32), [Path(self.name).name]
        return group_codes(self.obs, name, self.name)

    @cached_property
    def n_genes(self) -> Int[np.ndarray, " cell"]:
        """Expressed columns of every cell; reads the file once."""
        parts = [np.diff(rows.indptr) for rows in self.chunks(CHUNK_CELLS)]
        return np.concatenate(parts).astype(np.int32)

    def chunks(self, n_cells: int) -> Iterator[CountRows]:
        """All cells in file order, past the kept blocks."""
        return self.source.chunks(n_cells)

    def rows(self, cell_index: Int[np.ndarray, " cell"]) -> CountRows:
        """These cells, in this order. Reads whole blocks."""
        cell_index = np.asarray(cell_index, dtype=np.int64)
        if self.in_memory or not cell_index.size:
            return self.source.rows(cell_index)
        block, place = np.divmod(cell_index, self.block_cells)
        needed = np.unique(block).tolist()
        self._read([number for number in needed if number not in self._kept])
        pieces = [
            _one(self._kept[b], p) for b, p in zip(block.tolist(), place.tolist(), strict=True)
        ]
        for number in needed:  # used now: to the end of the queue
            self._kept[number] = self._kept.pop(number)
        for number in list(self._kept)[: max(0, len(self._kept) - self._n_kept)]:
            del self._kept[number]
        lengths = [len(columns) for columns, _ in pieces]
        return CountRows(
            indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            indices=np.concatenate([columns for columns, _ in pieces]),
            counts=np.concatenate([counts for _, counts in pieces]),
            cell_index=cell_index,
        )

    def _read(self, numbers: list[int]) -> None:
        if not numbers:
            return
        bounds = [
            (number * self.block_cells, min((number + 1) * self.block_cells, self.n_cells))
            for number in numbers
        ]
        rows = self.source.rows(np.concatenate([np.arange(*bound) for bound in bounds]))
        at = 0
        for number, (first, last) in zip(numbers, bounds, strict=True):
            part = rows.part(at, at + last - first)
            at += last - first
            # copies: a view would keep all that was read with it
            self._kept[number] = CountRows(
                part.indptr, part.indices.copy(), part.counts.copy(), part.cell_index
            )


def in_blocks(source: CellSource) -> Store | BlockedSource:
    """A store as it is; anything else as a BlockedSource."""
    return source if isinstance(source, Store | BlockedSource) else BlockedSource(source)


def _one(rows: CountRows, place: int) -> tuple[np.ndarray, np.ndarray]:
    kept = slice(rows.indptr[place], rows.indptr[place + 1])
    return rows.indices[kept], rows.counts[kept]
