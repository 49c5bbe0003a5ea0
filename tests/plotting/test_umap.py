"""scfm.pl on a small AnnData: what is drawn is what obs and obsm hold."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scfm.plotting as pl
from scfm.errors import InputError, LabelError
from scfm.evaluate import figures


@pytest.fixture
def adata(rng) -> AnnData:
    obs = pd.DataFrame(
        {
            "scfm_confidence": rng.random(60).astype(np.float32),
            "scfm_cell_type": pd.Categorical(rng.choice(["B", "NK", "unknown"], size=60)),
        },
        index=[f"cell{i}" for i in range(60)],
    )
    return AnnData(obs=obs, obsm={"X_umap": rng.normal(size=(60, 2)).astype(np.float32)})


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_confidence_colours_known_cells_and_greys_the_unknown(adata):
    ax = pl.umap_confidence(adata)
    grey, dots = ax.collections
    is_unknown = (adata.obs["scfm_cell_type"] == "unknown").to_numpy()
    assert len(grey.get_offsets()) == is_unknown.sum()
    drawn = np.column_stack([np.asarray(dots.get_offsets()), np.asarray(dots.get_array())])
    known = adata[~is_unknown]
    wanted = np.column_stack([known.obsm["X_umap"], known.obs["scfm_confidence"]])
    np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], wanted[np.lexsort(wanted.T)], rtol=1e-6)
    ax.figure.canvas.draw()


def test_confidence_draws_on_given_axes_and_short_basis(adata):
    _, ax = plt.subplots()
    assert pl.umap_confidence(adata, basis="umap", ax=ax) is ax
    assert ax.get_xlabel() == "UMAP1"


def test_input_is_left_as_it_was(adata):
    before = adata.copy()
    pl.umap_confidence(adata)
    pl.umap_labels(adata)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert list(adata.uns) == []


def test_without_umap_the_next_command_is_named(adata):
    del adata.obsm["X_umap"]
    with pytest.raises(InputError, match=r"no 'X_umap' \(it holds: nothing\).*sc\.tl\.umap"):
        pl.umap_confidence(adata)


def test_without_annotation_the_next_command_is_named(adata):
    with pytest.raises(LabelError, match=r"'mine_confidence'.*annotate\(.*key_added=\"mine\""):
        pl.umap_confidence(adata, key="mine")


def test_labels_carry_the_reports_colours_and_missing_ones_are_unknown(adata):
    adata.obs["truth"] = ["B"] * 30 + ["NK"] * 20 + [None] * 10
    ax = pl.umap_labels(adata, color="truth")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["B", "NK", "unknown"]
    assert len(ax.collections[0].get_offsets()) == 60
    assert {text.get_text() for text in ax.texts} == {"B", "NK"}


def test_absent_column_is_refused_with_those_there_are(adata):
    with pytest.raises(LabelError, match=r"'nope'.*scfm_confidence, scfm_cell_type"):
        pl.umap_labels(adata, color="nope")


def test_confusion_equals_crosstab(adata):
    adata.obs["truth"] = ["B"] * 30 + ["NK"] * 20 + [None] * 10
    ax = pl.confusion(adata, label_key="truth")
    labelled = adata.obs.iloc[:50]
    wanted = pd.crosstab(labelled["truth"], labelled["scfm_cell_type"], normalize="index")
    drawn = np.asarray(ax.collections[0].get_array()).reshape(2, 3)
    np.testing.assert_allclose(drawn, wanted[["B", "NK", "unknown"]].to_numpy(), rtol=1e-12)


def test_confusion_needs_a_label(adata):
    adata.obs["truth"] = [None] * 60
    with pytest.raises(LabelError, match="No cell has a label"):
        pl.confusion(adata, label_key="truth")


def test_loss_curve_is_drawn():
    ax = pl.loss_curve([1, 2, 3], [3.0, 2.0, 1.0], validation_loss=[np.nan, np.nan, 1.5])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, 2, 1])
    assert ax.lines[1].get_color() == figures.SECOND


def test_import_loads_neither_scanpy_nor_torch():
    code = "import sys, scfm.plotting; print({'scanpy', 'torch'} & set(sys.modules) or 'none')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "none"
