"""Resampling by donor: against scikit-learn, closed forms, and what must not matter."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scfm.evaluate.intervals import bootstrap_scores
from scfm.evaluate.resampling import Resampling, auroc_draws, ece_draws, label_draws
from scfm.metrics import accuracy, expected_calibration_error, macro_f1


@pytest.fixture
def cells(rng):
    truth = rng.choice(["A", "B", "C"], size=400, p=[0.5, 0.3, 0.2]).astype(object)
    predicted = np.where(rng.random(400) < 0.8, truth, rng.choice(["A", "B", "D"], 400))
    donors = rng.choice([f"d{i}" for i in range(12)], size=400)
    return truth, predicted.astype(object), donors


def test_values_are_the_scores_of_all_cells(cells):
    truth, predicted, donors = cells
    for groups in (None, donors):
        found = label_draws(truth, predicted, ["A", "B", "C"], Resampling.of(400, groups))
        assert found["macro_f1"].value == pytest.approx(macro_f1(truth, predicted), abs=1e-12)
        assert found["accuracy"].value == pytest.approx(accuracy(truth, predicted), abs=1e-12)


def test_auroc_and_ece_match_their_definitions(rng):
    score = np.round(rng.random(300), 1)  # many ties
    positive = rng.random(300) < 0.3
    everyone = Resampling.of(300, n_bootstrap=20)
    assert auroc_draws(positive, score, everyone).value == pytest.approx(
        roc_auc_score(positive, score), abs=1e-12
    )
    assert ece_draws(positive, score, everyone).value == pytest.approx(
        expected_calibration_error(positive, score), abs=1e-12
    )


def test_each_draw_is_the_score_of_the_cells_it_drew(cells):
    """The sums of donors, drawn with replacement, are those of the cells repeated."""
    truth, predicted, donors = cells
    resampling = Resampling.of(400, donors, n_bootstrap=5, seed=3)
    found = label_draws(truth, predicted, ["A", "B", "C"], resampling)
    novelty = np.linspace(0, 1, 400)
    auroc = auroc_draws(truth == "B", novelty, resampling)
    weights = np.concatenate(list(resampling.weights()))
    for at, drawn in enumerate(weights):
        rows = np.repeat(np.arange(400), drawn[resampling.unit])
        assert found["macro_f1"].draws[at] == pytest.approx(macro_f1(truth[rows], predicted[rows]))
        assert auroc.draws[at] == pytest.approx(roc_auc_score(truth[rows] == "B", novelty[rows]))


def test_cells_alone_agree_with_the_multinomial_of_combinations(cells):
    truth, predicted, _ = cells
    ours = label_draws(truth, predicted, ["A", "B", "C"], Resampling.of(400, n_bootstrap=2_000))
    theirs = bootstrap_scores(truth, {"m": predicted}, n_bootstrap=2_000)["m"]
    for name, found in ours.items():
        one, two = found.interval(), theirs[name].interval()
        assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=0.006)


def test_donors_that_are_alike_leave_no_doubt_and_cells_of_one_donor_count_once(rng):
    """Two donors, one all right and one all wrong: accuracy is 0, 1/2 or 1 at 1 : 2 : 1."""
    right = np.repeat([True, False], 100)
    truth, predicted = np.full(200, "A", object), np.where(right, "A", "B").astype(object)
    resampling = Resampling.of(200, np.where(right, "x", "y"), over="donor", n_bootstrap=4_000)
    draws = label_draws(truth, predicted, ["A"], resampling)["accuracy"].draws
    share = [float((draws == value).mean()) for value in (0, 0.5, 1)]
    assert share == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    alike = Resampling.of(200, np.tile(["x", "y"], 100), n_bootstrap=50)
    assert np.ptp(label_draws(truth, predicted, ["A"], alike)["accuracy"].draws) == 0


def test_the_order_of_cells_does_not_matter_with_donors(cells, rng):
    truth, predicted, donors = cells
    order = rng.permutation(400)
    one = label_draws(truth, predicted, ["A", "B", "C"], Resampling.of(400, donors))
    two = label_draws(
        truth[order], predicted[order], ["A", "B", "C"], Resampling.of(400, donors[order])
    )
    np.testing.assert_allclose(one["macro_f1"].draws, two["macro_f1"].draws, rtol=1e-12)


def test_one_donor_falls_back_to_cells_and_says_so():
    resampling = Resampling.of(30, np.full(30, "only"), over="donor")
    assert resampling.over == "cells"
    assert "too narrow" in resampling.sentence
    assert (
        "3 groups of 'donor'" in Resampling.of(30, np.tile(list("abc"), 10), over="donor").sentence
    )


def test_auroc_without_a_positive_cell_does_not_exist():
    found = auroc_draws(np.zeros(9, dtype=bool), np.arange(9.0), Resampling.of(9, n_bootstrap=5))
    assert np.isnan(found.value)


def test_many_units_are_drawn_in_parts_alike(monkeypatch, cells):
    truth, predicted, _ = cells
    one = label_draws(truth, predicted, ["A", "B", "C"], Resampling.of(400, n_bootstrap=30))
    monkeypatch.setattr("scfm.evaluate.resampling.KEPT_WEIGHTS", 1)
    two = label_draws(truth, predicted, ["A", "B", "C"], Resampling.of(400, n_bootstrap=30))
    np.testing.assert_array_equal(one["accuracy"].draws, two["accuracy"].draws)
