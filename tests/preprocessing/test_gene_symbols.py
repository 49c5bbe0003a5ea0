"""unify_genes: kept, renamed, ambiguous, abandoned; columns of one gene settled as asked."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scfm
from scfm.data.gene_tables import gene_names
from scfm.errors import ConfigError, CountsError, DuplicateGeneError, GeneCoverageError
from scfm.tokens.vocab import GeneVocab

# CD3E is itself; MLL was KMT2A; SEPT2 too is a previous symbol (of SEPTIN2); Bp35 is an alias of
# MS4A1; the last two are no genes, or none of the list
NAMES = ["CD3E", "MLL", "KMT2A", "SEPT2", "Bp35", "ENSG00000007312.12", "no gene", "XIST"]


def adata_of(counts, names) -> ad.AnnData:
    matrix = sp.csr_matrix(np.asarray(counts, dtype=np.float32))
    obs = pd.DataFrame({"donor": [f"d{i}" for i in range(len(counts))]})
    obs.index = obs.index.astype(str)
    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture
def adata(rng) -> ad.AnnData:
    return adata_of(rng.integers(0, 6, (300, len(NAMES))), NAMES)


def test_states_and_rounded_means(adata):
    # worked number O
    before = adata.X.toarray().copy()
    unified, report = scfm.pp.unify_genes(adata)
    assert report["state"].to_dict() == {
        "CD3E": "No Change",
        "MLL": "Changed",
        "KMT2A": "No Change",
        "SEPT2": "Changed",
        "Bp35": "Changed",
        "ENSG00000007312.12": "Changed",
        "no gene": "Abandoned",
        "XIST": "Abandoned",
    }
    assert report["gene"]["MLL"] == "KMT2A"
    assert report["gene"]["ENSG00000007312.12"] == "CD79B"
    assert report["reason"]["MLL"] == "previous name"
    assert report["reason"]["XIST"] == "a gene not on the list"
    assert report["reason"]["no gene"] == "in no table"
    assert list(unified.var_names) == ["CD3E", "CD79B", "KMT2A", "MS4A1", "SEPTIN2"]
    np.testing.assert_array_equal(unified.var["n_columns"], [1, 1, 2, 1, 1])
    found, counts = unified.to_df(), pd.DataFrame(before, columns=NAMES)
    expected = [round(total / 2) for total in (counts["MLL"] + counts["KMT2A"]).tolist()]
    np.testing.assert_array_equal(found["KMT2A"], expected)  # half to even
    np.testing.assert_array_equal(found["MS4A1"], counts["Bp35"])
    assert list(unified.obs["donor"]) == list(adata.obs["donor"])
    assert sp.issparse(unified.X)
    assert unified.uns["scfm"]["unify_genes"]["collisions"] == "rounded_mean"
    np.testing.assert_array_equal(adata.X.toarray(), before)


def test_a_name_of_several_genes_is_not_used():
    several = min(gene_names("human").ambiguous)
    unified, report = scfm.pp.unify_genes(
        adata_of([[1, 2, 3, 4]], ["CD3E", several, "MS4A1", "Bp35"]), symbols=["CD3E", "MS4A1"]
    )
    assert report.loc[several, "state"] == report.loc["Bp35", "state"] == "Multiple Candidates"
    assert report.loc[several, "reason"] == "a name of several genes"
    assert report.loc["Bp35", "reason"] == "alias of MS4A1, which another column is"
    np.testing.assert_array_equal(unified.X.toarray(), [[1, 3]])


def test_sums_and_refusals(adata):
    unified, _ = scfm.pp.unify_genes(adata, collisions="sum")
    counts = adata.to_df()
    np.testing.assert_array_equal(unified.to_df()["KMT2A"], counts["MLL"] + counts["KMT2A"])
    with pytest.raises(
        DuplicateGeneError, match=r"1 genes are several columns .*KMT2A: MLL, KMT2A"
    ):
        scfm.pp.unify_genes(adata, collisions="refuse")
    with pytest.raises(ConfigError, match="symbols is 'mouse'; known are human, scmulan"):
        scfm.pp.unify_genes(adata, symbols="mouse")
    with pytest.raises(ConfigError, match="'CD3E' twice"):
        scfm.pp.unify_genes(adata, symbols=["CD3E", "CD3E"])
    with pytest.raises(GeneCoverageError, match="None of the 8 columns"):
        scfm.pp.unify_genes(adata, symbols=["CD19"])
    logs = adata.copy()
    logs.X = logs.X.log1p()
    with pytest.raises(CountsError):
        scfm.pp.unify_genes(logs)


def test_the_published_list_whole(adata):
    unified, _ = scfm.pp.unify_genes(adata, symbols="scmulan", missing="zero")
    assert list(unified.var_names) == list(GeneVocab.scmulan().symbols)
    is_measured = unified.var["n_columns"].to_numpy() > 0
    assert 0 < is_measured.sum() < 6
    assert unified.X[:, ~is_measured].nnz == 0


def test_chunks_do_not_show(adata, monkeypatch):
    whole, _ = scfm.pp.unify_genes(adata)
    monkeypatch.setattr("scfm.preprocessing.gene_symbols.CHUNK_CELLS", 7)
    parts, _ = scfm.pp.unify_genes(adata)
    np.testing.assert_array_equal(parts.X.toarray(), whole.X.toarray())
