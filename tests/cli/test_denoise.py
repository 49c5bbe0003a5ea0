"""scfm denoise, annotate and evaluate denoise with a scFoundation, as a user types them."""

import json

import anndata as ad
import numpy as np
import pytest

from scfm.model.base import save_model
from tests.cli.test_refusals import run
from tests.toys import toy_adata, toy_scfoundation


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "scfoundation"
    save_model(toy_scfoundation(60), folder)
    return folder


@pytest.fixture
def cells(rng, tmp_path):
    path = tmp_path / "cells.h5ad"
    toy_adata(rng).write_h5ad(path)
    return path


def test_denoise_writes_the_layer(capsys, cells, model, tmp_path):
    out = tmp_path / "out.h5ad"
    code, stdout, err = run(
        *(capsys, "denoise", cells, "--model", model, "--out", out, "--target-depth", "t3"),
        *("--sample-counts", "--layer-added", "deep", "--json"),
    )
    assert code == 0, err
    said = json.loads(stdout.splitlines()[-1])
    assert (said["layer"], said["counts_layer"]) == ("deep", "deep_counts")
    assert 'layers["deep"], layers["deep_counts"].' in err
    found = ad.read_h5ad(out)
    assert np.isfinite(found.layers["deep"]).all()
    assert found.layers["deep_counts"].dtype == np.int32
    assert found.var["deep_predicted"].all()


def test_denoise_refuses_what_it_cannot(capsys, cells, model, tmp_path):
    out = tmp_path / "out.h5ad"
    for extra, said in (
        (["--target-depth", "deep"], "target_depth"),
        (["--gene", "NOGENE"], "NOGENE"),
        (["--layer-added", "a/b"], "layer_added is 'a/b'"),
    ):
        code, _, err = run(capsys, "denoise", cells, "--model", model, "--out", out, *extra)
        assert code == 2
        assert said in err
        assert not out.exists()


def test_annotate_takes_the_family(capsys, cells, model, tmp_path):
    out = tmp_path / "out.h5ad"
    code, _, err = run(
        *(capsys, "annotate", cells, "--reference", cells, "--label", "cell_type"),
        *("--model", model, "--out", out, "--neighbours", "3"),
    )
    assert code == 0, err
    found = ad.read_h5ad(out)
    assert found.obsm["X_scfm"].shape == (40, 4 * 32)
    is_known = (found.obs["scfm_cell_type"] != "unknown").to_numpy()
    right = found.obs["scfm_cell_type"].astype(str) == found.obs["cell_type"].astype(str)
    assert is_known.mean() > 0.8
    assert right[is_known].mean() > 0.8


def test_evaluate_says_who_wins_first(capsys, cells, model, tmp_path):
    out = tmp_path / "report"
    code, stdout, err = run(
        *(capsys, "evaluate", "denoise", cells, "--model", model, "--out", out),
        *("--label", "cell_type", "--cells", "12", "--share", "0.2", "--json"),
    )
    assert code == 0, err
    first, last = stdout.splitlines()[0], json.loads(stdout.splitlines()[-1])
    assert first.startswith(last["verdict"])
    assert json.loads((out / "metrics.json").read_text())["verdict"] == last["verdict"]
    assert (out / "denoising.png").exists()


def test_evaluate_refuses_shares_that_are_none(capsys, cells, model, tmp_path):
    code, _, err = run(
        *(capsys, "evaluate", "denoise", cells, "--model", model, "--out", tmp_path / "o"),
        *("--share", "20"),
    )
    assert code == 2
    assert "shares are in (0, 1)" in err
