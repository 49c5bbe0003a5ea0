"""Which cell next: a pure function of (seed, number of cells, position).

in   a position in the endless stream of epochs
out  cell numbers and the epoch each belongs to

The stream is one permutation of all cells after another; every cell comes exactly once an epoch
and a batch may reach over the end of one. The whole state of a run is one integer, the number of
batches taken, so it resumes exactly, on any number of processes.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, kw_only=True)
class CellOrder:
    """The training order of ``n_cells`` cells in global batches of ``batch_size``."""

    n_cells: int
    batch_size: int
    seed: int

    def batch(
        self, step: int, rank: int = 0, world_size: int = 1
    ) -> tuple[Int[np.ndarray, " cell"], Int[np.ndarray, " cell"]]:
        """Cell numbers and epochs of this rank's share of global batch ``step``.

        Ranks take every ``world_size``-th cell, so the union over ranks is the same batch
        whatever ``world_size``, which must divide ``batch_size``.
        """
        assert self.batch_size % world_size == 0, "checked when the run was configured"
        first = step * self.batch_size
        position = np.arange(first + rank, first + self.batch_size, world_size)
        epoch, place = np.divmod(position, self.n_cells)
        cells = np.empty_like(place)
        for e in np.unique(epoch):
            cells[epoch == e] = _permutation(self.seed, int(e), self.n_cells)[place[epoch == e]]
        return cells, epoch


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n_cells: int) -> Int[np.ndarray, " cell"]:
    # Philox is counter-based and its stream is fixed by NumPy's compatibility policy for
    # bit generators; SeedSequence keeps neighbouring (seed, epoch) pairs unrelated.
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(n_cells)
