"""Decompressed blocks of a store, the most recently used ones.

in   which blocks are wanted, and a way to get their payloads
out  the slot of each, with its address and tables as scfm.data.blocks.decode_cells takes them

A training order draws from a few hundred blocks at a time, one cell of each in turn; each is read
once, kept until it is used up, and gives way to the next.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from scfm.data.blocks import CELL_WORDS, OpenBlock


class BlockCache:
    """Up to ``keep`` blocks of at most ``block_cells`` cells.

    Attributes
    ----------
    address, tables
        Those of the block in each slot.
    """

    def __init__(
        self,
        n_blocks: int,
        block_cells: int,
        keep: int,
        load: Callable[[list[int]], list[Callable[[np.ndarray], OpenBlock]]],
    ) -> None:
        """``load`` reads blocks and returns, for each, what opens it into tables of its own."""
        self.keep, self._load = keep, load
        self.address = np.zeros(keep, np.int64)
        self.tables = np.zeros((keep, CELL_WORDS, block_cells + 1), np.int64)
        self._opened: list[OpenBlock | None] = [None] * keep  # keeps the payloads alive
        self._slot_of = np.full(n_blocks, -1, np.int32)
        self._block_of = np.full(keep, -1, np.int64)
        self._last_use = np.zeros(keep, np.int64)
        self._clock = 0

    @property
    def nbytes(self) -> int:
        """Of the blocks kept."""
        return sum(len(opened.payload) for opened in self._opened if opened)

    def slots(self, blocks: Int[np.ndarray, " place"]) -> Int[np.ndarray, " place"]:
        """The slot of each block, those missing being loaded. No more than ``keep`` at a time."""
        self._clock += 1
        slots = self._slot_of[blocks]
        self._last_use[slots[slots >= 0]] = self._clock
        missing = np.unique(blocks[slots < 0])
        if len(missing):
            for block, open_ in zip(missing.tolist(), self._load(missing.tolist()), strict=True):
                self._put(block, open_)
            slots = self._slot_of[blocks]
        return slots.astype(np.int64)

    def _put(self, block: int, open_: Callable[[np.ndarray], OpenBlock]) -> None:
        slot = int(self._last_use.argmin())
        assert self._last_use[slot] < self._clock, "more blocks at a time than are kept"
        if self._block_of[slot] >= 0:  # let go first: should the new one be damaged, none is there
            self._slot_of[self._block_of[slot]] = -1
            self._block_of[slot], self._opened[slot] = -1, None
        opened = open_(self.tables[slot])
        self._opened[slot], self._block_of[slot], self._slot_of[block] = opened, block, slot
        self.address[slot], self._last_use[slot] = opened.address, self._clock
