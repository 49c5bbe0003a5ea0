"""Which cell next: a pure function of (seed, blocks, weights, position).

in   how the cells lie in blocks, which of them train, how often each is wanted
out  cell numbers, and the draw each belongs to, for any stretch of an endless stream

Data on disk is read in blocks, so the order is made of blocks. In each epoch the blocks are put in
random order, one after the other, and the cells of each block in random order too. That long line
is cut into ``lanes`` equal pieces, and the stream takes one cell of each lane in turn: neighbours
in the stream come from as many blocks as there are lanes, yet every block is opened once and used
up. The stream is one epoch after another; a batch is a stretch of it and may reach over the end of
an epoch, so there is no remainder. The whole state of a run is a position in it, one integer.

Processes divide the lanes among them. What a batch consists of does not depend on how many there
are; each opens only the blocks of its own lanes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from scfm.data.compiled import compiled
from scfm.data.mixing import GOLDEN, mix64, mix64_array

SHUFFLED_LANES = 48  # enough where the cells of a block have nothing in common, as in a store
LANES = 240  # 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 30, 40 ... processes share them evenly
_WORD = 0xFFFF_FFFF_FFFF_FFFF
# Knuth's linear congruential generator (MMIX), of which the high half is used
LCG_FACTOR, LCG_STEP = np.uint64(6364136223846793005), np.uint64(1442695040888963407)


@dataclass(frozen=True)
class Blocks:
    """Runs of cells that are read together.

    Attributes
    ----------
    first
        Number of each block's first cell, ascending.
    n_cells
        Cells of each block.
    """

    first: Int[np.ndarray, " block"]
    n_cells: Int[np.ndarray, " block"]

    @classmethod
    def even(cls, n_cells: int, block_cells: int = 1) -> "Blocks":
        """``n_cells`` cells in blocks of ``block_cells``; the last may be smaller."""
        first = np.arange(0, n_cells, block_cells, dtype=np.int64)
        return cls(first, np.minimum(block_cells, n_cells - first))

    @classmethod
    def joined(cls, parts: "Sequence[Blocks]") -> "Blocks":
        """Several sources' blocks as one: the cells of each are numbered after those before."""
        starts = np.cumsum([0] + [part.total for part in parts[:-1]])
        return cls(
            np.concatenate([part.first + start for part, start in zip(parts, starts, strict=True)]),
            np.concatenate([part.n_cells for part in parts]),
        )

    @property
    def total(self) -> int:
        return int(self.n_cells.sum())

    @cached_property
    def are_single_cells(self) -> bool:
        return bool((self.n_cells == 1).all())


@dataclass(frozen=True)
class Weights:
    """How often cells are wanted, by class.

    A cell of class c comes ``repeats[c]`` times an epoch on average: over any e epochs floor or
    ceil of ``e * repeats[c]`` times, so none is forgotten and none is favoured within its class.

    Attributes
    ----------
    codes
        Class of each cell, 0 and up.
    repeats
        Deliveries an epoch of a cell of each class; 0 leaves the class out.
    """

    codes: Int[np.ndarray, " cell"]
    repeats: Float[np.ndarray, " class"]

    def __post_init__(self) -> None:
        # once here, and not once a batch: there may be 10^8 of them
        object.__setattr__(self, "codes", np.ascontiguousarray(self.codes, dtype=np.int32))
        object.__setattr__(self, "repeats", np.asarray(self.repeats, dtype=np.float64))

    @classmethod
    def mixing(
        cls,
        codes: Int[np.ndarray, " cell"],
        shares: Float[np.ndarray, " class"],
        selected: Bool[np.ndarray, " cell"] | None = None,
        *,
        max_repeats: float = 10.0,
    ) -> "Weights":
        """Classes in the proportions of ``shares``, whatever their numbers of cells.

        An epoch has about as many deliveries as there are selected cells; fewer where
        ``max_repeats`` holds a small class back, whose share then is smaller than asked for.
        """
        counts = np.bincount(codes if selected is None else codes[selected], minlength=len(shares))
        wanted = np.where(counts > 0, shares, 0.0)
        if not wanted.sum() > 0:
            raise ValueError("at least one class with cells needs a positive share")
        deliveries = counts.sum() * wanted / wanted.sum()
        repeats = np.divide(deliveries, counts, out=np.zeros(len(shares)), where=counts > 0)
        return cls(codes, np.minimum(repeats, max_repeats))


