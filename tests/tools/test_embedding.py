"""Embedding: the same numbers however the cells come, memory held flat, files left whole."""

import contextlib

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.errors import ConfigError, CountsError, GeneCoverageError, ScfmWarning
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tools.embedding import embed_file
from tests.toys import toy_adata, toy_model


@pytest.fixture
def adata(rng):
    return toy_adata(rng)


@pytest.fixture
def model(toy_model_folder):
    return scfm.load(toy_model_folder)


def embedded(adata, model, **options):
    scfm.tl.embed(adata, model, **options)
    return adata.obsm["X_scfm"]


def test_equals_the_model_itself(adata, model):
    """Oracle: one forward pass over all cells, by hand."""
    member, _ = open_input(adata, model.vocab, InputConfig())
    cells = member.tokenizer.shown(member.source.rows(np.arange(adata.n_obs)))
    with torch.inference_mode():
        expected = model(cells.map(torch.from_numpy)).cell.numpy()
    np.testing.assert_allclose(embedded(adata, model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_cannot_matter(adata, model, batch_size):
    whole = embedded(adata.copy(), model)
    found = embedded(adata, model, batch_size=batch_size)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


def test_gene_order_cannot_matter(adata, model, rng):
    permuted = adata[:, rng.permutation(adata.n_vars)].copy()
    np.testing.assert_allclose(
        embedded(permuted, model), embedded(adata, model), rtol=1e-5, atol=1e-5
    )


def test_a_cell_does_not_depend_on_the_others(adata, model, rng):
    order = rng.permutation(adata.n_obs)[:13]
    part = embedded(adata[order].copy(), model)
    np.testing.assert_allclose(part, embedded(adata, model)[order], rtol=1e-5, atol=1e-5)


def test_backed_equals_in_memory(adata, model, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    expected = embedded(adata, model)
    np.testing.assert_allclose(embedded(backed, model), expected, rtol=1e-5, atol=1e-5)
    backed.file.close()


def test_counts_are_found_in_a_layer(adata, model):
    expected = embedded(adata.copy(), model)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.multiply(0.37).tocsr()
    np.testing.assert_allclose(embedded(adata, model), expected, rtol=1e-6, atol=1e-6)
    assert adata.uns["scfm"]["X_scfm"]["counts_from"] == "layers['counts']"


def test_log_values_are_refused(adata, model):
    adata.X = adata.X.log1p()
    with pytest.raises(CountsError, match="log"):
        scfm.tl.embed(adata, model)
    assert "X_scfm" not in adata.obsm


def test_foreign_genes_are_refused(adata, model):
    adata.var_names = [f"thing{i}" for i in range(adata.n_vars)]
    with pytest.raises(GeneCoverageError):
        scfm.tl.embed(adata, model)


def test_copy_leaves_the_original(adata, model):
    found = scfm.tl.embed(adata, model, copy=True)
    assert "X_scfm" in found.obsm
    assert "X_scfm" not in adata.obsm


def test_target_depth_is_asked_of_the_model(adata, model):
    own, asked = embedded(adata.copy(), model), embedded(adata, model, target_depth=4.0)
    assert np.abs(own - asked).max() > 1e-3
    assert adata.uns["scfm"]["X_scfm"]["target_depth"] == "t4"


def test_more_genes_than_trained_on_is_said(adata):
    model = toy_model()
    model.config.max_genes = 20
    with pytest.warns(ScfmWarning, match="express more than the 20 genes"):
        scfm.tl.embed(adata, model)


def test_batch_size_zero_is_refused(adata, model):
    with pytest.raises(ConfigError, match="batch_size"):
        scfm.tl.embed(adata, model, batch_size=0)


@pytest.mark.filterwarnings("ignore:Writing zarr v2")  # anndata's default, either is read
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_file_gains_the_embedding_and_keeps_all_else(adata, model, tmp_path, kind):
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.uns["note"] = "kept"
    source = tmp_path / f"in.{kind}"
    adata.write_h5ad(source) if kind == "h5ad" else adata.write_zarr(source)
    said = pytest.warns(ScfmWarning, match="nothing else it may hold")
    with said if kind == "zarr" else contextlib.nullcontext():
        embed_file(source, model, tmp_path / "out.h5ad", batch_size=7)
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    expected = embedded(adata.copy(), model)
    np.testing.assert_allclose(out.obsm["X_scfm"], expected, rtol=1e-5, atol=1e-5)
    assert out.uns["scfm"]["X_scfm"]["weights_sha256"] == model.provenance["weights_sha256"]
    assert (out.X != adata.X).nnz == 0
    assert list(out.obs["cell_type"]) == list(adata.obs["cell_type"])
    if kind == "h5ad":
        assert out.uns["note"] == "kept"
        np.testing.assert_array_equal(out.obsm["X_pca"], adata.obsm["X_pca"])


def test_file_may_be_its_own_output(adata, model, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    for _ in range(2):  # the second time there is an embedding to replace
        embed_file(tmp_path / "a.h5ad", model, tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").obsm["X_scfm"].shape == (adata.n_obs, 32)


def test_settings_survive_h5ad(adata, model, tmp_path):
    scfm.tl.embed(adata, model)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad").uns["scfm"]["X_scfm"]
    assert again["pooling"] == "cell"
    assert again["genes"]["matched"] == adata.uns["scfm"]["X_scfm"]["genes"]["matched"] == 50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(adata, toy_model_folder):
    on_cpu = embedded(adata.copy(), scfm.load(toy_model_folder, device="cpu"))
    on_gpu = embedded(adata, scfm.load(toy_model_folder, device="cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-4, atol=1e-4)


def test_cells_with_many_genes_are_passed_in_smaller_batches(adata, model, monkeypatch):
    """The bound on tokens: every cell once, in order, also where one cell alone exceeds it."""
    expected = embedded(adata.copy(), model)
    for most in (1, 60, 1000):
        monkeypatch.setattr("scfm.tasks.embedding.MOST_TOKENS", {True: most, False: most})
        np.testing.assert_allclose(embedded(adata.copy(), model), expected, rtol=1e-5, atol=1e-5)
