"""CSR rows in vocabulary order: against a dense matrix product."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse

from scfm.data.counts import CountRows
from scfm.tokens.gather import in_vocabulary_order


def dense_reference(counts, column_to_gene, n_genes):
    """(cells x genes + 1): columns of a gene summed, everything else in the last."""
    gene = np.where(column_to_gene < 0, n_genes, column_to_gene)
    n_columns = len(column_to_gene)
    to_gene = scipy.sparse.csr_array(
        (np.ones(n_columns), (np.arange(n_columns), gene)), shape=(n_columns, n_genes + 1)
    )
    return counts @ to_gene


@pytest.mark.parametrize("n_genes", [63, 64, 65, 250])
def test_is_the_dense_sum(cells, rng, rows_of, n_genes):
    column_to_gene = rng.integers(-1, n_genes, cells.shape[1])  # many genes more than once
    indptr, genes, counts = in_vocabulary_order(rows_of(cells), column_to_gene, n_genes)
    expected = dense_reference(cells, column_to_gene, n_genes)
    ours = scipy.sparse.csr_array((counts, genes, indptr), shape=expected.shape).toarray()
    np.testing.assert_array_equal(ours, expected)
    for start, stop in pairwise(indptr):
        assert (np.diff(genes[start:stop]) > 0).all()
        assert genes[stop - 1] == n_genes


def test_sums_do_not_wrap_around(rows_of):
    most = np.iinfo(np.int32).max
    rows = rows_of(np.array([[most, most, most, most]]))
    _, genes, counts = in_vocabulary_order(rows, np.array([0, 0, -1, -1]), 1)
    assert (genes.tolist(), counts.tolist()) == ([0, 1], [2 * most, 2 * most])


def test_expected_counts_keep_their_fractions(rows_of):
    rows = rows_of(np.array([[0.5, 1.25, 3.0]]))
    _, genes, counts = in_vocabulary_order(rows, np.array([1, 1, -1]), 2)
    assert (genes.tolist(), counts.tolist()) == ([1, 2], [1.75, 3.0])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_index_types_do_not_matter(cells, rows_of, dtype):
    rows = rows_of(cells)
    cast = CountRows(
        rows.indptr.astype(dtype), rows.indices.astype(dtype), rows.counts, rows.cell_index
    )
    order = np.arange(cells.shape[1])[::-1]
    for ours, theirs in zip(
        in_vocabulary_order(cast, order, len(order)),
        in_vocabulary_order(rows, order, len(order)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_no_cells_and_empty_cells(rows_of):
    indptr, genes, counts = in_vocabulary_order(rows_of(np.zeros((0, 3), int)), np.arange(3), 3)
    assert (indptr.tolist(), len(genes), len(counts)) == ([0], 0, 0)
    indptr, genes, counts = in_vocabulary_order(rows_of(np.zeros((2, 3), int)), np.arange(3), 3)
    assert (genes.tolist(), counts.tolist()) == ([3, 3], [0, 0])
