"""Raw counts in rows, and where they come from: one interface for files, AnnData and stores.

A source hands out cells as CSR rows over its own columns. It knows nothing of vocabularies or
tokens; scfm.data.genes says which column is which gene, scfm.tokens turns rows into tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Int, Num


@dataclass(frozen=True)
class CountRows:
    """Some cells' raw counts, CSR. Explicit zeros and duplicate columns may not occur.

    Attributes
    ----------
    indptr
        Row starts.
    indices
        Columns of the source, ascending within a row.
    counts
        Raw UMI counts as int32; float32 only where expected counts (RSEM) were asked for.
    cell_index
        Row numbers in the source.
    dataset
        Which of the source's data sets each cell is from; None where there is but one.
    """

    indptr: Int[np.ndarray, " bound"]
    indices: Int[np.ndarray, " nonzero"]
    counts: Num[np.ndarray, " nonzero"]
    cell_index: Int[np.ndarray, " cell"]
    dataset: Int[np.ndarray, " cell"] | None = None

    @property
    def n_cells(self) -> int:
        return len(self.indptr) - 1

    def part(self, first: int, last: int) -> "CountRows":
        """Rows ``first:last`` of these, without copying the counts."""
        indptr = self.indptr[first : last + 1]
        kept = slice(indptr[0], indptr[-1])
        return CountRows(
            indptr=indptr - indptr[0],
            indices=self.indices[kept],
            counts=self.counts[kept],
            cell_index=self.cell_index[first:last],
            dataset=None if self.dataset is None else self.dataset[first:last],
        )


@runtime_checkable
class CellSource(Protocol):
    """Where cells come from: a file, an AnnData in memory, a store."""

    @property
    def name(self) -> str:
        """For messages and provenance: the path, or 'AnnData'."""
        ...

    @property
    def counts_from(self) -> str:
        """Where the raw counts were found: "X", "layers['counts']", "raw.X"."""
        ...

    @property
    def n_cells(self) -> int: ...

    @property
    def var(self) -> pd.DataFrame:
        """One row a column of the counts; the index and any id columns name genes."""
        ...

    @property
    def obs(self) -> pd.DataFrame:
        """One row a cell."""
        ...

    def rows(self, cell_index: Int[np.ndarray, " cell"]) -> CountRows:
        """These cells, in this order."""
        ...

    def chunks(self, n_cells: int) -> Iterator[CountRows]:
        """All cells in file order, at most ``n_cells`` at a time. Nothing is read twice."""
        ...
