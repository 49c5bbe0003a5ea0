"""Doubtful cells are said by embedding and decoding alike, in both families, once."""

import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scfm
from scfm.errors import ScfmWarning
from tests.toys import toy_adata, toy_model, toy_scfoundation


@pytest.fixture
def adata(rng):
    return toy_adata(rng, n_cells=12)


@pytest.fixture(params=["scfoundation", "scfm"])
def model(request):
    return toy_scfoundation() if request.param == "scfoundation" else toy_model()


def warned(tool, adata, model, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScfmWarning)
        getattr(scfm.tl, tool)(adata, model, target_depth="a1", batch_size=4, **options)
    return [str(one.message) for one in caught if one.category is ScfmWarning]


def tools_of(model):
    own = ["gene_embedding"] if hasattr(model, "decode") else []
    return ["embed", "denoise", *own]


def with_bare_cells(adata, bare):
    """These cells' counts are all of a gene that no model knows."""
    counts = np.column_stack([adata.X.toarray(), np.zeros(adata.n_obs)])
    counts[bare, -1] = counts[bare].sum(1)
    counts[bare, :-1] = 0
    found = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=adata.obs)
    found.var_names = [*adata.var_names, "thing"]
    return found


def test_nothing_is_said_of_cells_in_order(adata, model):
    for tool in tools_of(model):
        assert warned(tool, adata, model) == []


def test_cells_without_a_known_gene_are_said_once(adata, model, monkeypatch):
    monkeypatch.setattr("scfm.tasks.embedding.CHUNK_CELLS", 5)
    monkeypatch.setattr("scfm.tasks.decoding.CHUNK_CELLS", 5)
    adata = with_bare_cells(adata, [2, 6, 7, 11])
    for tool in tools_of(model):
        (said,) = warned(tool, adata, model)
        assert "4 of 12 cells of AnnData have no count on the genes the model knows" in said
        assert "(first rows: 2, 6, 7)" in said


def test_bulk_given_as_cells_is_said_once(adata, model, monkeypatch):
    monkeypatch.setattr("scfm.tasks.embedding.CHUNK_CELLS", 5)
    monkeypatch.setattr("scfm.tasks.decoding.CHUNK_CELLS", 5)
    adata.X = adata.X * 50_000
    median = float(np.median(adata.X[:5].sum(1).A1))
    for tool in tools_of(model):
        (said,) = warned(tool, adata, model)
        assert f"its 5 rows have a median of {median:,.0f} counts, as bulk samples" in said


def test_more_genes_than_trained_on_are_said_once(adata, model):
    model.config.max_genes = 20
    n_beyond = int(((adata.X > 0).sum(1) > 20).sum())
    assert n_beyond > 0
    for tool in tools_of(model):
        (said,) = warned(tool, adata, model)
        assert f"{n_beyond} of 12 cells express more than" in said
