"""CSR rows over a file's columns -> each cell's counts in vocabulary order.

in   column numbers and counts of a cell; the gene (or none) of each column
out  the cell's expressed genes ascending, columns of one gene summed, and what lies outside

The counts outside the vocabulary become one last entry, the "outside" gene, whose number is the
vocabulary's size: they belong to the library and are thinned with it.
"""

import numpy as np
from jaxtyping import Int, Num, UInt32

from scfm.data.bits import count_before, n_words, rank, set_bit
from scfm.data.compiled import compiled
from scfm.data.counts import CountRows


def column_slots(
    column_to_gene: Int[np.ndarray, " column"], n_genes: int
) -> UInt32[np.ndarray, " column"]:
    """The gene of each column, or ``n_genes`` for a column outside the vocabulary."""
    slots = np.asarray(column_to_gene, dtype=np.int64)
    assert slots.size == 0 or slots.max() < n_genes, "a column's gene is beyond the vocabulary"
    # unsigned: spares the inner loop numba's check for negative indices
    return np.where(slots < 0, n_genes, slots).astype(np.uint32)


def in_vocabulary_order(
    rows: CountRows, column_to_gene: Int[np.ndarray, " column"], n_genes: int
) -> tuple[Int[np.ndarray, " bound"], Int[np.ndarray, " expressed"], Num[np.ndarray, " expressed"]]:
    """(indptr, genes, counts) with genes ascending in each cell and columns of a gene summed.

    A cell's last entry is always gene ``n_genes``: its counts outside the vocabulary, may be 0.
    """
    indptr, indices, counts = csr_arrays(rows)
    slots = column_slots(column_to_gene, n_genes)
    lengths, size = np.zeros(rows.n_cells, np.int64), len(counts) + rows.n_cells
    genes, summed = np.zeros(size, np.int32), new_sums(size, counts)
    _gather_rows(indptr, indices, counts, slots, n_genes, lengths, genes, summed)
    gathered = np.concatenate([[0], np.cumsum(lengths)])
    return gathered, genes[: gathered[-1]], summed[: gathered[-1]]


def csr_arrays(rows: CountRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr, indices and counts in the few types the kernels are compiled for."""
    is_whole = np.issubdtype(rows.counts.dtype, np.integer)
    return (
        np.ascontiguousarray(rows.indptr, dtype=np.int64),
        np.ascontiguousarray(rows.indices, dtype=np.int32),
        np.ascontiguousarray(rows.counts, dtype=np.int32 if is_whole else np.float32),
    )


def longest_row(indptr: Int[np.ndarray, " bound"]) -> int:
    """Entries of the longest row, 0 without rows: what the scratch space of a cell must hold."""
    return int(np.diff(indptr).max(initial=0))


def new_sums(size: int, counts: Num[np.ndarray, " nonzero"]) -> Num[np.ndarray, " {size}"]:
    """Room for sums of these counts: whole ones stay whole, and neither wraps around."""
    return np.zeros(size, dtype=np.int64 if np.issubdtype(counts.dtype, np.integer) else np.float64)


@compiled
def gather_cell(indices, counts, slots, n_genes, bits, before, genes, summed):
    """One cell's genes ascending with their summed counts; returns how many genes.

    The outside gene follows them, not counted. ``bits`` comes in all zero and goes out with the
    genes and the outside gene set, ``before`` as its `count_before`.
    """
    for k in range(len(indices)):
        set_bit(bits, slots[np.uint64(indices[k])])
    set_bit(bits, n_genes)
    n = count_before(bits, before) - 1
    summed[: n + 1] = 0
    genes[n] = n_genes
    for k in range(len(indices)):
        slot = slots[np.uint64(indices[k])]
        r = np.uint64(rank(bits, before, slot))
        genes[r] = slot
        summed[r] += counts[k]
    return n


@compiled
def _gather_rows(indptr, indices, counts, slots, n_genes, lengths, genes, summed):
    """`gather_cell` for every row, one after the other; an entry a row is the outside gene."""
    bits = np.zeros(n_words(n_genes + 1), np.uint64)
    before = np.zeros(len(bits), np.int64)
    end = 0
    for i in range(len(indptr) - 1):
        row = slice(indptr[i], indptr[i + 1])
        bits[:] = 0
        lengths[i] = 1 + gather_cell(
            indices[row], counts[row], slots, n_genes, bits, before, genes[end:], summed[end:]
        )
        end += lengths[i]