@dataclass(frozen=True, kw_only=True)
class CellOrder:
    """The endless stream of training cells.

    Attributes
    ----------
    blocks
        How the cells lie; together they are cells 0, 1, 2, ... without a gap.
    seed
        Of the shuffle.
    lanes
        Blocks that the stream draws from at a time; no effect where every block is one cell.
    selected
        Which cells train; None for all.
    weights
        How often each comes; None for once an epoch.
    """

    blocks: Blocks
    seed: int
    lanes: int = LANES
    selected: Bool[np.ndarray, " cell"] | None = None
    weights: Weights | None = None
    _epochs: "dict[int, _Epoch]" = field(default_factory=dict, init=False, repr=False)
    _lengths: "list[int]" = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.lanes >= 1, "a lane at least"
        if self.n_in_epoch(0) == 0:
            raise ValueError("no cells to put in order: none is selected with a positive weight")

    @property
    def is_single_file(self) -> bool:
        """Whether lanes have no meaning: blocks of one cell are shuffled through and through."""
        return self.lanes == 1 or self.blocks.are_single_cells

    def n_in_epoch(self, epoch: int) -> int:
        """Deliveries in this epoch; the same in all of them without weights."""
        if self.weights is None and self._lengths:
            return self._lengths[0]
        while len(self._lengths) <= epoch:
            sizes = self._sizes(len(self._lengths))
            self._lengths.append(int(sizes.sum()))
        return self._lengths[epoch]

    def stretch(
        self, start: int, n: int
    ) -> tuple[Int[np.ndarray, " place"], Int[np.ndarray, " place"]]:
        """Cells and draws of positions ``start`` to ``start + n`` of the stream.

        A cell comes once in each of its draws: the draw's number is the epoch, plus 2^32 for each
        time that the cell has come in this epoch already in the line of blocks.
        """
        cells, draws, _ = self._stretch(start, n)
        return cells, draws

    def share(
        self, start: int, n: int, rank: int, world_size: int
    ) -> tuple[Int[np.ndarray, " place"], Int[np.ndarray, " place"]]:
        """Those of the stretch that this process reads: the shares of all of them make it up.

        A process reads whole lanes. Shares are equal, give or take a cell an epoch's end, where
        ``world_size`` divides ``lanes``; else they differ by a few cells.
        """
        cells, draws, lane = self._stretch(start, n)
        if self.is_single_file:
            mine = np.arange(start, start + n) % world_size == rank
        else:
            assert world_size <= self.lanes, "checked when the run was configured"
            mine = lane % world_size == rank
        return cells[mine], draws[mine]

    def _stretch(self, start: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, at = self._epoch_of(start)
        parts = []
        while n > 0:
            taken = min(n, self.n_in_epoch(epoch) - at)
            if taken > 0:
                cells, copy, lane = self._in_epoch(epoch, np.arange(at, at + taken))
                parts.append((cells, epoch + (copy << 32), lane))
            n, at, epoch = n - taken, 0, epoch + 1
        if not parts:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, nothing
        cells, draws, lanes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return cells, draws, lanes

    def _epoch_of(self, position: int) -> tuple[int, int]:
        """The epoch that a position lies in, and its place there."""
        if self.weights is None:
            return divmod(position, self.n_in_epoch(0))
        epoch = 0
        while position >= (length := self.n_in_epoch(epoch)):
            position, epoch = position - length, epoch + 1
        return epoch, position

    def _in_epoch(
        self, epoch: int, position: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cells, copies and lanes of positions within an epoch."""
        line = self._line(epoch)
        lanes = 1 if self.is_single_file else self.lanes
        length, longer = divmod(self.n_in_epoch(epoch), lanes)
        turn, lane = np.divmod(position, lanes)
        place = lane * length + np.minimum(lane, longer) + turn
        item = np.searchsorted(line.start, place, side="right") - 1
        block, copy = line.block[item], line.copy[item]
        cells = np.empty(len(position), np.int64)
        _cells_of_blocks(
            self.blocks.first[block],
            self.blocks.n_cells[block],
            copy,
            place - line.start[item],
            _key(self.seed, epoch),
            self._selected_or_none,
            *self._weights_or_none,
            _key(self.seed, -1),
            epoch,
            cells,
        )
        return cells, copy, lane

    def _line(self, epoch: int) -> "_Epoch":
        """Blocks of an epoch in their random order. Two epochs are kept: a batch may touch both."""
        if epoch not in self._epochs:
            sizes = self._sizes(epoch)
            block, copy = np.nonzero(sizes)
            # Philox is counter-based and its stream is fixed by NumPy's compatibility policy for
            # bit generators; SeedSequence keeps neighbouring (seed, epoch) pairs unrelated.
            sequence = np.random.SeedSequence([self.seed, epoch])
            shuffled = np.random.Generator(np.random.Philox(sequence)).permutation(len(block))
            block, copy = block[shuffled], copy[shuffled]
            start = np.concatenate([[0], np.cumsum(sizes[block, copy])[:-1]])
            for old in sorted(self._epochs)[:-1]:
                del self._epochs[old]
            self._epochs[epoch] = _Epoch(block, copy, start)
        return self._epochs[epoch]

    def _sizes(self, epoch: int) -> np.ndarray:
        """(block, copy) -> deliveries: a cell wanted m times is in the first m copies."""
        if self.selected is None and self.weights is None:
            return self.blocks.n_cells[:, None]
        copies = 1 if self.weights is None else int(np.ceil(self.weights.repeats.max()))
        sizes = np.zeros((len(self.blocks.first), max(copies, 1)), np.int32)
        _count_deliveries(
            self.blocks.first,
            self.blocks.n_cells,
            self._selected_or_none,
            *self._weights_or_none,
            _key(self.seed, -1),
            epoch,
            sizes,
        )
        return sizes

    # Empty arrays stand for "all cells" and "once each": numba compiles one function, not four.

    @property
    def _selected_or_none(self) -> np.ndarray:
        return np.zeros(0, np.bool_) if self.selected is None else self.selected

    @property
    def _weights_or_none(self) -> tuple[np.ndarray, np.ndarray]:
        if self.weights is None:
            return np.zeros(0, np.int32), np.zeros(0)
        return self.weights.codes, self.weights.repeats


@dataclass(frozen=True)
class _Epoch:
    """An epoch's line of blocks: which block, which copy of it, and where it starts."""

    block: np.ndarray
    copy: np.ndarray
    start: np.ndarray


@lru_cache(maxsize=16)
def _key(seed: int, epoch: int) -> np.uint64:
    words = np.array([seed & _WORD, (epoch + 1) & _WORD], dtype=np.uint64)
    mixed = mix64_array(words + GOLDEN)
    return mix64_array(mixed[:1] ^ (mixed[1:] * GOLDEN))[0]


@compiled
def _deliveries(cell, selected, codes, repeats, key, epoch):
    """How often a cell comes in an epoch: systematic sampling, an offset a cell."""
    if len(selected) > 0 and not selected[cell]:
        return 0
    if len(codes) == 0:
        return 1
    rate = repeats[codes[cell]]
    offset = np.float64(mix64(key ^ mix64(np.uint64(cell))) >> np.uint64(11)) * 2.0**-53
    return int(np.floor((epoch + 1) * rate + offset) - np.floor(epoch * rate + offset))


@compiled
def _count_deliveries(first, n_cells, selected, codes, repeats, key, epoch, sizes):
    for b in range(len(first)):
        for cell in range(first[b], first[b] + n_cells[b]):
            for copy in range(_deliveries(cell, selected, codes, repeats, key, epoch)):
                sizes[b, copy] += 1


@compiled
def _cells_of_blocks(
    first, n_cells, copy, place, shuffle_key, selected, codes, repeats, key, epoch, cells
):
    """The ``place``-th cell of each (block, copy), its cells being shuffled by key."""
    most = 0
    for k in range(len(first)):
        most = max(most, n_cells[k])
    line = np.empty(most, np.int64)
    all_once = len(selected) == 0 and len(codes) == 0
    for k in range(len(first)):
        n = n_cells[k]
        if n == 1:
            cells[k] = first[k]
            continue
        if all_once:
            for i in range(n):
                line[i] = first[k] + i
        else:
            n = 0
            for cell in range(first[k], first[k] + n_cells[k]):
                if _deliveries(cell, selected, codes, repeats, key, epoch) > copy[k]:
                    line[n] = cell
                    n += 1
        # Fisher and Yates, from the front: only the asked-for place has to be settled
        of_copy = np.uint64(first[k]) + (np.uint64(copy[k]) << np.uint64(48))
        word = mix64(shuffle_key ^ mix64(of_copy))
        for i in range(place[k] + 1):
            word = word * LCG_FACTOR + LCG_STEP
            # the product's high half; n is far below 2^32, so its bias is below n / 2^32
            j = i + np.int64(((word >> np.uint64(32)) * np.uint64(n - i)) >> np.uint64(32))
            line[i], line[j] = line[j], line[i]
        cells[k] = line[place[k]]
