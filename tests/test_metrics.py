"""Scores against scikit-learn, and confusion matrices worked by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from scfm.metrics import (
    accuracy,
    accuracy_of,
    balanced_accuracy,
    balanced_accuracy_of,
    confusion_matrix,
    expected_calibration_error,
    label_scores_of,
    labels_in,
    macro_f1,
    macro_f1_of,
)

NAMES = np.array(["B", "NK", "CD4 T", "Monocyte"], dtype=object)


def draw(rng, n_cells=400):
    truth = NAMES[rng.choice(4, n_cells, p=[0.6, 0.25, 0.1, 0.05])]
    guess = np.append(NAMES, ["unknown", "CD34+"])[rng.integers(0, 6, n_cells)]
    return truth, np.where(rng.random(n_cells) < 0.5, truth, guess)


def test_scores_match_scikit_learn_over_the_labels_of_the_truth(rng):
    truth, predicted = draw(rng)
    labels = labels_in(truth)
    f1 = sk.f1_score(truth, predicted, labels=labels, average="macro", zero_division=0)
    recall = sk.recall_score(truth, predicted, labels=labels, average="macro", zero_division=0)
    assert accuracy(truth, predicted) == pytest.approx(sk.accuracy_score(truth, predicted))
    assert macro_f1(truth, predicted) == pytest.approx(f1, abs=1e-12)
    assert balanced_accuracy(truth, predicted) == pytest.approx(recall, abs=1e-12)


def test_label_scores_match_scikit_learn(rng):
    truth, predicted = draw(rng)
    labels = labels_in(truth)
    theirs = sk.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    ours = label_scores_of(confusion_matrix(truth, predicted))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def test_confusion_matrix_matches_scikit_learn_and_keeps_every_cell(rng):
    truth, predicted = draw(rng)
    ours = confusion_matrix(truth, predicted)
    theirs = sk.confusion_matrix(truth, predicted, labels=labels_in(truth))
    np.testing.assert_array_equal(ours[:, :-1], theirs)
    assert ours.sum() == len(truth)


def test_by_hand():
    # rows B, T; columns B, T, other
    confusion = confusion_matrix(
        np.array(list("BBBBTT")), np.array(["B", "B", "T", "unknown", "T", "B"])
    )
    np.testing.assert_array_equal(confusion, [[2, 1, 1], [1, 1, 0]])
    scores = label_scores_of(confusion)
    np.testing.assert_allclose(scores.precision, [2 / 3, 1 / 2])
    np.testing.assert_allclose(scores.recall, [2 / 4, 1 / 2])
    np.testing.assert_allclose(scores.f1, [4 / 7, 2 / 4])
    assert accuracy_of(confusion) == pytest.approx(3 / 6)
    assert balanced_accuracy_of(confusion) == pytest.approx(1 / 2)
    assert macro_f1_of(confusion) == pytest.approx((4 / 7 + 1 / 2) / 2)


def test_a_label_nobody_calls_scores_zero():
    assert macro_f1(np.array(list("AAB")), np.array(list("AAA"))) == pytest.approx((4 / 5 + 0) / 2)


def test_a_stack_scores_as_its_members_do(rng):
    stack = rng.integers(0, 9, size=(50, 3, 4))
    stack[7, 1] = 0  # a resample without a cell of the second label
    for score in (accuracy_of, balanced_accuracy_of, macro_f1_of):
        np.testing.assert_allclose(score(stack), [score(one) for one in stack], rtol=1e-12)


def test_a_label_absent_from_a_resample_does_not_count():
    with_it = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 1]])
    without = np.array([[3, 0, 1], [0, 2, 1]])
    assert balanced_accuracy_of(with_it) == pytest.approx(float(balanced_accuracy_of(without)))


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [("AB", "A", "2 true and 1 predicted"), ("", "", "at least one cell")],
)
def test_unusable_labels_are_refused(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(list(truth)), np.array(list(predicted)))


def test_truth_outside_the_given_labels_is_refused():
    with pytest.raises(ValueError, match="not among"):
        confusion_matrix(np.array(["A", "B"]), np.array(["A", "B"]), ["A"])


def test_calibration_error_by_hand():
    confidence = np.array([0.05, 0.15, 0.95, 0.95])
    is_correct = np.array([False, False, True, False])
    # bins of a tenth: gaps 0.05 and 0.15 with one cell each, |0.5 - 0.95| with two
    expected = (0.05 + 0.15 + 2 * 0.45) / 4
    assert expected_calibration_error(is_correct, confidence, 10) == pytest.approx(expected)


def test_calibration_error_vanishes_for_honest_confidence(rng):
    confidence = rng.random(200_000)
    is_correct = rng.random(200_000) < confidence
    assert expected_calibration_error(is_correct, confidence) < 0.01
    assert expected_calibration_error(np.ones(3, bool), np.array([1.0, 1.0, 1.0])) == 0


@pytest.mark.parametrize("confidence", [[0.5, 1.1], [np.nan, 0.5]])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        expected_calibration_error(np.array([True, False]), np.array(confidence))
