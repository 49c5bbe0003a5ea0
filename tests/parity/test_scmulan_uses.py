"""Annotation of raw counts by converted weights: the original's coarse types and embedding.

The original was given log-normalised values; the counts they come from are whole numbers, so they
can be had back, with one column for the counts outside the 2,000 genes.
"""

import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scfm
from scfm.errors import ScfmWarning
from scfm.model.convert.scmulan import load_published


@pytest.fixture(scope="module")
def oracle(shared_oracles):
    if shared_oracles is None:
        pytest.skip("the original's outputs are not beside this checkout")
    folder = shared_oracles / "scmulan"
    with np.load(folder / "expected.npz") as file:
        return folder, dict(file), json.loads((folder / "expected.json").read_text())


@pytest.fixture(scope="module")
def counts(oracle):
    """Raw counts: the smallest value of a cell is one molecule."""
    shares = np.expm1(oracle[1]["lognorm"].astype(np.float64))
    one = np.where(shares > 0, shares, np.inf).min(1, keepdims=True)
    inside, total = np.rint(shares / one), np.rint(1e4 / one)
    assert np.abs(shares / one - inside).max() < 1e-4
    both = np.concatenate([inside, total - inside.sum(1, keepdims=True)], axis=1)
    model = load_published(oracle[0] / "ckpt_scMulan.pt")
    adata = ad.AnnData(sp.csr_matrix(both.astype(np.float32)))
    adata.var_names = [*model.vocab.symbols, "GAPDHS"]
    return adata, model


def test_types_and_embedding_of_raw_counts(oracle, counts):
    adata, model = counts
    assert "GAPDHS" not in model.vocab.symbols
    scfm.tl.annotate(adata, model, min_confidence=0.0)
    assert list(adata.obs["scfm_coarse_type"]) == oracle[2]["coarse"]
    assert np.abs(adata.obsm["X_scfm"] - oracle[1]["embedding"]).max() <= 2e-5
    assert set(adata.obs["scfm_cell_type"]) <= {*model.vocab.specials_after, "unknown"}


def test_half_of_the_genes_will_do(counts):
    """The original refuses any cell without all of its 2,000 genes."""
    adata, model = counts
    half = adata[:, 1000:].copy()
    scfm.tl.annotate(half, model, minimum_coverage=0.4)
    assert half.uns["scfm"]["X_scfm"]["genes"]["missing"] == 1000


def test_perturbing_a_gene_of_the_release(counts):
    adata, model = counts
    gene = model.vocab.symbols[int(np.flatnonzero(adata.X[0].toarray()[0, :2000])[0])]
    scfm.tl.perturb_in_silico(adata, model, genes=[gene])
    found = adata.uns["scfm"]["in_silico"]["genes"].loc[gene]
    assert found["n_cells_changed"] == (adata[:, gene].X.toarray() > 0).sum() > 0
    assert found["distance"] > 0
    empty = model.vocab.symbols[int(np.flatnonzero(adata.X.sum(0).A1 == 0)[0])]
    with pytest.warns(ScfmWarning, match=f"expresses {empty}"):
        scfm.tl.perturb_in_silico(adata, model, genes=[empty])
