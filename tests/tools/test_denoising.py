"""Denoising: the model's own predictions in a layer, in memory and in files, and counts of them."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

import scfm
from scfm.errors import ConfigError, CountsError, Interrupted, ModelError, ScfmWarning
from scfm.tasks.decoding import decode_cells
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.target_depth import parse_target_depth
from scfm.tools.denoising import DenoiseConfig, denoise_file
from scfm.tools.predicted_layer import sample_counts
from tests.toys import toy_adata, toy_model, toy_scfoundation

LAYER, COUNTS = "scfm_denoised", "scfm_denoised_counts"


@pytest.fixture
def adata(rng):
    """50 genes; two that no model knows."""
    adata = toy_adata(rng, n_cells=12)
    adata.var_names = [*adata.var_names[:20], "thing1", *adata.var_names[21:49], "thing2"]
    return adata


@pytest.fixture(params=["scfoundation", "scfm"])
def model(request):
    """Predictions lie on both sides of 0."""
    if request.param == "scfoundation":
        model = toy_scfoundation(60)
        last, bias = model.value_out, 0.8
    else:
        model = toy_model()
        last, bias = model.decoder.value_out, 1.2
    with torch.no_grad():
        last.bias.fill_(bias)
    return model


def denoised(adata, model, **options):
    return scfm.tl.denoise(adata, model, copy=True, **options)


def test_equals_the_decoder(adata, model):
    """Oracle: the decoder's stream, put into columns by name."""
    found = denoised(adata, model, target_depth="f3")
    member, _ = open_input(adata, model.vocab, InputConfig(), model.token_config)
    depth = parse_target_depth("f3")
    parts = list(decode_cells(model, member, "expression", target_depth=depth))
    whole = np.concatenate([part.values for part in parts])
    assert 0.05 < (whole < 0).mean() < 0.8, "both sides of the clipping are to be tested"
    known = [name for name in adata.var_names if not name.startswith("thing")]
    for name in known:
        column = np.maximum(whole[:, model.vocab.symbols.index(name)], 0)
        theirs = found.layers[LAYER][:, adata.var_names.get_loc(name)]
        np.testing.assert_allclose(theirs, column, rtol=1e-5, atol=1e-5)
    is_predicted = found.var["scfm_denoised_predicted"]
    assert list(is_predicted[is_predicted].index) == known
    assert np.isnan(found.layers[LAYER][:, ~is_predicted.to_numpy()]).all()
    assert found.layers[LAYER].dtype == np.float32
    assert (found.X != adata.X).nnz == 0
    assert found.uns["scfm"][LAYER]["target_depth"] == str(depth)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_cannot_matter(adata, model, batch_size):
    options = {"sample_counts": True, "target_depth": "t3.5"}
    expected = denoised(adata, model, **options)
    found = denoised(adata, model, batch_size=batch_size, **options)
    np.testing.assert_allclose(found.layers[LAYER], expected.layers[LAYER], rtol=1e-5, atol=1e-5)
    # a draw flips where the mean's rounding crosses its uniform number: next to never, by one
    differ = found.layers[COUNTS] - expected.layers[COUNTS]
    assert (np.abs(differ) <= 1).all()
    assert (differ != 0).mean() < 0.01


def test_gene_order_cannot_matter(adata, model, rng):
    order = rng.permutation(adata.n_vars)
    found = denoised(adata[:, order].copy(), model, sample_counts=True, target_depth="t3")
    expected = denoised(adata, model, sample_counts=True, target_depth="t3")
    for layer, atol in ((LAYER, 1e-5), (COUNTS, 1)):
        theirs = expected.layers[layer][:, order]
        np.testing.assert_allclose(found.layers[layer], theirs, rtol=1e-5, atol=atol)


