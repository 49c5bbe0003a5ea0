"""Saved references: the same answers as the cells they were made of, and what is refused."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scfm
from scfm.errors import (
    ConfigError,
    DamagedReferenceError,
    GeneCoverageError,
    LabelError,
    MissingFileError,
    ModelError,
    NewerFormatError,
    OutputError,
    ScfmWarning,
)
from scfm.model.base import save_model
from scfm.tasks.neighbours import NeighbourClassifier
from scfm.tasks.reference_folder import load_reference
from scfm.tools.annotation import annotate_file
from scfm.tools.info import describe, in_words
from scfm.tools.reference_calibration import calibrate_votes
from tests.toys import toy_adata, toy_model

COLUMNS = ("scfm_cell_type", "scfm_confidence", "scfm_runner_up")


@pytest.fixture(scope="module")
def model(toy_model_folder):
    return scfm.load(toy_model_folder)


@pytest.fixture(scope="module")
def labelled():
    adata = toy_adata(np.random.default_rng(7), n_cells=240)
    adata.obs["donor"] = [f"d{i // 2 % 4}" for i in range(240)]
    return adata


@pytest.fixture(scope="module")
def folder(model, labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("references") / "ref"
    scfm.tl.build_reference(labelled, model, label_key="cell_type", donor_key="donor", out=out)
    return out


@pytest.fixture
def query(rng):
    return toy_adata(rng, n_cells=50)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "ref")


def assert_same_labels(one, other):
    for column in COLUMNS:
        pd.testing.assert_series_equal(one.obs[column], other.obs[column])
    for key in ("X_scfm", "scfm_neighbours", "scfm_similarity"):
        np.testing.assert_array_equal(one.obsm[key], other.obsm[key])


def test_a_saved_reference_answers_as_its_cells_do(model, labelled, folder, query):
    """Bit for bit: nothing is rounded on the way to the disk, nothing is fitted again."""
    by_cells = scfm.tl.annotate(
        query, model, reference=labelled, label_key="cell_type", donor_key="donor", copy=True
    )
    scfm.tl.annotate(query, model, reference=folder)
    assert_same_labels(query, by_cells)
    again = scfm.tl.annotate(query, model, reference=load_reference(folder), copy=True)
    assert_same_labels(query, again)
    assert query.uns["scfm"]["scfm"]["reference"] == str(folder)


def test_it_is_safe_whole_and_told_of(folder, labelled, model):
    assert sorted(p.name for p in folder.iterdir()) == [
        *("cells.parquet", "cells.safetensors", "genes.txt", "reference.json")
    ]
    cells = pd.read_parquet(folder / "cells.parquet")
    assert set(cells["cell"]) == set(labelled.obs_names)
    assert (labelled.obs_names[cells["row"]] == cells["cell"]).all()
    assert (labelled.obs["donor"].to_numpy()[cells["row"]] == cells["donor"]).all()
    found = describe(folder)
    assert (found["kind"], found["n_cells"], found["classes"]) == ("reference", 240, ["A", "B"])
    assert found["provenance"]["weights_sha256"] == model.provenance["weights_sha256"]
    assert found["provenance"]["species"] == "human"
    said = in_words(found)
    assert "240 cells x 32 dimensions, 2 labels" in said
    assert "by donors held out" in said


def test_terms_of_the_ontology_are_kept(model, labelled):
    named = labelled.copy()
    named.obs["cell_type"] = named.obs["cell_type"].map({"A": "B cell", "B": "mine"})
    mapping = {"mine": "CD4-positive, alpha-beta T cell"}
    made = scfm.tl.build_reference(named, model, label_key="cell_type", mapping=mapping)
    assert made.terms == {"B cell": "CL:0000236", "mine": "CL:0000624"}
    query = labelled[:30].copy()
    scfm.tl.annotate(query, model, reference=made, ontology=True, ontology_threshold=0.9)
    # a cell that is one or the other is what both are: a lymphocyte
    sure, confidence = query.obs["scfm_confidence"] >= 0.9, query.obs["scfm_ontology_confidence"]
    is_outlier = query.obs["scfm_ontology_term"].isna()
    name = query.obs["scfm_ontology_name"].astype(str)[~sure & ~is_outlier]
    assert len(name)
    assert set(name) <= {"lymphocyte", "lymphocyte of B lineage"}
    assert (confidence[~is_outlier] >= 0.9 - 1e-6).all()


@pytest.mark.parametrize("name", ["cells.safetensors", "cells.parquet", "genes.txt"])
@pytest.mark.parametrize("harm", ["altered", "truncated", "removed"])
def test_a_damaged_folder_is_refused(copied, name, harm):
    path = copied / name
    data = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if harm == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedReferenceError, match=name + r".*scfm reference build"):
        load_reference(copied)
    with pytest.raises(DamagedReferenceError, match=name):
        describe(copied)


def test_an_altered_index_is_refused(copied):
    path = copied / "reference.json"
    index = json.loads(path.read_text())
    index["calibrations"]["neighbours"]["threshold"] = 0.51
    path.write_text(json.dumps(index))
    with pytest.raises(DamagedReferenceError, match=r"reference\.json that was altered"):
        load_reference(copied)
    path.write_text(json.dumps({**index, "version": 99}))
    with pytest.raises(NewerFormatError, match="version 99"):
        load_reference(copied)
    path.write_text("{")
    with pytest.raises(DamagedReferenceError, match="no readable"):
        load_reference(copied)


def test_a_folder_without_its_index_is_damaged_and_none_is_missing(copied, model, query):
    (copied / "reference.json").unlink()
    with pytest.raises(DamagedReferenceError, match=r"no readable reference\.json"):
        scfm.tl.annotate(query, model, reference=copied)
    with pytest.raises(MissingFileError, match="no such reference"):
        scfm.tl.annotate(query, model, reference=copied / "nowhere")


def test_another_models_reference_is_refused_with_the_command(folder, query, tmp_path):
    save_model(toy_model(seed=1), tmp_path / "other model")
    other = scfm.load(tmp_path / "other model")
    with pytest.raises(ModelError, match="built with another model") as refused:
        scfm.tl.annotate(query, other, reference=folder)
    command = str(refused.value).splitlines()[-1]
    assert command == (
        f"scfm reference build CELLS --model '{tmp_path / 'other model'}' --label cell_type "
        f"--donor donor --out {folder}"
    )


def test_what_it_was_not_built_with_is_refused(model, folder, query):
    for asked in ({"n_neighbours": 7}, {"label_key": "other"}, {"pooling": "mean"}):
        with pytest.raises(ConfigError, match=next(iter(asked)) + r".*built and calibrated with"):
            scfm.tl.annotate(query, model, reference=folder, **asked)
    scfm.tl.annotate(query, model, reference=folder, n_neighbours=15, label_key="cell_type")


def test_calibration_is_of_donors_held_out(rng):
    """Donors whose cells lie together: neighbours of another donor know less than those beside.

    Oracle: donors moved apart make the calibration by donors less sure than the one by cells.
    """
    n = 600
    labels = rng.choice(["A", "B", "C"], n).astype(object)
    donors = rng.choice(["d1", "d2", "d3", "d4", "d5"], n).astype(object)
    centre = {key: rng.normal(size=10) for key in ["A", "B", "C"]}
    own = {(d, c): 2 * rng.normal(size=10) for d in set(donors) for c in centre}
    x = np.stack([centre[c] + own[d, c] for c, d in zip(labels, donors, strict=True)])
    x, depth = x + 0.5 * rng.normal(size=x.shape), rng.normal(3, 0.1, n)
    config = NeighbourClassifier.fit(x, labels).config
    settings = {"config": config, "precision": 0.9, "seed": 0}
    by_donor = calibrate_votes(x, labels, depth, donors, **settings)["neighbours"]
    by_cell = calibrate_votes(x, labels, depth, None, **settings)["neighbours"]
    assert by_cell.facts["accuracy"] > 0.95 > 0.8 > by_donor.facts["accuracy"]
    assert by_donor.temperature > by_cell.temperature
    assert (by_donor.facts["held_out"], by_cell.facts["held_out"]) == ("donors", "cells")
    assert by_donor.threshold >= 0.5


def test_labels_that_are_missing_or_rare_have_no_vote(model, labelled):
    cells = labelled.copy()
    names = cells.obs["cell_type"].astype(object)
    names.iloc[:10], names.iloc[10:14], names.iloc[14] = np.nan, "NA", "single"
    cells.obs["cell_type"] = names
    with pytest.warns(ScfmWarning, match="1 labels .* fewer than 3 cells .* single"):
        made = scfm.tl.build_reference(cells, model, label_key="cell_type")
    assert made.classes == ("A", "B")
    assert made.n_cells == 225
    assert made.voters.dropped == {
        "no label": 14,
        "embedding of zeros": 0,
        "label with fewer than 3 cells": 1,
    }


def test_one_label_is_refused(model, labelled):
    cells = labelled.copy()
    cells.obs["same"] = "B cell"
    with pytest.raises(LabelError, match="one label with at least 3 cells, 'B cell'"):
        scfm.tl.build_reference(cells, model, label_key="same")


def test_codes_are_warned_of_and_measurements_refused(model, labelled):
    cells = labelled.copy()
    cells.obs["cluster"] = np.arange(240) % 2
    cells.obs["score"] = np.linspace(0, 1, 240)
    with pytest.warns(ScfmWarning, match="holds codes"):
        made = scfm.tl.build_reference(cells, model, label_key="cluster")
    assert made.classes == ("0", "1")
    with pytest.raises(LabelError, match="a measurement, not cell types"):
        scfm.tl.build_reference(cells, model, label_key="score")


def test_one_donor_is_warned_of(model, labelled):
    cells = labelled.copy()
    cells.obs["donor"] = "d1"
    with pytest.warns(ScfmWarning, match="names one donor, 'd1'"):
        made = scfm.tl.build_reference(cells, model, label_key="cell_type", donor_key="donor")
    assert made.calibrations["neighbours"].facts["held_out"] == "cells"
    cells.obs["donor"] = ["d1", None] * 120  # who is not named is no second donor
    with pytest.warns(ScfmWarning, match="names one donor, 'd1'"):
        made = scfm.tl.build_reference(cells, model, label_key="cell_type", donor_key="donor")
    assert made.calibrations["neighbours"].facts["held_out"] == "cells"
    with pytest.raises(LabelError, match="no obs column 'subject'"):
        scfm.tl.build_reference(cells, model, label_key="cell_type", donor_key="subject")


def test_disjoint_genes_are_refused(model, folder, labelled):
    """Each is of genes the model knows, and they have none in common."""
    half = scfm.tl.build_reference(labelled[:, :25].copy(), model, label_key="cell_type")
    other = labelled[:20, 25:].copy()
    other.X = sp.csr_matrix(other.X.toarray() + 1)
    with pytest.raises(GeneCoverageError, match=r"share 0 genes of the 25 and 25"):
        scfm.tl.annotate(other, model, reference=half)
    overlapping = labelled[:20, 15:40].copy()
    with pytest.warns(ScfmWarning, match="share 40% of the genes"):
        scfm.tl.annotate(overlapping, model, reference=half)


def test_another_species_is_refused_unless_orthologs_are_asked_for(model, folder, labelled):
    mouse = labelled[:20].copy()
    mouse.var_names = [name.capitalize() for name in mouse.var_names]
    with pytest.raises(GeneCoverageError, match="orthologs"):
        scfm.tl.annotate(mouse, model, reference=folder)
    scfm.tl.annotate(mouse, model, reference=folder, orthologs=True)
    of_mouse = scfm.tl.build_reference(mouse, model, label_key="cell_type", orthologs=True)
    with pytest.raises(GeneCoverageError, match=r"is mouse and AnnData is human.*--orthologs"):
        scfm.tl.annotate(labelled[:5].copy(), model, reference=of_mouse)


def test_a_model_that_was_never_saved_cannot_have_its_reference_saved(labelled, tmp_path):
    with pytest.raises(ModelError, match="never saved"):
        scfm.tl.build_reference(labelled, toy_model(), label_key="cell_type", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_other_files_are_not_replaced(model, labelled, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        scfm.tl.build_reference(labelled, model, label_key="cell_type", out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_neighbours_are_told_and_survive_h5ad(model, folder, labelled, query, tmp_path):
    """Oracle: their cosines in the reference's own frame."""
    scfm.tl.annotate(query, model, reference=folder)
    query.write_h5ad(tmp_path / "q.h5ad")
    again = ad.read_h5ad(tmp_path / "q.h5ad")
    told = scfm.tl.support(again, "cell3")
    pd.testing.assert_frame_equal(told, scfm.tl.support(query, ["cell3"]))
    assert list(told["rank"]) == list(range(1, 16))
    made = load_reference(folder)
    depth = np.log10(query.X.sum(1).A1).astype(np.float32)
    vectors, _ = made.voters.directions_of(query.obsm["X_scfm"], depth)
    cosine = made.voters.directions @ vectors[3]
    nearest = np.argsort(-cosine)[:15]
    assert set(told["reference_cell"]) == set(made.cells["cell"].iloc[nearest])
    np.testing.assert_allclose(told["similarity"], cosine[nearest], atol=1e-5)
    labels = labelled.obs["cell_type"].astype(str)
    assert list(told["label"]) == list(labels[told["reference_cell"]])
    with pytest.raises(LabelError, match="Annotate first"):
        scfm.tl.support(labelled)
    with pytest.raises(LabelError, match="No cell is called 'nobody'"):
        scfm.tl.support(query, "nobody")


