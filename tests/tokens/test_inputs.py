"""open_input with scFoundation's genes: columns go by name, however many and in any order."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.masking import MaskConfig, MaskedTokenizer
from scfm.tokens.vocab import GeneVocab


def adata_of(counts: np.ndarray, names) -> ad.AnnData:
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=names))


def shown(adata: ad.AnnData):
    member, report = open_input(adata, GeneVocab.scfoundation(), InputConfig(), MaskConfig())
    assert isinstance(member.tokenizer, MaskedTokenizer)
    return member.tokenizer.shown(member.source.rows(np.arange(adata.n_obs))), report


@pytest.fixture
def straight(rng) -> np.ndarray:
    """(cells x genes) in the released order, without the 22 names that no data has."""
    counts = rng.poisson(0.2, (4, 19_264))
    counts[:, ["__chrM" in symbol for symbol in GeneVocab.scfoundation().symbols]] = 0
    return counts


def test_as_many_columns_in_another_order(straight, rng):
    symbols = np.array(GeneVocab.scfoundation().symbols)
    order = rng.permutation(19_264)
    expected, _ = shown(adata_of(straight, symbols))
    moved, report = shown(adata_of(straight[:, order], symbols[order]))
    assert report.missing == 0
    np.testing.assert_array_equal(moved.gene_ids, expected.gene_ids)
    np.testing.assert_array_equal(moved.values, expected.values)
    is_gene = expected.gene_ids < 19_264
    np.testing.assert_array_equal(expected.gene_ids[is_gene], np.nonzero(straight)[1])


def test_more_columns_than_genes(straight, rng):
    symbols = np.array(GeneVocab.scfoundation().symbols)
    others = [f"AC{i:06}.1" for i in range(14_000)]  # as a 10x matrix of 33,000 genes has them
    wide = np.hstack([rng.poisson(0.05, (4, 14_000)), straight])
    expected, _ = shown(adata_of(straight, symbols))
    found, report = shown(adata_of(wide, [*others, *symbols]))
    assert report.missing == 0
    assert report.n_columns == 33_264
    # and what lies outside the vocabulary is no part of a cell's total
    np.testing.assert_array_equal(found.gene_ids, expected.gene_ids)
    np.testing.assert_array_equal(found.values, expected.values)
