"""Cells that a model answers for all the same: what a user is told of them, once for all cells.

in   cells as they are read and shown, while they stream by
out  ScfmWarnings: bulk samples, no gene the model knows, more genes than it knows, T below S
"""

import warnings

import numpy as np
from jaxtyping import Float, Int

from scfm.data.bulk import warn_if_bulk
from scfm.data.counts import CountRows
from scfm.errors import ScfmWarning
from scfm.model.base import CellModel
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import TargetDepth, warn_if_below

ROWS_SHOWN = 3


class Doubts:
    """Counts doubtful cells; `say` warns of them after the last one."""

    def __init__(self, model: CellModel, member: PoolMember, target_depth: TargetDepth):
        self.most_genes, self.name = model.config.max_genes, member.source.name
        self.target_depth = target_depth
        self.n_cells = self.n_beyond = self.n_below = self.n_bare = 0
        self.bare_rows: list[int] = []  # the first ones

    def see_rows(self, rows: CountRows) -> None:
        """A chunk as it was read. Warns at once of bulk samples: the first chunk says what all are.

        Before the first long forward pass, then, and not after the last.
        """
        if self.n_cells == 0:
            sums = np.append(0.0, np.cumsum(rows.counts, dtype=np.float64))
            warn_if_bulk(np.diff(sums[rows.indptr]), self.name)

    def see(
        self,
        cell_index: Int[np.ndarray, " cell"],
        source_depth: Float[np.ndarray, " cell"],
        n_genes: Int[np.ndarray, " cell"],
    ) -> None:
        """Cells as they were shown: log10 of their counts, and how many genes they express."""
        bare = cell_index[n_genes == 0]
        self.n_cells += len(cell_index)
        self.n_bare += len(bare)
        self.bare_rows += bare[: ROWS_SHOWN - len(self.bare_rows)].tolist()
        self.n_beyond += int((n_genes > self.most_genes).sum())
        self.n_below += int(self.target_depth.is_below(source_depth).sum())

    def say(self) -> None:
        """One warning for each kind of doubt there is."""
        if self.n_bare:
            _warn(
                f"{self.n_bare:,} of {self.n_cells:,} cells of {self.name} have no count on the "
                f"genes the model knows (first rows: {', '.join(map(str, self.bare_rows))}). What "
                "the model says of them comes from their depth alone: leave them out."
            )
        if self.n_beyond:
            _warn(
                f"{self.n_beyond:,} of {self.n_cells:,} cells express more than the "
                f"{self.most_genes:,} genes a cell this model was trained on; all of their genes "
                "were used."
            )
        warn_if_below(self.n_below, self.n_cells, self.target_depth)


def _warn(message: str) -> None:
    warnings.warn(message, ScfmWarning, stacklevel=4)
