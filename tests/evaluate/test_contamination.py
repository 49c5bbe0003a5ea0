"""Planted copies of judged cells in the pretraining data are counted and named."""

import json
import shutil

import anndata as ad
import numpy as np
import pytest

from scfm.data.fingerprint import sha256
from scfm.evaluate.contamination import find_contamination, pretraining_data


@pytest.fixture(scope="module")
def cells(demo_cells):
    return ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[:300].copy()


@pytest.fixture
def run_folder(cells, toy_model_folder, tmp_path):
    """A run that was pretrained on the first 200 cells, as its records say."""
    path = tmp_path / "pretraining.h5ad"
    cells[:200].copy().write_h5ad(path)
    folder = tmp_path / "run"
    shutil.copytree(toy_model_folder, folder / "model")
    record = folder / "model" / "provenance.json"
    made = json.loads(record.read_text())
    made["data"] = {"files": [[path.name, sha256(path)]], "stores": []}
    record.write_text(json.dumps(made))
    (folder / "data.json").write_text(json.dumps({"files": [[str(path), sha256(path)]]}))
    return folder


def test_copies_are_counted_and_named(run_folder, cells, tmp_path):
    path = tmp_path / "query.h5ad"
    cells[150:300, np.random.default_rng(0).permutation(cells.n_vars)].copy().write_h5ad(path)
    found = find_contamination(pretraining_data(run_folder), path, name="query")
    assert (found.n_cells, found.n_exact, found.is_same_file) == (150, 50, False)
    assert found.by_source == {"pretraining.h5ad": 50}
    assert set(found.cells) == set(cells.obs_names[150:200])
    assert "50 of 150 cells of query are exact copies" in str(found)
    assert cells.obs_names[150] in str(found)
    assert not found.is_clean


def test_other_cells_are_not_found(run_folder, cells):
    found = find_contamination(pretraining_data(run_folder / "model"), cells[200:].copy(), name="q")
    assert (found.n_exact, found.n_near) == (0, 0)
    assert found.is_clean
    assert str(found) == "None of 100 cells of q is among the pretraining cells."


def test_the_very_file_is_known_by_its_hash_though_it_was_moved(run_folder, cells, tmp_path):
    moved = tmp_path / "elsewhere.h5ad"
    shutil.move(tmp_path / "pretraining.h5ad", moved)
    found = find_contamination(pretraining_data(run_folder), moved, name="moved")
    assert found.is_same_file
    assert "pretrained on, with all its cells" in str(found)
    assert "pretraining.h5ad is not at hand" in str(found)


def test_what_cannot_be_known_is_said(toy_model_folder, cells):
    found = find_contamination(pretraining_data(toy_model_folder), cells, name="q")
    assert not found.is_clean
    assert "cannot be known" in str(found)
