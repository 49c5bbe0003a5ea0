"""Annotation by markers on real cells: what is right, what is calibrated, what is missing."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.data.marker_table import marker_table
from scfm.errors import ConfigError, GeneCoverageError, ScfmWarning
from scfm.tools.annotation import annotate_file
from tests.toys import toy_adata

COARSE = {
    **{"Naive CD4 T": "CD4 T cell", "Memory CD4 T": "CD4 T cell", "CD8 T": "CD8 T cell"},
    **{"B": "B cell", "NK": "NK cell", "CD14+ Mono": "CD14 monocyte", "DC": "dendritic cell"},
    **{"FCGR3A+ Mono": "CD16 monocyte", "Platelet": "platelet"},
}


@pytest.fixture(scope="module")
def pbmc(demo_cells):
    """540 real cells of PBMC3k on 3,000 genes, in the shipped table's words; "NA" is not known."""
    cells = ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::5]
    is_kept = cells.var_names.isin(marker_table().genes)
    is_kept[np.argsort(-np.asarray(cells.X.sum(0)).ravel())[:3000]] = True
    cells = cells[:, is_kept].copy()
    cells.obs["truth"] = cells.obs["cell_type"].astype(str).map(COARSE)
    return cells


def test_the_shipped_markers_know_blood(pbmc):
    cells = scfm.tl.annotate(pbmc, method="markers", min_confidence=0.0, copy=True)
    is_known = cells.obs["truth"].notna()
    found = cells.obs["scfm_cell_type"].astype(str)
    assert (found == cells.obs["truth"])[is_known].mean() > 0.75
    assert not cells.uns["scfm"]["scfm"]["is_calibrated"]
    assert cells.obsm["scfm_marker_scores"].shape == (540, 12)
    assert "X_scfm" not in cells.obsm
    # the table's term, where the label alone would not say it
    scfm.tl.annotate(cells, method="markers", ontology=True, ontology_threshold=0.6)
    monocytes = cells.obs["scfm_ontology_name"][cells.obs["truth"] == "CD14 monocyte"]
    assert (monocytes.astype(str).str.contains("monocyte")).mean() > 0.8


def test_labelled_cells_calibrate(pbmc):
    """On other cells the confidence's mean is the share of right names, nearly; labels stay."""
    half, other = pbmc[::2].copy(), pbmc[1::2].copy()
    settings = {"method": "markers", "reference": half, "label_key": "truth"}
    scfm.tl.annotate(other, **settings, min_confidence=0.0)
    plain = scfm.tl.annotate(other, method="markers", min_confidence=0.0, copy=True, key_added="p")
    is_known = other.obs["truth"].notna() & (other.obs["scfm_cell_type"].astype(str) != "unknown")
    right = (other.obs["scfm_cell_type"].astype(str) == other.obs["truth"])[is_known].mean()
    sure = other.obs["scfm_confidence"][is_known].mean()
    assert abs(sure - right) < 0.06
    assert not np.allclose(other.obs["scfm_confidence"], plain.obs["p_confidence"])
    assert list(other.obs["scfm_cell_type"]) == list(plain.obs["p_cell_type"])
    assert other.uns["scfm"]["scfm"]["is_calibrated"]
    np.testing.assert_array_equal(
        other.obs["scfm_runner_up"].astype(str), plain.obs["p_runner_up"].astype(str)
    )


def test_labels_meet_the_table_by_their_terms(pbmc):
    half = pbmc[::2].copy()
    half.obs["other"] = half.obs["truth"].map(
        {"B cell": "CL:0000236", "CD8 T cell": "CD8-positive, alpha-beta T cell"}
    )
    cells = pbmc[1::4].copy()
    scfm.tl.annotate(cells, method="markers", reference=half, label_key="other")
    assert cells.uns["scfm"]["scfm"]["is_calibrated"]
    half.obs["other"] = ["x", "y"] * (half.n_obs // 2)
    with pytest.raises(ConfigError, match="No label of 'other'"):
        scfm.tl.annotate(cells, method="markers", reference=half, label_key="other")


def test_a_file_in_chunks_is_labelled_as_the_anndata_is(pbmc, tmp_path, monkeypatch):
    monkeypatch.setattr("scfm.tools.annotation_by_markers.CHUNK_CELLS", 50)
    cells = pbmc[:120].copy()
    cells.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "out.h5ad"
    summary = annotate_file(tmp_path / "in.h5ad", None, out, method="markers")
    monkeypatch.undo()
    scfm.tl.annotate(cells, method="markers")
    found = ad.read_h5ad(out)
    for column in ("scfm_cell_type", "scfm_confidence", "scfm_runner_up"):
        pd.testing.assert_series_equal(found.obs[column], cells.obs[column])
    key = "scfm_marker_scores"
    np.testing.assert_array_equal(found.obsm[key], cells.obsm[key])
    assert dict(summary.cells) == dict(cells.obs["scfm_cell_type"].astype(str).value_counts())
    assert "NOT calibrated" in str(summary)
    assert summary.to_dict()["n_cells"] == 120


def test_names_meet_whatever_kind_they_are(pbmc):
    """Old symbols and Ensembl ids in the table, symbols in the data."""
    table = {
        "B": ["ENSG00000156738", "CD79A"],
        "platelet": ["PPBP", "CD41"],
        "no": ["CD79A-", "X1"],
    }
    with pytest.warns(ScfmWarning, match="measures no marker of no"):
        scfm.tl.annotate(pbmc, method="markers", markers=table, key_added="own")
    settings = pbmc.uns["scfm"]["own"]
    assert settings["classes"] == ["B", "platelet"]
    assert settings["genes_missing"] == ["no: X1"]  # MS4A1 by its id, ITGA2B by an alias
    is_b = pbmc.obs["truth"] == "B cell"
    assert (pbmc.obs["own_cell_type"][is_b] == "B").mean() > 0.8


def test_genes_of_another_species_are_refused(pbmc, rng):
    mouse = toy_adata(rng)
    mouse.var_names = [name.capitalize() for name in mouse.var_names]
    with pytest.raises(GeneCoverageError, match=r"mouse genes.*markers of 0 of the 12 types"):
        scfm.tl.annotate(mouse, method="markers")


def test_what_does_not_go_together(pbmc):
    wrong = [
        ({"method": "markers", "reference": pbmc}, "with label_key="),
        ({"method": "reference"}, "needs one"),
        ({"method": "words", "reference": pbmc, "label_key": "truth"}, "needs no reference"),
        ({"method": "reference", "reference": pbmc, "label_key": "truth"}, "needs a model"),
        ({"method": "genes"}, "known are reference, classifier, words, markers"),
        ({"method": "markers", "markers": marker_table(), "min_confidence": 2.0}, "lie in"),
        (
            {"method": "reference", "reference": pbmc, "label_key": "truth", "markers": {}},
            "is for method='markers'",
        ),
        ({}, "needs a model"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ConfigError, match=message):
            scfm.tl.annotate(pbmc, **arguments)
