"""scfm reference and scfm annotate by it, as a user types them: what is written and refused."""

import json
import shlex
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scfm
from scfm.model.base import save_model
from tests.cli.test_refusals import assert_refused, run
from tests.toys import toy_adata, toy_model


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A labelled set and a query, as files."""
    folder, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(3)
    labelled = toy_adata(rng, n_cells=120)
    labelled.obs["donor"] = [f"d{i // 2 % 3}" for i in range(120)]
    labelled.obs["same"] = "B cell"
    labelled.obs["score"] = np.linspace(0, 1, 120)
    labelled.write_h5ad(folder / "atlas.h5ad")
    toy_adata(rng, n_cells=30).write_h5ad(folder / "query.h5ad")
    return folder


@pytest.fixture(scope="module")
def built(cells, toy_model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("refs") / "ref"
    scfm.tl.build_reference(
        *(cells / "atlas.h5ad", toy_model_folder), label_key="cell_type", out=out
    )
    return out


def test_build_info_annotate(capsys, cells, toy_model_folder, tmp_path):
    model = ("--model", toy_model_folder)
    code, out, err = run(
        *(capsys, "reference", "build", cells / "atlas.h5ad", *model, "--label", "cell_type"),
        *("--donor", "donor", "--out", tmp_path / "ref", "--json"),
    )
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (found["n_cells"], found["classes"]) == (120, ["A", "B"])
    assert str(cells) not in (tmp_path / "ref" / "reference.json").read_text()  # names no machine
    code, out, err = run(capsys, "info", tmp_path / "ref")
    assert code == 0, err
    assert "120 cells" in out
    assert "from atlas.h5ad (human, counts in X), sha256" in out
    tables = []
    for name, asked in (
        ("folder", ("--reference", tmp_path / "ref")),
        (
            "cells",
            ("--reference", cells / "atlas.h5ad", "--label", "cell_type", "--donor", "donor"),
        ),
        ("light", ("--reference", tmp_path / "ref", "--vote", "prototypes")),
    ):
        to = ("--out", tmp_path / f"{name}.h5ad", "--json")
        code, out, err = run(capsys, "annotate", cells / "query.h5ad", *model, *asked, *to)
        assert code == 0, err
        assert "calibrated on the reference's own cells, by donors held out" in err
        summary = json.loads(out.splitlines()[-1])
        assert 0 < summary["seconds"]["search"] < summary["seconds"]["all"]
        tables.append(ad.read_h5ad(tmp_path / f"{name}.h5ad"))
    pd.testing.assert_frame_equal(tables[0].obs, tables[1].obs)
    for key in ("scfm_neighbours", "scfm_similarity"):
        np.testing.assert_array_equal(tables[0].obsm[key], tables[1].obsm[key])
    assert list(tables[0].uns["scfm"]["scfm"]["reference_cells"][:1]) == ["cell0"]
    assert "scfm_neighbours" not in tables[2].obsm


def test_by_markers_without_a_model(capsys, demo_cells, tmp_path):
    table = "B cell: [MS4A1, CD79A]\nplatelet: [PPBP, PF4, NOGENE1]\n"
    (tmp_path / "markers.yaml").write_text(table)
    some = ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::40]
    is_kept = some.var_names.isin(["MS4A1", "CD79A", "PPBP", "PF4"])
    is_kept[np.argsort(-np.asarray(some.X.sum(0)).ravel())[:500]] = True
    some[:, is_kept].write_h5ad(tmp_path / "some.h5ad")
    asked = ("--method", "markers", "--markers", tmp_path / "markers.yaml")
    code, out, err = run(
        *(capsys, "annotate", tmp_path / "some.h5ad", *asked),
        *("--out", tmp_path / "out.h5ad", "--json"),
    )
    assert code == 0, err
    assert "NOT calibrated" in err
    assert "not measured, of platelet: NOGENE1" in err
    assert json.loads(out.splitlines()[-1])["missing"] == {"platelet": ["NOGENE1"]}
    assert "scfm_cell_type" in ad.read_h5ad(tmp_path / "out.h5ad").obs


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("same", ["one label with at least 3 cells, 'B cell'", "--label"]),
        ("score", ["a measurement, not cell types"]),
        ("celltype", ["no obs column 'celltype'", "cell_type"]),
    ],
)
def test_labels_nothing_can_be_built_of(capsys, cells, toy_model_folder, tmp_path, label, words):
    result = run(
        *(capsys, "reference", "build", cells / "atlas.h5ad", "--model", toy_model_folder),
        *("--label", label, "--out", tmp_path / "ref"),
    )
    assert_refused(result, *words)
    assert list(tmp_path.iterdir()) == []


def test_another_models_reference(capsys, cells, built, tmp_path):
    """The command that the message ends in is understood, and mends it."""
    save_model(toy_model(seed=5), tmp_path / "other")
    folder = shutil.copytree(built, tmp_path / "ref")
    asked = ("--reference", folder, "--model", tmp_path / "other", "--out", tmp_path / "o.h5ad")
    result = run(capsys, "annotate", cells / "query.h5ad", *asked)
    assert_refused(result, "built with another model", "weights sha256")
    command = shlex.split(result[2].splitlines()[-1])
    assert command[:4] == ["scfm", "reference", "build", "atlas.h5ad"]
    command[3] = str(cells / "atlas.h5ad")
    code, _, err = run(capsys, *command[1:])
    assert code == 0, err
    code, _, err = run(capsys, "annotate", cells / "query.h5ad", *asked)
    assert code == 0, err


def test_damaged_and_foreign_folders(capsys, cells, built, toy_model_folder, tmp_path):
    folder = shutil.copytree(built, tmp_path / "ref")
    (folder / "genes.txt").write_text("CD3D\n")
    asked = ("--model", toy_model_folder, "--out", tmp_path / "o.h5ad")
    result = run(capsys, "annotate", cells / "query.h5ad", "--reference", folder, *asked)
    assert_refused(result, "genes.txt that is truncated or was altered", "scfm reference build")
    result = run(capsys, "info", folder)
    assert_refused(result, "genes.txt")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    result = run(
        *(capsys, "reference", "build", cells / "atlas.h5ad", "--model", toy_model_folder),
        *("--label", "cell_type", "--out", folder),
    )
    assert_refused(result, "exists already")
    assert (folder / "mine.txt").read_text() == "mine"


def test_disjoint_genes_and_other_species(capsys, cells, toy_model_folder, tmp_path):
    atlas, query = ad.read_h5ad(cells / "atlas.h5ad"), ad.read_h5ad(cells / "query.h5ad")
    query.X = sp.csr_matrix(query.X.toarray() + 1)
    atlas[:, :25].write_h5ad(tmp_path / "atlas.h5ad")
    query[:, 25:].write_h5ad(tmp_path / "query.h5ad")
    query.var_names = [name.capitalize() for name in query.var_names]
    query.write_h5ad(tmp_path / "mouse.h5ad")
    asked = ("--reference", tmp_path / "atlas.h5ad", "--label", "cell_type")
    asked += ("--model", toy_model_folder, "--out", tmp_path / "o.h5ad")
    result = run(capsys, "annotate", tmp_path / "query.h5ad", *asked)
    assert_refused(result, "share 0 genes", "Take a reference that measures")
    result = run(capsys, "annotate", tmp_path / "mouse.h5ad", *asked)
    assert_refused(result, "mouse", "--orthologs")
    result = run(
        *(capsys, "annotate", tmp_path / "mouse.h5ad", "--method", "markers"),
        *("--out", tmp_path / "o.h5ad"),
    )
    assert_refused(result, "measures markers of 0", "--markers TABLE.csv")
    assert not (tmp_path / "o.h5ad").exists()


def test_codes_are_said_to_be_codes(capsys, cells, toy_model_folder, tmp_path):
    atlas = ad.read_h5ad(cells / "atlas.h5ad")
    atlas.obs["cluster"] = np.arange(120) % 2
    atlas.write_h5ad(tmp_path / "atlas.h5ad")
    code, _, err = run(
        *(capsys, "reference", "build", tmp_path / "atlas.h5ad", "--model", toy_model_folder),
        *("--label", "cluster", "--out", tmp_path / "ref"),
    )
    assert code == 0, err
    assert "holds codes (0, 1 ...), not names" in err


def test_a_model_is_asked_for_where_one_is_needed(capsys, cells, built, tmp_path):
    result = run(
        *(capsys, "annotate", cells / "query.h5ad", "--reference", built),
        *("--out", tmp_path / "o.h5ad"),
    )
    assert_refused(result, "needs a model", "--model")
