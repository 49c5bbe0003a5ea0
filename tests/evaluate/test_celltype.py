"""Who wins and by how much; labels in common terms."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from scfm.errors import LabelError
from scfm.evaluate.celltype import (
    Prediction,
    common_labels,
    evaluate_transfer,
    read_label_mapping,
    verdict_on,
)
from scfm.evaluate.results import Interval, MethodResult


@pytest.fixture
def cells(rng):
    truth = np.array(["B", "NK", "T"], dtype=object)[rng.integers(0, 3, 600)]

    def guess(share_right):
        wrong = np.array(["B", "NK", "T", "unknown"], dtype=object)[rng.integers(0, 4, 600)]
        return np.where(rng.random(600) < share_right, truth, wrong)

    return truth, {
        "scfm": Prediction("scfm", "model", guess(0.7)),
        "untrained": Prediction("untrained network", "untrained", guess(0.3)),
        "weak": Prediction("Majority", "baseline", np.full(600, "T", dtype=object), "always T"),
        "strong": Prediction("PCA + logistic regression", "baseline", guess(0.8)),
    }


def test_scores_are_scikit_learns_and_the_record_is_json(cells):
    truth, predictions = cells
    found = evaluate_transfer(
        truth, predictions, reference={"name": "ref"}, query={"name": "q"}, n_bootstrap=200, seed=7
    )
    assert found.labels == ["B", "NK", "T"]
    for key, (_, _, predicted, _) in predictions.items():
        method = found.method(key)
        f1 = f1_score(truth, predicted, labels=found.labels, average="macro", zero_division=0)
        assert method.macro_f1.value == pytest.approx(f1)
        assert method.accuracy.value == pytest.approx(accuracy_score(truth, predicted))
        assert method.macro_f1.low <= method.macro_f1.value <= method.macro_f1.high
        theirs = precision_recall_fscore_support(
            truth, predicted, labels=found.labels, zero_division=0
        )
        for i, label in enumerate(found.labels):
            ours = method.per_class[label]
            expected = [column[i] for column in theirs]
            assert [ours.precision, ours.recall, ours.f1, ours.n_cells] == pytest.approx(expected)
    assert set(found.versus) == {"untrained", "weak", "strong"}
    ours, theirs = found.method("scfm").macro_f1.value, found.method("weak").macro_f1.value
    assert found.versus["weak"].value == pytest.approx(ours - theirs)
    record = json.loads(json.dumps(found.to_dict()))
    assert record["bootstrap"] == {"resamples": 200, "over": "cells", "seed": 7}
    assert record["reference"] == {"name": "ref"}


def test_the_strongest_baseline_is_who_is_compared(cells):
    truth, predictions = cells
    found = evaluate_transfer(truth, predictions, reference={}, query={}, n_bootstrap=200)
    assert found.verdict.startswith(
        "The strongest baseline, PCA + logistic regression, wins: macro-F1 0."
    )
    assert "excludes zero" in found.verdict


def result(key, name, kind, macro_f1):
    interval = Interval(macro_f1, macro_f1 - 0.01, macro_f1 + 0.01)
    return MethodResult(key, name, kind, interval, interval, interval, {}, np.array([]))


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            Interval(-0.125, -0.14, -0.11),
            "The strongest baseline, PCA + logistic regression, wins: macro-F1 0.835 against "
            "scfm's 0.710 (difference -0.125, 95 % interval -0.140 to -0.110, which excludes "
            "zero).",
        ),
        (
            Interval(0.02, 0.01, 0.03),
            "scfm wins: macro-F1 0.710 against 0.835 of the strongest baseline, PCA + logistic "
            "regression (difference +0.020, 95 % interval +0.010 to +0.030, which excludes zero).",
        ),
        (
            Interval(-0.01, -0.03, 0.01),
            "No clear winner: macro-F1 0.710 of scfm and 0.835 of the strongest baseline, PCA + "
            "logistic regression (difference -0.010, 95 % interval -0.030 to +0.010, which "
            "includes zero).",
        ),
    ],
)
def test_each_verdict(difference, sentence):
    methods = [
        result("scfm", "scfm", "model", 0.71),
        result("untrained", "untrained", "untrained", 0.99),  # no baseline, however good
        result("knn", "PCA + neighbours", "baseline", 0.77),
        result("lr", "PCA + logistic regression", "baseline", 0.835),
    ]
    assert verdict_on(methods, {"lr": difference, "knn": Interval(0.5, 0.4, 0.6)}) == sentence


@pytest.mark.parametrize(("kind", "lacking"), [("model", "baseline"), ("baseline", "model")])
def test_no_verdict_without_both_sides(kind, lacking):
    sentence = f"No verdict: there is no {lacking} among the methods compared."
    assert verdict_on([result("one", "one", kind, 0.5)], {}) == sentence


def test_a_method_without_a_label_for_each_cell_is_refused(cells):
    truth, predictions = cells
    short = {"scfm": predictions["scfm"]._replace(predicted=truth[:-1])}
    with pytest.raises(LabelError, match="scfm has 599 predicted labels for 600 cells"):
        evaluate_transfer(truth, short, reference={}, query={})


def test_common_labels_leave_out_and_count():
    mapping = {"CD14+ Mono": "Monocyte", "B": "B", "NA": "", "DC": ""}
    labels = np.array(["B", "NA", "CD14+ Mono", "DC", "NA", None, np.nan], dtype=object)
    found = common_labels(labels, mapping)
    assert found.labels.tolist() == ["B", "", "Monocyte", "", "", "", ""]
    assert found.is_kept.tolist() == [True, False, True, False, False, False, False]
    assert found.left_out == {"NA": 2, "DC": 1, "(no label)": 2}


def test_a_label_the_mapping_does_not_name_is_refused():
    with pytest.raises(
        LabelError, match=r"query has labels the mapping does not name: 'b'\. Add a"
    ):
        common_labels(np.array(["B", "b"]), {"B": "B"}, name="query")


def test_the_bundled_mapping_reads_na_as_a_label(demo_cells):
    mapping = read_label_mapping(demo_cells / "pbmc_label_mapping.csv")
    assert set(mapping) == {"zheng_facs_pbmc", "pbmc3k"}
    assert mapping["pbmc3k"]["NA"] == ""
    assert mapping["zheng_facs_pbmc"]["CD34+"] == "CD34+ progenitor"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set,label,common\na,b,c\n", "wanted dataset, label and common"),
        ("dataset,label,common\na,b,c\na,b,d\n", "maps a's 'b' twice"),
    ],
)
def test_unusable_mappings_are_refused(tmp_path, text, message):
    path = tmp_path / "mapping.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=message):
        read_label_mapping(path)