def test_prototypes_are_mean_directions(model, folder, query):
    """Oracle: means by hand, the nearest of them by cosine."""
    scfm.tl.annotate(query, model, reference=folder, vote="prototypes", min_confidence=0.0)
    made = load_reference(folder)
    voters = made.voters
    means = np.stack([voters.directions[voters.codes == c].mean(0) for c in range(2)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(made.prototypes.prototypes, means, rtol=1e-12)
    depth = np.log10(query.X.sum(1).A1).astype(np.float32)
    cosine = voters.directions_of(query.obsm["X_scfm"], depth)[0] @ means.T
    expected = np.array(["A", "B"])[cosine.argmax(1)]
    is_outlier = cosine.max(1) < made.prototypes.min_similarity
    found = query.obs["scfm_cell_type"].astype(str)
    assert list(found) == list(np.where(is_outlier, "unknown", expected))
    assert "scfm_neighbours" not in query.obsm
    logit = 10 * (cosine.max(1) - cosine.min(1)) / made.calibrations["prototypes"].temperature
    np.testing.assert_allclose(query.obs["scfm_confidence"], 1 / (1 + np.exp(-logit)), atol=1e-5)
    with pytest.raises(ConfigError, match="vote is 'mean'"):
        scfm.tl.annotate(query, model, reference=folder, vote="mean")


def test_what_an_earlier_annotation_said_does_not_outlive_it(model, folder, query, tmp_path):
    """Terms and neighbours of labels that are no longer there; other columns stay."""
    terms = {"A": "B cell", "B": "T cell"}
    own = {"scfm_cell_type", "scfm_confidence", "scfm_runner_up"}
    query.obs["scfm_ontology_note"], before = "mine", set(query.obs) | {"scfm_ontology_note"}
    scfm.tl.annotate(query, model, reference=folder, ontology=terms)
    assert {"scfm_ontology_term", "scfm_ontology_name"} <= set(query.obs)
    query.write_h5ad(tmp_path / "cells.h5ad")
    scfm.tl.annotate(query, model, reference=folder, vote="prototypes")
    assert set(query.obs) == before | own
    assert set(query.obsm) == {"X_scfm"}
    out = tmp_path / "out.h5ad"
    annotate_file(tmp_path / "cells.h5ad", model, out, reference=folder, vote="prototypes")
    written = ad.read_h5ad(out)
    assert list(written.obs) == list(query.obs)
    assert set(written.obsm) == {"X_scfm"}
    pd.testing.assert_frame_equal(written.obs[list(COLUMNS)], query.obs[list(COLUMNS)])


def test_cells_of_one_name_are_all_told_of(model, folder, query):
    query.obs_names = ["a", "a", *query.obs_names[2:]]
    scfm.tl.annotate(query, model, reference=folder)
    assert scfm.tl.support(query, "a")["rank"].tolist() == [*range(1, 16), *range(1, 16)]
    with pytest.raises(LabelError, match="No cell is called 'b'"):
        scfm.tl.support(query, ["a", "b"])
