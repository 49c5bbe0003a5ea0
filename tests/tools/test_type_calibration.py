"""Calibration of type words: fitted, kept in the model's folder, gone by, refused for others."""

import json
import shutil

import anndata as ad
import numpy as np
import pytest

import scfm
from scfm.errors import ConfigError, LabelError, ModelError, ScfmWarning
from scfm.model.base import save_model
from scfm.tasks.calibration import Calibration
from tests.cli.test_refusals import assert_refused, run
from tests.toys import toy_model
from tests.toys_scmulan import scmulan_adata, toy_scmulan


@pytest.fixture(scope="module")
def labelled():
    """Cells of which the toy model says the label of three in four."""
    adata = scmulan_adata(np.random.default_rng(5), n_cells=200)
    found = scfm.tl.annotate(adata, toy_scmulan(), min_confidence=0.0, copy=True)
    said = found.obs["scfm_cell_type"].astype(str).to_numpy()
    wrong = np.where(said == "A", "B", "A")
    is_right = np.random.default_rng(6).random(200) < found.obs["scfm_confidence"].to_numpy() ** 0.5
    adata.obs["truth"] = np.where(is_right & (said != "unknown"), said, wrong)
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "scmulan"
    save_model(toy_scmulan(), path)
    return path


def test_named_cells_are_right_as_often_as_asked(labelled):
    model = toy_scmulan()
    found = scfm.tl.calibrate(labelled, model, label_key="truth", precision=0.8)
    scfm.tl.annotate(labelled, model)
    named = labelled.obs["scfm_cell_type"] != "unknown"
    right = (labelled.obs["scfm_cell_type"].astype(str) == labelled.obs["truth"])[named]
    assert right.mean() == pytest.approx(found.facts["precision"])
    assert right.mean() >= 0.8
    n_typed = 200 - found.facts["n_cells_given_no_type"]
    assert named.sum() == pytest.approx(found.facts["coverage"] * n_typed)
    assert labelled.uns["scfm"]["scfm"]["is_calibrated"]
    assert labelled.uns["scfm"]["scfm"]["threshold"] == found.threshold
    assert "get a name" in str(found)


def test_kept_in_the_folder_and_loaded_with_the_model(labelled, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    found = scfm.tl.calibrate(labelled, copy, label_key="truth", precision=0.7)
    assert found.weights_sha256 == scfm.load(copy).provenance["weights_sha256"]
    assert Calibration.of(scfm.load(copy)) == found
    assert Calibration.of(scfm.load(folder)) == Calibration()


def test_a_calibration_of_other_weights_is_refused(labelled, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    scfm.tl.calibrate(labelled, copy, label_key="truth", precision=0.7)
    path = copy / "calibration.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "weights_sha256": "another"}))
    with pytest.raises(ModelError, match=r"fitted for other weights .*scfm calibrate"):
        scfm.load(copy)
    for broken in ("{", "[]"):
        path.write_text(broken)
        with pytest.raises(ModelError, match="calibration"):
            scfm.load(copy)


def test_command(capsys, labelled, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    labelled.write_h5ad(tmp_path / "cells.h5ad")
    code, out, err = run(
        capsys,
        *("calibrate", tmp_path / "cells.h5ad", "--model", copy, "--label", "truth"),
        *("--precision", 0.7, "--json"),
    )
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert "expected calibration error" in err
    assert found["threshold"] == Calibration.of(scfm.load(copy)).threshold
    code, out, err = run(
        capsys,
        *("annotate", tmp_path / "cells.h5ad", "--model", copy, "--out", tmp_path / "out.h5ad"),
        *("--smooth", "--json"),
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["is_calibrated"]
    assert "scfm_coarse_type" in ad.read_h5ad(tmp_path / "out.h5ad").obs


def test_commands_say_what_is_wrong(capsys, labelled, folder, toy_model_folder, tmp_path):
    labelled.write_h5ad(tmp_path / "cells.h5ad")
    cells, out = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    asked = ("annotate", cells, "--out", out)
    assert_refused(run(capsys, *asked, "--model", toy_model_folder), "--reference", "no words")
    assert_refused(run(capsys, *asked, "--model", folder, "--label", "truth"), "no reference")
    asked = ("calibrate", cells, "--model", folder)
    assert_refused(run(capsys, *asked, "--label", "celltype"), "no obs column 'celltype'", "truth")
    assert_refused(run(capsys, *asked, "--label", "organ"), "Blood", "is a word of cell_type")
    assert_refused(run(capsys, *asked, "--label", "truth", "--precision", "1"), "No threshold")
    assert not out.exists()
    assert not (folder / "calibration.json").exists()


def test_labels_by_ontology_id_and_letter_case(labelled):
    names = {"A": "CL:0000236", "B": "b", "Neuron": "NEURON"}
    labelled.obs["spelled"] = labelled.obs["truth"].map(names)
    plain = scfm.tl.calibrate(labelled, toy_scmulan(), label_key="truth", precision=0.7)
    found = scfm.tl.calibrate(labelled, toy_scmulan(), label_key="spelled", precision=0.7)
    assert (found.temperature, found.threshold) == (plain.temperature, plain.threshold)


def test_types_the_model_lacks_count_as_wrong_and_are_said(labelled):
    adata = labelled.copy()
    adata.obs["truth"] = adata.obs["truth"].astype(object)
    adata.obs["truth"] = adata.obs["truth"].where(adata.obs["truth"] != "B", "Neurons")
    adata.obs.loc[adata.obs_names[:10], "truth"] = None
    with pytest.warns(ScfmWarning, match=r"no word of the model: 'Neurons' \(nearest: Neuron\)"):
        found = scfm.tl.calibrate(adata, toy_scmulan(), label_key="truth", precision=0.3)
    n_labelled = found.facts["n_cells"] + found.facts["n_cells_given_no_type"]
    assert n_labelled == 190
    assert found.facts["n_cells_of_no_word"] == (adata.obs["truth"] == "Neurons").sum()


def test_refusals(labelled):
    with pytest.raises(ConfigError, match="knows no words for cell types"):
        scfm.tl.calibrate(labelled, toy_model(), label_key="truth")
    with pytest.raises(ConfigError, match=r"precision is 1\.2"):
        scfm.tl.calibrate(labelled, toy_scmulan(), label_key="truth", precision=1.2)
    adata = labelled.copy()
    adata.obs["truth"] = None
    with pytest.raises(LabelError, match="labels no cell"):
        scfm.tl.calibrate(adata, toy_scmulan(), label_key="truth")
