"""What typing says of cells, and its calibration: closed forms and invariances."""

import numpy as np
import pytest

from scfm.errors import ConfigError
from scfm.metrics import expected_calibration_error
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig
from scfm.tasks.probability_calibration import (
    ProbabilityCalibration,
    fit_probability_calibration,
    tempered,
)
from scfm.tasks.type_probabilities import TypeProbabilities


def of(rows, outlier=None, classes=("A", "B", "C"), novelty=None) -> TypeProbabilities:
    rows = np.asarray(rows, dtype=np.float64)
    is_outlier = np.zeros(len(rows), bool) if outlier is None else np.asarray(outlier)
    return TypeProbabilities(classes, rows, is_outlier, novelty)


def test_label_runner_up_and_unknown():
    found = of(
        [[0.2, 0.5, 0.3], [1, 0, 0], [0, 0, 0], [0.4, 0.4, 0.2]], [False, True, False, False]
    )
    assert found.label.tolist() == ["B", "A", "A", "A"]
    assert found.runner_up.tolist() == ["C", "", "", "B"]
    assert found.confidence.tolist() == [0.5, 1, 0, 0.4]
    assert found.unknown_score.tolist() == [0.5, 1, 1, 0.6]
    assert found.labels(0.45).tolist() == ["B", "unknown", "unknown", "unknown"]
    assert found.labels(0.0).tolist() == ["B", "unknown", "unknown", "A"]
    assert of([[1, 0, 0]], novelty=np.array([0.7])).unknown_score.tolist() == [0.7]


def test_parts_joined_are_the_whole(rng):
    found = of(rng.dirichlet(np.ones(3), size=20), novelty=rng.random(20))
    parts = [found.part(np.arange(7)), found.part(np.arange(7, 20))]
    again = TypeProbabilities.joined(parts)
    np.testing.assert_array_equal(again.probabilities, found.probabilities)
    np.testing.assert_array_equal(again.novelty, found.novelty)


def test_rows_that_do_not_sum_to_one_are_our_mistake():
    with pytest.raises(AssertionError):
        of([[0.5, 0.4, 0.0]])


def test_the_known_temperature_is_found(rng):
    """Labels drawn from probabilities that were sharpened afterwards: the power is undone."""
    honest = rng.dirichlet(np.ones(3), size=20_000)
    truth = np.array([*"ABC"], dtype=object)[(honest.cumsum(1) < rng.random((20_000, 1))).sum(1)]
    sharp = of(tempered(honest, 1 / 2.5))
    fitted = fit_probability_calibration(sharp, truth, precision=0.8)
    assert fitted.temperature == pytest.approx(2.5, rel=0.05)
    right = sharp.label == truth
    assert expected_calibration_error(right, fitted.apply(sharp).confidence) < 0.015
    assert fitted.facts["calibration_error_before"] > 0.1
    named = fitted.apply(sharp).confidence >= fitted.threshold
    assert right[named].mean() == pytest.approx(0.8, abs=0.01)


def test_calibration_changes_no_label_and_no_silence(rng):
    found = of(np.vstack([rng.dirichlet(np.ones(3), size=50), np.zeros(3)]))
    for temperature in (0.2, 1.0, 5.0):
        tempered_ = ProbabilityCalibration(temperature=temperature).apply(found)
        assert tempered_.label.tolist() == found.label.tolist()
        assert tempered_.probabilities[-1].tolist() == [0, 0, 0]


def test_a_precision_out_of_reach_is_told_in_the_facts(rng):
    found = of(np.tile([0.6, 0.3, 0.1], (200, 1)))
    truth = np.where(rng.random(200) < 0.5, "A", "B").astype(object)
    fitted = fit_probability_calibration(found, truth)
    assert fitted.facts["precision"] < fitted.facts["precision_wanted"]
    with pytest.raises(ConfigError, match="None of 5 cells"):
        fit_probability_calibration(found.part(np.arange(5)), np.full(5, "Z", object))


def test_cells_of_one_confidence_are_named_together():
    """A threshold cannot part them: its precision is that of all, in whatever order they come."""
    rows = [[0.9, 0.1, 0.0]] * 100 + [[0.5, 0.3, 0.2]] * 100
    truth = np.array(["A"] * 60 + ["B"] * 40 + ["B"] * 100, dtype=object)
    for order in (np.arange(200), np.arange(200)[::-1]):
        fitted = fit_probability_calibration(of(rows).part(order), truth[order])
        assert fitted.facts["precision"] == 0.6
        assert fitted.facts["coverage"] == 0.5


@pytest.mark.parametrize("n_cells", [9, 1000])
def test_cells_that_are_all_right_do_not_call_for_certainty(n_cells):
    """In closed form n / (n + 1); of the cells alone the sharpest would have the least loss."""
    found = of([[0.7, 0.3]] * n_cells, classes=("A", "B"))
    truth = np.full(n_cells, "A", dtype=object)
    fitted = fit_probability_calibration(found, truth)
    sure = fitted.apply(found).confidence
    np.testing.assert_allclose(sure, n_cells / (n_cells + 1), rtol=1e-5)


def test_neighbours_say_the_same_as_labels_and_as_probabilities(rng):
    reference = rng.normal(size=(60, 4)) + np.repeat(np.eye(4)[:3] * 3, 20, axis=0)
    voters = NeighbourClassifier.fit(
        reference, np.repeat([*"ABC"], 20).astype(object), NeighbourConfig(min_confidence=0.0)
    )
    query = np.vstack([rng.normal(size=(30, 4)) * 2, np.zeros(4)])
    one, two = voters.predict(query), voters.probabilities(query)
    assert one.label[:-1].tolist() == two.label[:-1].tolist()
    # one vote in sixteen is shared by the three labels
    np.testing.assert_allclose(two.confidence[:-1], (one.confidence[:-1] * 15 + 1 / 3) / 16)
    np.testing.assert_array_equal(one.is_unknown, two.is_outlier)
    assert two.unknown_score[-1] == 1