def test_chosen_genes_alone_are_predicted(adata, model):
    names = [adata.var_names[30], model.vocab.ensembl_ids[4]]
    found = denoised(adata, model, genes=names, sample_counts=True, target_depth="t3")
    whole = denoised(adata, model, sample_counts=True, target_depth="t3")
    chosen = [4, 30]
    assert np.flatnonzero(found.var["scfm_denoised_predicted"]).tolist() == chosen
    for layer in (LAYER, COUNTS):
        theirs = whole.layers[layer][:, chosen]
        np.testing.assert_allclose(found.layers[layer][:, chosen], theirs, rtol=1e-5, atol=1e-5)


def test_depth_matters(adata, model):
    shallow, deep = (denoised(adata, model, target_depth=t).layers[LAYER] for t in ("f2", "f20"))
    assert np.nanmax(np.abs(shallow - deep)) > 1e-3


def test_of_repeated_columns_the_first_is_predicted(adata, model):
    extra = adata[:, [3]].copy()
    extra.var_names = [model.vocab.ensembl_ids[3]]
    twice = ad.concat([extra, adata], axis="var", merge="same")
    with pytest.warns(ScfmWarning, match="repeat a gene"):
        found = denoised(twice, model)
    assert found.var["scfm_denoised_predicted"].to_numpy()[[0, 4]].tolist() == [True, False]
    assert np.isnan(found.layers[LAYER][:, 4]).all()


def test_counts_in_raw_fill_the_columns_of_the_data(adata, model):
    expected = denoised(adata, model)
    adata.raw = adata.copy()
    part = adata[:, ::2].copy()
    part.X = part.X.log1p()
    found = denoised(part, model)
    np.testing.assert_allclose(
        found.layers[LAYER], expected.layers[LAYER][:, ::2], rtol=1e-5, atol=1e-5
    )


def test_survives_h5ad(adata, model, tmp_path):
    found = denoised(adata, model, sample_counts=True, target_depth="t3")
    found.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    for layer in (LAYER, COUNTS):
        np.testing.assert_array_equal(again.layers[layer], found.layers[layer])
    assert again.uns["scfm"][LAYER]["genes"]["matched"] == 48


