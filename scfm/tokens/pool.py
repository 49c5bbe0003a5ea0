"""Several sources as one numbered pool of cells, each with its own alignment to the vocabulary.

in   (source, tokenizer) pairs: files, AnnData and stores in any mix
out  CellBatch for any cells of the pool; how its cells lie; what obs says of them

Cell numbers run through the sources in order.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from scfm.batch import CellBatch
from scfm.data.blocked import BlockedSource, in_blocks
from scfm.data.counts import CellSource, CountRows
from scfm.data.gene_report import GeneReport
from scfm.data.order import LANES, SHUFFLED_LANES, Blocks
from scfm.data.store import KEPT_BLOCKS, Store, names_once
from scfm.tokens.packed import CellTokenizer
from scfm.tokens.rng import cell_keys


@dataclass(frozen=True)
class PoolMember:
    """One source and the tokenizer that knows its columns.

    ``reports`` say what became of the columns of each of its data sets.
    """

    source: CellSource
    tokenizer: CellTokenizer
    reports: tuple[GeneReport, ...] = ()


Tokenize = Callable[[PoolMember, CountRows, Bool[np.ndarray, " cell"]], CellBatch]


class CellPool:
    """Cells of all members, numbered from 0 in the members' order.

    Attributes
    ----------
    sources
        The members' sources, all of which come in blocks.
    blocks
        How the cells lie, for scfm.data.order.
    first
        Number of each source's first cell, and of all cells.
    """

    def __init__(self, members: Sequence[PoolMember], seed: int):
        assert members, "a pool of nothing"
        self.members, self.seed = list(members), seed
        self.sources: list[Store | BlockedSource] = [in_blocks(m.source) for m in self.members]
        self.blocks = Blocks.joined([source.blocks for source in self.sources])
        sizes = [source.n_cells for source in self.sources]
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._reading = threading.Lock()

    @property
    def n_cells(self) -> int:
        return int(self.first[-1])

    @property
    def lanes(self) -> int:
        """From how many blocks at a time to draw: more where blocks are cells from one place."""
        shuffled = [isinstance(s, Store) or s.blocks.are_single_cells for s in self.sources]
        return SHUFFLED_LANES if all(shuffled) else LANES

    def keep_blocks(self, lanes: int) -> None:
        """Have every source keep the blocks that an order with so many lanes draws from."""
        for source in self.sources:
            source.keep_blocks(lanes + KEPT_BLOCKS - SHUFFLED_LANES)

    def column(self, name: str) -> tuple[Int[np.ndarray, " cell"], list[str]]:
        """An obs column of all cells as codes (-1: no value) and the names they stand for, sorted.

        "dataset" names the file each cell is from. Raises LabelError where a source has no such
        column.
        """
        found = [source.column(name) for source in self.sources]
        if name == "dataset":  # files of one name in two sources are two data sets
            apart = iter(names_once([file for _, files in found for file in files]))
            found = [(codes, [next(apart) for _ in files]) for codes, files in found]
        names = sorted({name for _, categories in found for name in categories})
        place = {name: number for number, name in enumerate(names)}
        codes = [
            np.array([*(place[c] for c in categories), -1], dtype=np.int32)[theirs]
            for theirs, categories in found
        ]
        return np.concatenate(codes), names

    def most_tokens(self) -> Int[np.ndarray, " cell"]:
        """A bound on the tokens of each cell's training example. Reads files, but not stores."""
        bounds = []
        for member, source in zip(self.members, self.sources, strict=True):
            n_genes = source.numbers("n_genes") if isinstance(source, Store) else source.n_genes
            bounds.append(member.tokenizer.most_tokens(n_genes).astype(np.int32))
        return np.concatenate(bounds)

    def training(
        self, cells: Int[np.ndarray, " cell"], epoch: Int[np.ndarray, " cell"]
    ) -> CellBatch:
        """Down-sampled cells with targets; draws depend on (seed, epoch, cell) alone.

        Cells come back grouped by source, in the given order within each. Several threads may ask.
        """

        def examples(member: PoolMember, rows: CountRows, mine: Bool[np.ndarray, " cell"]):
            keys = cell_keys(self.seed, epoch[mine], cells[mine])
            return member.tokenizer.training(rows, keys)

        return self.tokenized(cells, examples)

    def tokenized(self, cells: Int[np.ndarray, " cell"], tokenize: Tokenize) -> CellBatch:
        """Any cells of the pool, read and made tokens of by ``tokenize``, a source at a time.

        It gets the member, rows of it, and which of ``cells`` these are.
        """
        owner = np.searchsorted(self.first, cells, side="right") - 1
        parts = []
        for number in np.unique(owner):
            mine = owner == number
            with self._reading:
                rows = self.sources[number].rows(cells[mine] - self.first[number])
            batch = tokenize(self.members[number], rows, mine)
            parts.append(renumber(batch, cells[mine]))
        return concatenate(parts)


def renumber(cells: CellBatch, cell_index: Int[np.ndarray, " cell"]) -> CellBatch:
    """The same cells under the pool's numbers."""
    return replace(cells, cell_index=cell_index)


def concatenate(parts: Sequence[CellBatch]) -> CellBatch:
    """Several batches as one. Labels must be the same columns in each."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    if any(part.is_hidden is not None for part in parts):
        parts = [replace(part, is_hidden=part.hidden) for part in parts]
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name, array in vars(parts[0]).items()
        if name not in ("offsets", "labels") and array is not None
    }
    labels = {key: np.concatenate([part.labels[key] for part in parts]) for key in parts[0].labels}
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return CellBatch(**arrays, offsets=offsets, labels=labels)
