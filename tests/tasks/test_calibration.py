"""Temperature and threshold: found again where they are known, and the file that keeps them."""

import json

import numpy as np
import pytest
import scipy.stats

from scfm.errors import ConfigError, ModelError
from scfm.tasks.calibration import (
    LEAST_CALLED,
    Calibration,
    fit_calibration,
    fit_temperature,
    lowest_threshold,
    wilson,
)
from scfm.tasks.type_calls import TypeLogits, call_types, probabilities


def drawn(rng, n_cells=20_000, n_words=6, temperature=1.0, scale=2.0):
    """Logits, and whether the best word is the one drawn from their softmax at a temperature."""
    logits = scale * rng.normal(size=(n_cells, n_words))
    shares = probabilities(logits, temperature)
    truth = (shares.cumsum(1) < rng.random((n_cells, 1))).sum(1)
    return TypeLogits((logits,)), truth == logits.argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(rng, temperature):
    logits, is_correct = drawn(rng, temperature=temperature)
    assert fit_temperature(logits, is_correct) == pytest.approx(temperature, rel=0.06)


def test_two_levels_share_the_temperature(rng):
    coarse, right = drawn(rng, temperature=2.0)
    fine, right_after = drawn(rng, temperature=2.0)
    logits = TypeLogits((coarse.levels[0], fine.levels[0]))
    assert fit_temperature(logits, right & right_after) == pytest.approx(2.0, rel=0.06)


def test_calibrated_confidence_is_the_share_that_is_right(rng):
    logits, is_correct = drawn(rng, temperature=3.0, scale=6.0)
    found = fit_calibration(logits, is_correct, 0.8)
    assert found.facts["calibration_error"] < 0.02 < found.facts["calibration_error_before"]
    named = call_types(logits, found.temperature).confidence >= found.threshold
    assert is_correct[named].mean() == pytest.approx(found.facts["precision"])
    assert is_correct[named].mean() >= 0.8
    assert named.mean() == pytest.approx(found.facts["coverage"])
    # on cells it was not fitted on
    others, right = drawn(rng, temperature=3.0, scale=6.0)
    named = call_types(others, found.temperature).confidence >= found.threshold
    assert right[named].mean() == pytest.approx(0.8, abs=0.03)


def test_threshold_by_trying_all(rng):
    confidence = np.round(rng.random(400), 2)
    is_correct = rng.random(400) < confidence
    found = lowest_threshold(confidence, is_correct, 0.75)
    tried = {
        t: is_correct[confidence >= t].mean()
        for t in np.unique(confidence)
        if (confidence >= t).sum() >= LEAST_CALLED
    }
    expected = min(t for t, share in tried.items() if share >= 0.75)
    assert expected - 0.01 < found.confidence < expected
    assert found.precision == tried[expected]
    assert found.coverage == (confidence >= expected).mean()


def test_the_interval_is_scipys():
    theirs = scipy.stats.binomtest(45, 60).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(wilson(0.75, 60), theirs, rtol=1e-4)


def test_all_cells_right_leaves_none_unknown():
    found = lowest_threshold(np.linspace(0.2, 1, 30), np.ones(30, dtype=bool), 0.95)
    assert (found.confidence, found.precision, found.coverage) == (0.0, 1.0, 1.0)


def test_precision_out_of_reach_is_said():
    confidence, is_correct = np.linspace(0, 1, 100), np.arange(100) % 2 == 0
    with pytest.raises(ConfigError, match=r"No threshold makes 90% .* the best, .*--precision"):
        lowest_threshold(confidence, is_correct, 0.9)
    with pytest.raises(ValueError, match="precision must lie"):
        fit_calibration(TypeLogits((np.zeros((3, 2)),)), np.ones(3, dtype=bool), 1.5)


def test_kept_in_the_models_folder(tmp_path):
    found = Calibration(temperature=1.7, threshold=0.31, weights_sha256="ab", facts={"n_cells": 3})
    path = found.save(tmp_path)
    assert Calibration.read(json.loads(path.read_text())) == found
    assert path.name == "calibration.json"
    assert not Calibration().is_fitted
    for wrong in ({"temperature": -1}, {"heat": 2}, {"threshold": "high"}):
        with pytest.raises(ModelError, match="no calibration"):
            Calibration.read(wrong)


def test_calls_that_are_all_right_do_not_call_for_certainty():
    """In closed form n / (n + 1)."""
    logits = TypeLogits((np.tile([1.0, 0.0], (50, 1)),))
    temperature = fit_temperature(logits, np.ones(50, dtype=bool))
    sure = call_types(logits, temperature).confidence
    np.testing.assert_allclose(sure, 50 / 51, rtol=1e-5)