def test_file_equals_in_memory(adata, model, tmp_path):
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.write_h5ad(tmp_path / "in.h5ad")
    config = DenoiseConfig(target_depth="t3", draw_counts=True, batch_size=5)
    seen = []
    denoise_file(
        *(tmp_path / "in.h5ad", model, tmp_path / "out.h5ad"),
        denoise_config=config,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    expected = denoised(adata, model, target_depth="t3", sample_counts=True, batch_size=5)
    for layer in (LAYER, COUNTS):
        np.testing.assert_array_equal(out.layers[layer], expected.layers[layer])
        assert out.layers[layer].dtype == expected.layers[layer].dtype
    assert list(out.var["scfm_denoised_predicted"]) == list(expected.var["scfm_denoised_predicted"])
    assert out.uns["scfm"][LAYER]["seed"] == 0
    np.testing.assert_array_equal(out.obsm["X_pca"], adata.obsm["X_pca"])
    assert seen[-1] == (12, 12)


def test_a_file_may_be_its_own_output(adata, model, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    for _ in range(2):  # the second time there is a layer to replace
        denoise_file(tmp_path / "a.h5ad", model, tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").layers[LAYER].shape == adata.shape


def test_stopped_in_the_middle_the_old_file_is_whole(adata, model, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()

    def stop(done, total):
        if done > 4:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        denoise_file(
            *(tmp_path / "a.h5ad", model, tmp_path / "a.h5ad"),
            denoise_config=DenoiseConfig(batch_size=2),
            on_progress=stop,
        )
    assert (tmp_path / "a.h5ad").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


def test_counts_are_poisson_of_the_stated_mean():
    """Moments and distribution against scipy, over 4,000 cells of one profile."""
    n, depth = 4000, 3.7
    predicted = np.tile(np.log1p([0.0, 0.5, 3.0, 40.0, 2500.0]), (n, 1))
    mean = np.array([0.0, 0.5, 3.0, 40.0, 2500.0]) / 1e4 * 10**depth
    counts = sample_counts(
        *(predicted, np.full(n, depth)), genes=np.arange(5), cell_index=np.arange(n), seed=3
    )
    assert (counts[:, 0] == 0).all()
    for gene in range(1, 5):
        assert abs(counts[:, gene].mean() - mean[gene]) < 5 * np.sqrt(mean[gene] / n)
        assert counts[:, gene].var() == pytest.approx(mean[gene], rel=0.15)
    observed = np.bincount(counts[:, 2], minlength=12)[:12] / n
    np.testing.assert_allclose(observed, stats.poisson.pmf(np.arange(12), mean[2]), atol=0.03)


def test_counts_hang_on_seed_cell_and_gene_alone():
    predicted = np.full((3, 4), np.log1p(50.0))
    options = {"genes": np.array([2, 5, 7, 9]), "cell_index": np.array([4, 5, 6]), "seed": 1}
    whole = sample_counts(predicted, np.full(3, 4.0), **options)
    options |= {"genes": np.array([5, 9]), "cell_index": np.array([6])}
    part = sample_counts(predicted[:1, :2], np.full(1, 4.0), **options)
    np.testing.assert_array_equal(part, whole[2:, [1, 3]])
    other = sample_counts(predicted[:1, :2], np.full(1, 4.0), **{**options, "seed": 2})
    assert (other != part).any()


def test_counts_beyond_reason_are_refused():
    with pytest.raises(ConfigError, match="Choose a lower"):
        sample_counts(
            *(np.full((1, 1), 9.2), np.full(1, 13.0)),
            genes=np.arange(1),
            cell_index=np.arange(1),
            seed=0,
        )


def test_unknown_genes_are_refused_with_the_nearest(adata, model):
    wrong = model.vocab.symbols[5] + "X"
    with pytest.raises(ConfigError, match=f"(?s){wrong!r} is no gene.*{model.vocab.symbols[5]}"):
        denoised(adata, model, genes=[wrong])
    with pytest.raises(ConfigError, match="twice"):
        denoised(adata, model, genes=[model.vocab.symbols[5], model.vocab.ensembl_ids[5]])


def test_wrong_settings_are_refused(adata, model):
    for options in (
        {"target_depth": "deep"},
        {"layer_added": "a/b"},
        {"batch_size": 0},
        {"genes": []},
    ):
        with pytest.raises(ConfigError, match=next(iter(options)).replace("genes", "gene")):
            denoised(adata, model, **options)
    adata.X = sp.csr_matrix(adata.X.log1p())
    with pytest.raises(CountsError, match="log"):
        denoised(adata, model)


def test_a_layer_beyond_memory_is_refused(adata, model, monkeypatch):
    monkeypatch.setattr("scfm.tools.memory.MEMORY_LIMIT", 1000)
    with pytest.raises(ConfigError, match="scfm denoise IN --out OUT"):
        denoised(adata, model)


def test_no_depth_is_the_default_depth(adata, model):
    found = denoised(adata, model, target_depth=None)
    np.testing.assert_array_equal(found.layers[LAYER], denoised(adata, model).layers[LAYER])
    assert found.uns["scfm"][LAYER]["target_depth"] == "f5"
    assert DenoiseConfig(target_depth="source").depth.kind == "source"


def test_depth_below_the_cells_own_is_said(adata, model):
    with pytest.warns(ScfmWarning):
        denoised(adata, model, target_depth="t1")


def test_a_model_without_decoder_is_refused(adata, model, monkeypatch):
    monkeypatch.setattr("scfm.tasks.decoding.ScfoundationModel", int)
    monkeypatch.setattr("scfm.tasks.decoding.ScfmModel", int)
    with pytest.raises(ModelError, match="no decoder"):
        denoised(adata, model)
