"""Raw counts -> log1p of counts per 10,000 on chosen genes, in CSR, for every model-free method.

in   raw counts (CSR) and gene names of one set or two
out  the genes both sets name, their normalised counts, the most variable columns

A cell's total is taken over all its genes, shared or not. Nothing of full size is made dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from scfm.errors import GeneCoverageError

SCALE = 1e4


@dataclass(frozen=True)
class CountTable:
    """Raw counts in CSR, cells by genes, and the genes' names in the terms both sets share."""

    counts: sp.csr_matrix
    genes: Sequence[str]

    @property
    def n_cells(self) -> int:
        return len(self.counts.indptr) - 1


def shared_genes(
    reference: Sequence[str], query: Sequence[str]
) -> tuple[Int[np.ndarray, " gene"], Int[np.ndarray, " gene"]]:
    """Columns of the genes both sets name, in the reference's order; the first of equal names."""
    first = {gene: at for at, gene in reversed(list(enumerate(query)))}
    seen: dict[str, int] = {}
    for at, gene in enumerate(reference):
        if gene in first:
            seen.setdefault(gene, at)
    if not seen:
        raise GeneCoverageError(
            f"no gene is named in both sets: the reference has {', '.join(list(reference)[:3])}, "
            f"the query {', '.join(list(query)[:3])}. Give both sets symbols, or both Ensembl ids."
        )
    return np.array(list(seen.values())), np.array([first[gene] for gene in seen])


def log1p_cp10k(counts: sp.csr_matrix, columns: Int[np.ndarray, " gene"]) -> sp.csr_matrix:
    """log1p of counts per 10,000, in nats, on ``columns``; a cell's total is over all its genes."""
    shared = sp.csr_matrix(counts)[:, columns].astype(np.float64)
    total = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    scale = SCALE / np.maximum(total, 1.0)
    shared.data = np.log1p(shared.data * np.repeat(scale, np.diff(shared.indptr)))
    return shared


def variable_genes(log_counts: sp.csr_matrix, n_genes: int) -> Int[np.ndarray, " gene"]:
    """Columns of the most variable genes by scanpy's "seurat" flavour, ascending.

    Dispersion of the unlogged values, standardised within 20 bins of mean expression.
    Source: Satija et al. 2015, doi:10.1038/nbt.3192.
    """
    # imported here: loading scanpy takes seconds, which only this baseline should cost
    import anndata as ad
    import scanpy as sc

    _, n_measured = sp.csr_matrix.get_shape(log_counts)
    table = ad.AnnData(log_counts.astype(np.float32))
    sc.pp.highly_variable_genes(table, n_top_genes=min(n_genes, n_measured), flavor="seurat")
    return np.flatnonzero(table.var["highly_variable"].to_numpy())
