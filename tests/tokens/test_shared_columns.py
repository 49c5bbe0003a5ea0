"""Columns of one gene as their rounded mean: the rounding is Python's, in every tokenizer."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm.tokens.collate import TokenConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.masking import MaskConfig
from scfm.tokens.shared_columns import SharedColumns
from scfm.tokens.tables import DatasetAlignment, GeneTables
from scfm.tokens.vocab import GeneVocab


def dense(rows, n_columns: int) -> np.ndarray:
    shape = (rows.n_cells, n_columns)
    return sp.csr_matrix((rows.counts, rows.indices, rows.indptr), shape=shape).toarray()


def test_means_are_rounded_half_to_even(columns, rows_of, rng):
    genes = np.array([0, 1, 0, -1, 2, 1, 0, -1])  # three columns, two columns, one
    cells = rng.integers(0, 6, (200, 8))
    alignment = columns(genes)
    shared, tables = SharedColumns.of(alignment, 3), GeneTables.of(alignment, 3)
    merged = shared.mean(rows_of(cells), tables, np.zeros(200, np.int64))
    found = dense(merged, 8)
    for gene in range(3):
        own = genes == gene
        expected = [round(int(total) / own.sum()) for total in cells[:, own].sum(1)]
        np.testing.assert_array_equal(found[:, own].sum(1), expected)
        assert ((found[:, own] > 0).sum(1) <= 1).all()
    np.testing.assert_array_equal(found[:, genes == -1], cells[:, genes == -1])
    assert merged.counts.dtype == np.int32
    assert merged.counts.min() > 0


def test_each_data_set_has_its_own_number_of_columns(rows_of):
    genes, first = np.array([0, 0, 1]), np.array([True, False, True])
    both = np.ones(3, bool)
    alignments = [
        DatasetAlignment(np.where(has, genes, -1).astype(np.int32), np.array([0, 1]), has)
        for has in (first, both)
    ]
    shared, tables = SharedColumns.of(alignments, 2), GeneTables.of(alignments, 2)
    rows = rows_of(np.array([[5, 0, 1], [5, 0, 1]]))
    merged = shared.mean(rows, tables, np.array([0, 1]))
    np.testing.assert_array_equal(dense(merged, 3), [[5, 0, 1], [2, 0, 1]])


@pytest.mark.parametrize("tokens", [TokenConfig(), MaskConfig()])
def test_open_input_takes_means(tokens):
    # MLL is a previous symbol of KMT2A
    counts, var = np.array([[4, 3, 2], [1, 0, 5]]), ["KMT2A", "MLL", "CD3E"]
    merged = np.array([[4, 2], [0, 5]])  # 3.5 to even, 0.5 to even

    def opened(counts, var, duplicates):
        adata = ad.AnnData(sp.csr_matrix(counts.astype("f4")), var=pd.DataFrame(index=var))
        config = InputConfig(duplicates=duplicates)
        member, _ = open_input(adata, GeneVocab.human(), config, tokens)
        return member.tokenizer.shown(member.source.rows(np.arange(2)))

    found = opened(counts, var, "rounded_mean")
    expected = opened(merged, ["KMT2A", "CD3E"], "sum")
    np.testing.assert_array_equal(found.gene_ids, expected.gene_ids)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.library_size, [6, 5])
    np.testing.assert_array_equal(opened(counts, var, "sum").library_size, [9, 6])
