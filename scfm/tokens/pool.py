"""Several sources as one numbered pool of cells, each with its own alignment to the vocabulary.

in   (source, tokenizer) pairs
out  CellBatch for any cells of the pool; cell numbers run through the sources in order
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from scfm.batch import CellBatch
from scfm.data.counts import CellSource
from scfm.tokens.collate import Tokenizer
from scfm.tokens.rng import cell_keys


@dataclass(frozen=True)
class PoolMember:
    """One source and the tokenizer that knows its columns."""

    source: CellSource
    tokenizer: Tokenizer


class CellPool:
    """Cells of all members, numbered from 0 in the members' order."""

    def __init__(self, members: Sequence[PoolMember], seed: int):
        assert members, "a pool of nothing"
        self.members, self.seed = list(members), seed
        sizes = [member.source.n_cells for member in self.members]
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def n_cells(self) -> int:
        return int(self.first[-1])

    def training(
        self, cells: Int[np.ndarray, " cell"], epoch: Int[np.ndarray, " cell"]
    ) -> CellBatch:
        """Down-sampled cells with targets; draws depend on (seed, epoch, cell) alone.

        Cells come back grouped by source, in the given order within each.
        """
        owner = np.searchsorted(self.first, cells, side="right") - 1
        parts = []
        for number in np.unique(owner):
            member, mine = self.members[number], owner == number
            rows = member.source.rows(cells[mine] - self.first[number])
            keys = cell_keys(self.seed, epoch[mine], cells[mine])
            parts.append(renumber(member.tokenizer.training(rows, keys), cells[mine]))
        return concatenate(parts)


def renumber(cells: CellBatch, cell_index: Int[np.ndarray, " cell"]) -> CellBatch:
    """The same cells under the pool's numbers."""
    return CellBatch(**{**vars(cells), "cell_index": cell_index})


def concatenate(parts: Sequence[CellBatch]) -> CellBatch:
    """Several batches as one. Labels must be the same columns in each."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name not in ("offsets", "labels")
    }
    labels = {key: np.concatenate([part.labels[key] for part in parts]) for key in parts[0].labels}
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return CellBatch(**arrays, offsets=offsets, labels=labels)
