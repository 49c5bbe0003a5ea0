"""Gene embeddings: the decoder's states by name, in memory, in zarr, averaged."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import zarr

import scfm
from scfm.errors import ConfigError, LabelError, ModelError, OutputError, ScfmWarning
from scfm.tokens.inputs import InputConfig, open_input
from tests.toys import toy_adata, toy_model, toy_scfoundation

KEY = "X_scfm_genes"


@pytest.fixture
def adata(rng):
    return toy_adata(rng, n_cells=11)


@pytest.fixture(scope="module")
def model():
    return toy_scfoundation(60)


def gene_states(adata, model, **options):
    scfm.tl.gene_embedding(adata, model, **{"target_depth": "t4", **options})
    return adata.obsm[KEY]


def test_equals_the_model_cell_by_cell(adata, model):
    """Oracle: the model called on one cell at a time, rows picked by hand."""
    names = [model.vocab.symbols[41], model.vocab.ensembl_ids[3], model.vocab.symbols[20]]
    found = gene_states(adata, model, genes=names)
    assert found.shape == (11, 3, 16)
    assert found.dtype == np.float32
    member, _ = open_input(adata, model.vocab, InputConfig(), model.token_config)
    for i in range(adata.n_obs):
        rows = member.source.rows(np.array([i]))
        cells = member.tokenizer.shown(rows, target_depth=4.0).map(torch.from_numpy)
        with torch.inference_mode():
            whole = model.decode(cells, model(cells))[0].numpy()
        np.testing.assert_allclose(found[i], whole[[41, 3, 20]], rtol=1e-5, atol=1e-5)
    settings = adata.uns["scfm"][KEY]
    assert list(settings["gene_symbols"]) == [model.vocab.symbols[i] for i in (41, 3, 20)]
    assert settings["target_depth"] == "t4"


def test_all_genes_in_the_vocabularys_order(adata, model):
    found = gene_states(adata, model)
    assert found.shape == (11, 60, 16)
    assert list(adata.uns["scfm"][KEY]["gene_symbols"]) == list(model.vocab.symbols)
    some = gene_states(adata, model, genes=[model.vocab.symbols[7]])
    np.testing.assert_allclose(some[:, 0], found[:, 7], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_cannot_matter(adata, model, batch_size):
    expected = gene_states(adata.copy(), model)
    found = gene_states(adata, model, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gene_order_cannot_matter(adata, model, rng):
    permuted = adata[:, rng.permutation(adata.n_vars)].copy()
    found, expected = gene_states(permuted, model), gene_states(adata, model)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_survives_h5ad_and_cutting(adata, model, tmp_path):
    expected = gene_states(adata, model)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm[KEY], expected)
    np.testing.assert_array_equal(again[3:5].obsm[KEY], expected[3:5])
    assert list(again.uns["scfm"][KEY]["gene_symbols"]) == list(model.vocab.symbols)


def test_zarr_equals_in_memory(adata, model, tmp_path):
    expected = gene_states(adata.copy(), model)
    for _ in range(2):  # the second time an earlier result is replaced
        scfm.tl.gene_embedding(adata, model, target_depth="t4", out=tmp_path / "genes.zarr")
    assert KEY not in adata.obsm
    found = zarr.open_group(tmp_path / "genes.zarr", mode="r")["embedding"]
    np.testing.assert_array_equal(found[:], expected)
    kept = json.loads((tmp_path / "genes.zarr" / "scfm.json").read_text())
    assert kept["cells"] == list(adata.obs_names)
    assert kept["gene_symbols"] == list(model.vocab.symbols)
    assert adata.uns["scfm"][KEY]["out"] == str(tmp_path / "genes.zarr")


def test_a_zarr_chunk_of_several_cells_is_filled(adata, model, tmp_path):
    """Chunks (of all cells, here) and forward passes (of two) need not agree."""
    options = {"target_depth": "t4", "out": tmp_path / "g", "batch_size": 2}
    scfm.tl.gene_embedding(adata, model, **options)
    found = zarr.open_group(tmp_path / "g", mode="r")["embedding"]
    assert found.chunks[0] == adata.n_obs
    np.testing.assert_allclose(found[:], gene_states(adata, model), rtol=1e-5, atol=1e-5)


def test_stopped_in_the_middle_there_is_no_folder(adata, model, tmp_path, monkeypatch):
    calls, decode = [], model.decode

    def stop(*args):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(model, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        scfm.tl.gene_embedding(adata, model, out=tmp_path / "genes.zarr", batch_size=2)
    assert list(tmp_path.iterdir()) == []
    assert "scfm" not in adata.uns


@pytest.mark.parametrize("place", ["/proc/x/g.zarr", "/dev/full/g.zarr"])
def test_a_place_where_no_folder_can_be(adata, model, monkeypatch, place):
    monkeypatch.setattr(model, "decode", lambda *_: pytest.fail("work was done"))
    with pytest.raises(OutputError, match=rf"Cannot write {place}: .*Choose another --out"):
        scfm.tl.gene_embedding(adata, model, out=place)
    assert "scfm" not in adata.uns


def test_other_folders_are_left_alone(adata, model, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an earlier result"):
        scfm.tl.gene_embedding(adata, model, out=tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "mine"


def test_means_are_means(adata, model, tmp_path):
    expected = gene_states(adata.copy(), model).astype(np.float64)
    adata.obs["kind"] = pd.Categorical(["x", "y", None] * 3 + ["x", "x"])
    options = {"target_depth": "t4", "batch_size": 3}
    scfm.tl.gene_embedding(adata, model, average_by="kind", **options)
    found = adata.uns[KEY]
    assert list(found["groups"]) == ["x", "y"]
    assert found["n_cells"].tolist() == [5, 3]
    for group, name in enumerate(["x", "y"]):
        mean = expected[(adata.obs["kind"] == name).to_numpy()].mean(0)
        np.testing.assert_allclose(found["embedding"][group], mean, rtol=1e-5, atol=1e-5)
    assert KEY not in adata.obsm
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad").uns[KEY]
    np.testing.assert_array_equal(again["embedding"], found["embedding"])
    scfm.tl.gene_embedding(adata, model, average_by="all", **options)
    np.testing.assert_allclose(
        adata.uns[KEY]["embedding"][0], expected.mean(0), rtol=1e-5, atol=1e-5
    )


def test_wrong_groups_are_refused(adata, model):
    with pytest.raises(LabelError, match=r"no column 'kind'.*cell_type"):
        scfm.tl.gene_embedding(adata, model, average_by="kind")
    adata.obs["none"] = np.nan
    with pytest.raises(LabelError, match="no cell has a value"):
        scfm.tl.gene_embedding(adata, model, average_by="none")
    with pytest.raises(ConfigError, match="Leave out one"):
        scfm.tl.gene_embedding(adata, model, average_by="all", out="x.zarr")


def test_an_array_beyond_memory_is_refused(adata, model, monkeypatch):
    monkeypatch.setattr("scfm.tools.memory.MEMORY_LIMIT", 1000)
    with pytest.raises(ConfigError, match=r"11 x 60 x 16 numbers.*out='genes.zarr'"):
        scfm.tl.gene_embedding(adata, model)


def test_unknown_genes_are_refused_with_the_nearest(adata, model):
    symbol = model.vocab.symbols[5]
    with pytest.raises(ConfigError, match=f"(?s)'{symbol}X' is no gene.*{symbol}"):
        scfm.tl.gene_embedding(adata, model, genes=[symbol, f"{symbol}X"])
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        scfm.tl.gene_embedding(adata, model, genes=["ZZZ3"])
    with pytest.raises(ConfigError, match="wanted a list"):
        scfm.tl.gene_embedding(adata, model, genes=symbol)


def test_genes_that_are_not_measured_are_said(adata, model):
    with pytest.warns(ScfmWarning, match="1 of the 2 genes asked for are not measured"):
        scfm.tl.gene_embedding(
            adata, model, target_depth="t4", genes=[model.vocab.symbols[i] for i in (5, 55)]
        )


def test_a_query_decoder_has_no_gene_embeddings(adata):
    with pytest.raises(ModelError, match="scfoundation"):
        scfm.tl.gene_embedding(adata, toy_model())
