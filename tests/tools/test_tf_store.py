"""Predictions in a zarr folder, and what is read back of them."""

import numpy as np
import pytest
from scipy.special import expit

from scfm.data.region_examples import open_regions
from scfm.errors import ConfigError, InputError, MissingFileError, OutputError, UnreadableFileError
from scfm.tasks.tf_calibration import BindingCalibration
from scfm.tasks.tfbinding import predict_logits
from scfm.tools import tf_prediction
from scfm.tools.tf_prediction import predict_binding
from scfm.tools.tf_store import BindingStore
from tests.toys_peaks import toy_binding, toy_peaks


@pytest.fixture
def adata(rng):
    return toy_peaks(rng)


def test_logits_of_every_group_region_and_tf(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(tf_prediction, "REGIONS_AT_ONCE", 100)
    model = toy_binding(n_tracks=1)
    examples = open_regions(adata, length=60, group_key="cell_type")
    calls = []
    predict_binding(
        examples, model, tmp_path / "p", on_progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (480, 480)
    store = BindingStore.open(tmp_path / "p")
    assert (store.groups, store.tfs) == (("B", "T"), ("AP1", "SP1"))
    assert list(store.regions.index) == list(adata.var_names)
    region = np.arange(240)
    for at, group in enumerate(store.groups):
        wanted = predict_logits(model, examples, region, np.full(240, at))
        np.testing.assert_allclose(store.logits(group), wanted, rtol=1e-3, atol=1e-3)


def test_one_tf_as_anndata_and_all_into_varm(adata, tmp_path):
    model = toy_binding(n_tracks=1)
    examples = open_regions(adata, length=60, group_key="cell_type")
    calibration = BindingCalibration(tasks=model.tasks, scale=(2.0, 3.0), offset=(1.0, -1.0))
    predict_binding(
        examples, model, tmp_path / "p", groups=["T"], tfs=["SP1"], calibration=calibration
    )
    store = BindingStore.open(tmp_path / "p")
    view = store.to_anndata("sp1")
    assert list(view.obs_names) == ["T"]
    np.testing.assert_array_equal(view.X[0], store.logits("T")[:, 0])
    np.testing.assert_allclose(view.layers["probability"], expit(3 * view.X - 1), rtol=1e-5)
    store.probabilities_into(adata)
    np.testing.assert_allclose(
        adata.varm["tf_prob_T"][:, 0], view.layers["probability"][0], rtol=1e-5
    )
    assert adata.uns["tf_names"] == ["SP1"]
    with pytest.raises(ConfigError, match="10 peaks"):
        store.probabilities_into(adata[:, :10].copy())


def test_dna_alone_has_one_group(adata, tmp_path):
    model = toy_binding(tasks=("AP1:B", "AP1:T", "SP1:B"))
    predict_binding(open_regions(adata, length=60), model, tmp_path / "p")
    store = BindingStore.open(tmp_path / "p")
    assert store.groups == ("all",)
    with pytest.raises(ConfigError, match="several cell types: AP1:B, AP1:T"):
        store.to_anndata("AP1")
    assert store.to_anndata("SP1").uns["tf"] == "SP1:B"


def test_refused(adata, tmp_path):
    examples = open_regions(adata, length=60, group_key="cell_type")
    model = toy_binding(n_tracks=1)
    with pytest.raises(ConfigError, match="no group 'K'"):
        predict_binding(examples, model, tmp_path / "p", groups=["K"])
    with pytest.raises(ConfigError, match="the data has none"):
        predict_binding(open_regions(adata, length=60), toy_binding(), tmp_path / "p", groups=["T"])
    with pytest.raises(ConfigError, match=r"'APP1'\. Did you mean AP1"):
        predict_binding(examples, model, tmp_path / "p", tfs=["APP1"])
    with pytest.raises(InputError, match="windows have 40 bases, the model reads 60"):
        predict_binding(open_regions(adata, length=40), toy_binding(), tmp_path / "p")
    with pytest.raises(MissingFileError):
        BindingStore.open(tmp_path / "p")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an earlier result"):
        predict_binding(examples, model, tmp_path / "other")
    with pytest.raises(UnreadableFileError, match="no store"):
        BindingStore.open(tmp_path / "other")
