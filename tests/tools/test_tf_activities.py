"""Activities on whole AnnData and files: the parts in closed form are tests/tasks's."""

import anndata as ad
import numpy as np
import pytest
from scipy.special import expit

from scfm.data.matched_peaks import matched_peaks
from scfm.data.nucleotides import encode, gc_share
from scfm.data.region_examples import open_regions
from scfm.errors import ConfigError, CountsError, EmptyCellError, InputError
from scfm.model.dna_folder import save_binding
from scfm.tasks.tf_activity import deviations, open_peaks, top2_shares
from scfm.tasks.tf_calibration import BindingCalibration
from scfm.tasks.tfbinding import predict_logits
from scfm.tools import tf_activities as tool
from scfm.tools.tf_activities import ActivityConfig, ActivityData, tf_activity, tf_activity_file
from tests.toys_peaks import toy_binding, toy_peaks


def predicted(adata, model, group_key=None, group=None):
    examples = open_regions(adata, length=60, group_key=group_key)
    at = -1 if group is None else examples.groups.index(group)
    region = np.arange(examples.n_regions)
    return predict_logits(model, examples, region, np.full(len(region), at))


def test_of_dna_alone(rng):
    adata, model = toy_peaks(rng), toy_binding()
    tf_activity(adata, model, n_backgrounds=5, seed=3)
    totals = np.asarray((adata.X > 0).sum(0)).ravel().astype(float)
    gc = gc_share(encode(adata.var["sequence"].to_numpy(dtype=str), "toy"))
    background = matched_peaks(totals, gc, n=5, seed=3)
    probability = expit(predicted(adata, model)).astype(np.float64)
    wanted = deviations(open_peaks(adata.X), probability, background)
    np.testing.assert_allclose(adata.obsm["X_tf_activity"], wanted, rtol=1e-4, atol=1e-4)
    assert adata.uns["tf_names"] == ["AP1", "SP1"]
    kept = adata.uns["tf_activity"]
    assert (kept["method"], kept["k"], kept["threshold"], kept["genome"]) == (
        *("deviation", 1, 0),
        "toy",
    )


def test_each_group_by_its_own_predictions(rng):
    adata, model = toy_peaks(rng), toy_binding(n_tracks=1)
    found = tf_activity(adata, model, group_key="cell_type", method="top2", copy=True)
    assert "X_tf_activity" not in adata.obsm
    for name in ("B", "T"):
        rows = np.flatnonzero(adata.obs["cell_type"] == name)
        probability = expit(predicted(adata, model, "cell_type", name)).astype(np.float64)
        wanted = top2_shares(open_peaks(adata.X[rows]), probability)
        np.testing.assert_allclose(found.obsm["X_tf_activity"][rows], wanted, rtol=1e-6)
    assert found.uns["tf_activity"]["k"] == 12
    assert found.uns["tf_activity"]["group_key"] == "cell_type"


def test_the_file_is_the_same_whatever_the_chunk(rng, tmp_path, monkeypatch):
    adata, model = toy_peaks(rng), toy_binding(n_tracks=1)
    path, out = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
    adata.write_h5ad(path)
    save_binding(model, tmp_path / "model")
    tf_activity(adata, model, group_key="cell_type", tfs=["SP1"])
    monkeypatch.setattr(tool, "CELLS_AT_ONCE", 5)
    tf_activity_file(
        path, tmp_path / "model", out, data=ActivityData(group_key="cell_type"), tfs=["sp1"]
    )
    written = ad.read_h5ad(out)
    np.testing.assert_allclose(
        written.obsm["X_tf_activity"], adata.obsm["X_tf_activity"], rtol=1e-5, atol=1e-5
    )
    assert list(written.uns["tf_names"]) == ["SP1"]
    assert len(written.uns["tf_activity"]["model"]) == 64
    assert (written.X != adata.X).nnz == 0


def test_calibration_and_threshold_matter(rng):
    adata, model = toy_peaks(rng), toy_binding()
    plain = tf_activity(adata, model, copy=True)
    scaled = BindingCalibration(tasks=model.tasks, scale=(20.0, 20.0), offset=(5.0, 5.0))
    found = tf_activity(adata, model, calibration=scaled, threshold=1, copy=True)
    assert found.uns["tf_activity"]["calibrated"]
    assert not plain.uns["tf_activity"]["calibrated"]
    assert np.abs(found.obsm["X_tf_activity"] - plain.obsm["X_tf_activity"]).max() > 0.1


def test_empty_peaks_are_counted_and_change_nothing(rng):
    adata, model = toy_peaks(rng), toy_binding()
    is_empty = np.asarray(adata.X.sum(0)).ravel() == 0
    assert is_empty.sum() > 3
    without = adata[:, ~is_empty].copy()
    with_it = tf_activity(adata, model, method="top2", copy=True)
    assert with_it.uns["tf_activity"]["n_empty_peaks"] == is_empty.sum()
    tf_activity(without, model, method="top2")
    np.testing.assert_allclose(
        with_it.obsm["X_tf_activity"], without.obsm["X_tf_activity"], rtol=1e-6
    )


def test_one_cell_only(rng):
    adata, model = toy_peaks(rng)[:1].copy(), toy_binding()
    with pytest.raises(InputError, match=r"one cell only.*top2"):
        tf_activity(adata, model)
    tf_activity(adata, model, method="top2")
    np.testing.assert_allclose(adata.obsm["X_tf_activity"].sum(), 1, rtol=1e-6)


def test_binarised_counts_are_refused_where_depth_is_read(rng):
    adata = toy_peaks(rng)
    adata.X.data[:] = 1
    tf_activity(adata, toy_binding(), copy=True)  # DNA alone asks for no depth
    with pytest.raises(CountsError, match="binarised"):
        tf_activity(adata, toy_binding(n_tracks=1), group_key="cell_type")
    tf_activity(adata, toy_binding(n_tracks=1), group_key="cell_type", binarised=True)


def test_refused(rng):
    adata, model = toy_peaks(rng), toy_binding()
    with pytest.raises(ConfigError, match=r"'AP2'\. Did you mean AP1"):
        tf_activity(adata, model, tfs=["AP2"])
    with pytest.raises(ConfigError, match="method is 'sum'"):
        tf_activity(adata, model, method="sum")
    with pytest.raises(InputError, match="0 rows of accessibility"):
        tf_activity(adata, toy_binding(n_tracks=1))
    with pytest.raises(ConfigError, match="n_backgrounds"):
        ActivityConfig(n_backgrounds=1)
    counts = adata.X.tolil()
    counts[3] = 0
    adata.X = counts.tocsr()
    with pytest.raises(EmptyCellError):
        tf_activity(adata, model)
