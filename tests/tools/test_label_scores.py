"""scfm.tl.score: scikit-learn's scores, donors, and refusals that help."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support

import scfm
from scfm.errors import LabelError
from scfm.metrics import expected_calibration_error

TRUE = ["A", "A", "B/b", "B/b", "B/b", "C", None, "A"]
CALLED = ["A", "B/b", "B/b", "B/b", "unknown", "A", "A", "A"]
SURE = [0.9, 0.6, 0.8, 0.7, 0.3, 0.55, 0.9, 1.0]


@pytest.fixture
def cells() -> ad.AnnData:
    obs = {
        "truth": pd.Categorical(TRUE),
        "scfm_cell_type": pd.Categorical(CALLED),
        "scfm_confidence": np.array(SURE, dtype=np.float32),
        "donor": list("aabbccdd"),
    }
    return ad.AnnData(np.zeros((8, 1), np.float32), pd.DataFrame(obs, index=list("01234567")))


def test_scores_are_scikit_learn_s(cells):
    found = scfm.tl.score(cells, label_key="truth")
    is_labelled = np.array([name is not None for name in TRUE])
    truth, called = (np.array(names)[is_labelled] for names in (TRUE, CALLED))
    table = precision_recall_fscore_support(
        truth, called, labels=["A", "B/b", "C"], zero_division=0.0
    )
    np.testing.assert_allclose(found.per_class[["precision", "recall", "f1"]].T, table[:3])
    assert found.per_class["n_cells"].tolist() == table[3].tolist()
    assert found.macro_f1.value == pytest.approx(table[2].mean())
    assert found.accuracy.value == accuracy_score(truth, called)
    assert found.balanced_accuracy.value == pytest.approx(table[1].mean())
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found.balanced_accuracy.value == balanced_accuracy_score(truth, called)
    has_name = called != "unknown"
    sure = np.array(SURE, dtype=np.float32)[is_labelled][has_name].astype(float)
    error = expected_calibration_error((truth == called)[has_name], sure)
    assert found.calibration_error.value == pytest.approx(error)
    assert (found.n_cells, found.n_unlabelled, found.unknown) == (7, 1, 1 / 7)
    assert found.macro_f1.low <= found.macro_f1.value <= found.macro_f1.high
    assert "too narrow" in str(found)


def test_report_stays_with_the_cells(cells, tmp_path):
    found = scfm.tl.score(cells, label_key="truth", donor_key="donor")
    assert "4 groups of 'donor'" in found.intervals
    cells.write_h5ad(tmp_path / "cells.h5ad")
    kept = ad.read_h5ad(tmp_path / "cells.h5ad").uns["scfm"]["scfm_score"]
    assert kept["macro_f1"]["value"] == found.macro_f1.value
    per_class = kept["per_class"]
    assert dict(zip(per_class["label"], per_class["recall"], strict=True))["B/b"] == 2 / 3


def test_without_confidence_there_is_no_calibration(cells):
    del cells.obs["scfm_confidence"]
    assert scfm.tl.score(cells, label_key="truth").calibration_error is None


def test_bad_input_is_refused_with_what_to_do(cells):
    with pytest.raises(LabelError, match=r"no column 'type'; it has truth, scfm_cell_type"):
        scfm.tl.score(cells, label_key="type")
    with pytest.raises(LabelError, match=r"Annotate first: scfm.tl.annotate\(.*key_added='mine'"):
        scfm.tl.score(cells, label_key="truth", key="mine")
    cells.obs["other"] = "T cell"
    with pytest.raises(
        LabelError, match=r"None of the given labels \(A, B/b\) .* scfm.tl.map_labels"
    ):
        scfm.tl.score(cells, label_key="other")
    cells.obs["none"] = pd.Categorical([None] * 8)
    with pytest.raises(LabelError, match="labels none of 8 cells"):
        scfm.tl.score(cells, label_key="none")
