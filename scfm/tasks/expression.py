"""An opened input -> log1p(cp10k) of the vocabulary's genes, exactly as the model is shown it.

in   PoolMember
out  CSR, cells by genes of the vocabulary
"""

import numpy as np
import scipy.sparse as sp

from scfm.tokens.pool import PoolMember

CHUNK_CELLS = 2048


def log_expression(member: PoolMember) -> sp.csr_matrix:
    """All cells in file order, (n_cells, vocabulary's genes), float32.

    By way of the tokens: matched by name, duplicate columns summed, totals as the family has them.
    """
    tokenizer, vocab, parts = member.tokenizer, member.tokenizer.vocab, []
    for rows in member.source.chunks(CHUNK_CELLS):
        cells = tokenizer.shown(rows)
        genes = cells.gene_ids - vocab.gene_start
        is_gene = (genes >= 0) & (genes < vocab.n_genes)
        row = np.repeat(np.arange(rows.n_cells), np.diff(cells.offsets))[is_gene]
        shape = (rows.n_cells, vocab.n_genes)
        parts.append(sp.csr_matrix((cells.values[is_gene], (row, genes[is_gene])), shape=shape))
    return sp.csr_matrix(sp.vstack(parts))


def measured_genes(member: PoolMember) -> np.ndarray:
    """Positions, among the vocabulary's genes, of those the data has a column for; ascending."""
    slots = gene_of_column(member)
    return np.unique(slots[slots >= 0])


def gene_of_column(member: PoolMember) -> np.ndarray:
    """Of each column of the data, its gene's position in the vocabulary; -1 where it has none."""
    tables = member.tokenizer.tables
    assert len(tables.slots) == 1, "one data set, one table"
    slots = tables.slots[0].astype(np.int64)
    return np.where(slots < member.tokenizer.vocab.n_genes, slots, -1)
