"""Several columns of one gene -> their rounded mean, where a model was trained on such data.

in   CSR rows, the gene of each column, how many columns each gene has
out  the same rows with one entry a gene

Counts of several columns are summed otherwise (scfm.tokens.gather). Source: GeneSymbolUniform,
reference/GeneSymbolUniform/pyGSUni.py:261-266 of SuperBianC/scMulan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, UInt16

from scfm.data.counts import CountRows
from scfm.tokens.tables import Alignment, DatasetAlignment, GeneTables


@dataclass(frozen=True)
class SharedColumns:
    """How many columns each gene has in each data set."""

    n_columns: UInt16[np.ndarray, "dataset gene"]

    @classmethod
    def of(
        cls, alignments: Alignment | Sequence[DatasetAlignment], n_genes: int
    ) -> "SharedColumns":
        if isinstance(alignments, Sequence):
            genes = [one.column_to_gene[one.has_column] for one in alignments]
        else:
            genes = [alignments.column_to_gene]
        counted = [np.bincount(some[some >= 0], minlength=n_genes) for some in genes]
        return cls(np.stack(counted).astype(np.uint16))

    def mean(
        self, rows: CountRows, tables: GeneTables, dataset: Int[np.ndarray, " cell"]
    ) -> CountRows:
        """Rows in which the first column of a gene has the rounded mean, and no other an entry.

        A column without a count counts: 5 molecules on one of two columns are 2, half to even.
        """
        n_genes = self.n_columns.shape[1]
        cell = np.repeat(np.arange(rows.n_cells), np.diff(rows.indptr))
        gene = tables.slots[tables.table_of[dataset[cell]], rows.indices].astype(np.int64)
        inside = gene < n_genes
        n_columns = np.ones(len(gene), dtype=np.int64)
        n_columns[inside] = self.n_columns[dataset[cell[inside]], gene[inside]]
        shared = np.flatnonzero(n_columns > 1)
        if not len(shared):
            return rows
        keys, first, which = np.unique(
            cell[shared] * n_genes + gene[shared], return_index=True, return_inverse=True
        )
        sums = np.bincount(which, weights=rows.counts[shared], minlength=len(keys))
        counts = rows.counts.copy()
        counts[shared] = 0
        counts[shared[first]] = rounded_mean(sums, n_columns[shared[first]])
        kept = counts > 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
        return replace(rows, indptr=indptr, indices=rows.indices[kept], counts=counts[kept])


def rounded_mean(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    """sums / n, rounded half to even as Python's round does it."""
    return np.rint(sums / n)
