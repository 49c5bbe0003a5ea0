"""scfm.tl on converted weights: the original's gene embeddings and expression, by gene name."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scfm
from scfm.model.convert.scfoundation import load_published
from scfm.tokens.vocab import GeneVocab

EMBEDDING, EXPRESSION = 2e-5, 1e-4  # largest absolute differences allowed


@pytest.fixture(scope="module")
def model_and_expected(shared_oracles):
    if shared_oracles is None:
        pytest.skip("the original's outputs are not beside this checkout")
    folder = shared_oracles / "scfoundation"
    with np.load(folder / "expected.npz") as file:
        return load_published(folder / "models.ckpt", "gene"), dict(file)


@pytest.fixture
def adata(model_and_expected, rng):
    """The oracle's cells with their columns in another order, and one that is no gene."""
    counts = model_and_expected[1]["counts"]
    order = rng.permutation(counts.shape[1])
    symbols = [GeneVocab.scfoundation().symbols[i] for i in order]
    table = np.hstack([counts[:, order], np.full((len(counts), 1), 7)]).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(table), var=pd.DataFrame(index=[*symbols, "no gene"]))


def test_gene_embeddings_are_the_originals(model_and_expected, adata):
    model, expected = model_and_expected
    names = [model.vocab.symbols[i] for i in expected["gene_idx"]]
    scfm.tl.gene_embedding(adata, model, genes=names, target_depth="t4", minimum_coverage=0)
    difference = adata.obsm["X_scfm_genes"] - expected["gene_embedding_t4"]
    assert np.abs(difference).max() <= EMBEDDING


def test_denoised_layer_is_the_originals_expression(model_and_expected, adata):
    model, expected = model_and_expected
    scfm.tl.denoise(adata, model, target_depth="t4", minimum_coverage=0)
    place = {symbol: i for i, symbol in enumerate(model.vocab.symbols)}
    columns = [place[name] for name in adata.var_names[:-1]]
    theirs = np.maximum(expected["gene_expression_t4"][:, columns], 0)
    found = adata.layers["scfm_denoised"]
    assert np.abs(found[:, :-1] - theirs).max() <= EXPRESSION
    assert np.isnan(found[:, -1]).all()
