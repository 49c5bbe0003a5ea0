"""Metacells as a source of counts: what is read of them is summed when it is asked for.

in   CellSource, Metacells
out  CellSource whose cells are the metacells; counts are sums over their cells
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Int

from scfm.data.counts import CellSource, CountRows
from scfm.data.metacells import Metacells

CHUNK_METACELLS = 512


class PooledSource:
    """Pooled counts, never all in memory: each chunk reads the cells its metacells are made of.

    Attributes
    ----------
    obs
        One row a metacell: as given.
    """

    def __init__(self, source: CellSource, metacells: Metacells, obs: pd.DataFrame):
        assert len(obs) == len(metacells.names)
        self._source, self._members = source, metacells.members
        self.name, self.counts_from = f"metacells of {source.name}", source.counts_from
        self.obs, self.var = obs, source.var
        self.n_cells = len(obs)

    def rows(self, cell_index: Int[np.ndarray, " cell"]) -> CountRows:
        """These metacells, in this order."""
        cell_index = np.asarray(cell_index, dtype=np.int64)
        members = self._members[cell_index]
        cells, column = np.unique(members.indices, return_inverse=True)
        rows = self._source.rows(cells)
        counts = sp.csr_matrix(
            (rows.counts, rows.indices, rows.indptr), shape=(len(cells), len(self.var))
        )
        n_wanted = len(cell_index)
        picked = sp.csr_matrix(
            (np.ones(len(column), dtype=counts.dtype), column, members.indptr),
            shape=(n_wanted, len(cells)),
        )
        sums = sp.csr_matrix(picked @ counts)
        sums.sort_indices()
        return CountRows(
            indptr=sums.indptr.astype(np.int64),
            indices=sums.indices.astype(np.int32),
            counts=sums.data,
            cell_index=cell_index,
        )

    def chunks(self, n_cells: int) -> Iterator[CountRows]:
        """All metacells in order, at most CHUNK_METACELLS at a time."""
        step = min(n_cells, CHUNK_METACELLS)
        for first in range(0, self.n_cells, step):
            yield self.rows(np.arange(first, min(first + step, self.n_cells)))
