"""Annotation: two kinds of cells told apart, by AnnData and by file alike, and what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.errors import LabelError
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig
from scfm.tools.annotation import annotate_file
from tests.toys import toy_adata, toy_scfoundation


@pytest.fixture
def model(toy_model_folder):
    return scfm.load(toy_model_folder)


@pytest.fixture
def reference(rng):
    return toy_adata(rng, n_cells=300)


@pytest.fixture
def query(rng):
    return toy_adata(rng, n_cells=201)


def test_labels_are_found(model, reference, query):
    scfm.tl.annotate(query, model, reference=reference, label_key="cell_type", min_confidence=0.5)
    found = query.obs["scfm_cell_type"].astype(str)
    is_known = found != "unknown"
    assert is_known.mean() > 0.8
    # random weights, so far from perfect; a mix-up of rows or labels would give one half
    assert (found[is_known] == query.obs["cell_type"].astype(str)[is_known]).mean() > 0.65
    assert query.obs["scfm_confidence"].between(0, 1).all()
    assert list(query.obs["scfm_cell_type"].cat.categories) == ["A", "B", "unknown"]
    assert query.uns["scfm"]["scfm"]["classes"] == ["A", "B"]


def test_scfoundation_labels_by_its_own_vector(reference, query, tmp_path):
    """Oracle: neighbours among the vectors that embed gives; by file the same."""
    model = toy_scfoundation()
    asked = {"reference": reference, "label_key": "cell_type", "min_confidence": 0.0}
    scfm.tl.annotate(query, model, **asked)
    assert query.obsm["X_scfm"].shape == (201, 4 * 32)
    assert query.uns["scfm"]["X_scfm"]["pooling"] == "all"
    assert query.uns["scfm"]["X_scfm"]["target_depth"] == "t4"
    for adata in (query, reference):
        scfm.tl.embed(adata, model, key_added="own")
    np.testing.assert_array_equal(query.obsm["X_scfm"], query.obsm["own"])
    depths = [np.log10(adata.X.sum(1).A1) for adata in (reference, query)]
    voters = NeighbourClassifier.fit(
        reference.obsm["own"],
        reference.obs["cell_type"].to_numpy(),
        NeighbourConfig(min_confidence=0.0),
        depth=depths[0],
    )
    expected = voters.predict(query.obsm["own"], depths[1])
    assert list(query.obs["scfm_cell_type"]) == list(expected.labels("unknown"))
    found = query.obs["scfm_cell_type"].astype(str)
    is_known = found != "unknown"
    assert is_known.mean() > 0.8
    assert (found[is_known] == query.obs["cell_type"].astype(str)[is_known]).mean() > 0.65
    query.write_h5ad(tmp_path / "query.h5ad")
    annotate_file(tmp_path / "query.h5ad", model, tmp_path / "out.h5ad", **asked)
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_series_equal(out.obs["scfm_cell_type"], query.obs["scfm_cell_type"])


def test_file_equals_anndata(model, reference, query, tmp_path):
    query.write_h5ad(tmp_path / "query.h5ad")
    reference.write_h5ad(tmp_path / "reference.h5ad")
    summary = annotate_file(
        tmp_path / "query.h5ad",
        model,
        tmp_path / "out.h5ad",
        reference=tmp_path / "reference.h5ad",
        label_key="cell_type",
        batch_size=3,
    )
    scfm.tl.annotate(query, model, reference=reference, label_key="cell_type")
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    for column in ("scfm_cell_type", "scfm_runner_up"):
        pd.testing.assert_series_equal(out.obs[column], query.obs[column])
    np.testing.assert_allclose(out.obs["scfm_confidence"], query.obs["scfm_confidence"], atol=1e-4)
    assert summary.n_cells == 201
    assert dict(summary.cells) == dict(query.obs["scfm_cell_type"].astype(str).value_counts())
    assert "cells labelled by 300 reference cells" in str(summary)


def test_annotated_anndata_survives_h5ad(model, reference, query, tmp_path):
    scfm.tl.annotate(query, model, reference=reference, label_key="cell_type")
    query.write_h5ad(tmp_path / "q.h5ad")
    again = ad.read_h5ad(tmp_path / "q.h5ad")
    pd.testing.assert_series_equal(again.obs["scfm_cell_type"], query.obs["scfm_cell_type"])


def test_kept_embedding_is_used_only_if_these_weights_made_it(model, reference, query):
    scfm.tl.annotate(query, model, reference=reference.copy(), label_key="cell_type")
    expected = query.obs["scfm_confidence"].to_numpy()
    scfm.tl.embed(reference, model)
    reference.uns["scfm"]["X_scfm"]["weights_sha256"] = "another model's"
    reference.obsm["X_scfm"] = np.zeros_like(reference.obsm["X_scfm"])
    scfm.tl.annotate(query, model, reference=reference, label_key="cell_type")
    np.testing.assert_allclose(query.obs["scfm_confidence"], expected)


def test_absent_label_key_is_refused(model, reference, query):
    with pytest.raises(LabelError, match="no obs column 'celltype'; it has cell_type"):
        scfm.tl.annotate(query, model, reference=reference, label_key="celltype")
    assert "scfm_cell_type" not in query.obs


def test_reference_without_labels_is_refused(model, reference, query):
    reference.obs["cell_type"] = None
    with pytest.raises(LabelError, match="labels none of its 300 cells"):
        scfm.tl.annotate(query, model, reference=reference, label_key="cell_type")
