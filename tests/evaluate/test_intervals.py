"""Bootstrap intervals against the binomial's closed form and a plain loop over resamples."""

import numpy as np
import pytest

from scfm.evaluate.intervals import bootstrap_scores
from scfm.metrics import accuracy, balanced_accuracy, macro_f1


@pytest.fixture
def cells(rng):
    truth = np.array(list("ABC"), dtype=object)[rng.choice(3, 800, p=[0.6, 0.3, 0.1])]
    guess = np.array(["A", "B", "C", "unknown"], dtype=object)[rng.integers(0, 4, 800)]
    good = np.where(rng.random(800) < 0.8, truth, guess)
    poor = np.where(rng.random(800) < 0.4, truth, guess)
    return truth, {"good": good, "poor": poor}


def test_accuracy_spreads_as_the_binomial(cells):
    truth, predictions = cells
    found = bootstrap_scores(truth, predictions, n_bootstrap=20_000)["good"]["accuracy"]
    p = accuracy(truth, predictions["good"])
    assert found.value == pytest.approx(p)
    standard_error = np.sqrt(p * (1 - p) / len(truth))
    assert found.draws.mean() == pytest.approx(p, abs=4 * standard_error / np.sqrt(20_000))
    assert found.draws.std() == pytest.approx(standard_error, rel=0.03)
    interval = found.interval()
    assert interval.low == pytest.approx(p - 1.96 * standard_error, abs=0.002)
    assert interval.high == pytest.approx(p + 1.96 * standard_error, abs=0.002)


def test_paired_difference_spreads_as_the_paired_variance(cells):
    truth, predictions = cells
    scores = bootstrap_scores(truth, predictions, n_bootstrap=20_000)
    gain = (predictions["good"] == truth).astype(float) - (predictions["poor"] == truth)
    standard_error = gain.std() / np.sqrt(len(truth))
    found = scores["good"]["accuracy"].minus(scores["poor"]["accuracy"])
    assert found.value == pytest.approx(gain.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * standard_error, rel=0.04)


def test_macro_f1_and_balanced_accuracy_spread_as_a_loop_over_cells(cells, rng):
    truth, predictions = cells
    found = bootstrap_scores(truth, predictions, n_bootstrap=4_000)["poor"]
    drawn = [rng.integers(0, 800, 800) for _ in range(1_000)]
    for name, score in {"macro_f1": macro_f1, "balanced_accuracy": balanced_accuracy}.items():
        loop = np.array([score(truth[i], predictions["poor"][i]) for i in drawn])
        ours = found[name].draws
        assert ours.mean() == pytest.approx(loop.mean(), abs=5 * loop.std() / np.sqrt(1_000))
        assert ours.std() == pytest.approx(loop.std(), rel=0.1)


def test_same_seed_same_draws_whatever_the_order_of_cells(cells, rng):
    truth, predictions = cells
    shuffled = rng.permutation(len(truth))
    moved = {key: p[shuffled] for key, p in predictions.items()}
    one = bootstrap_scores(truth, predictions, n_bootstrap=50, seed=3)
    two = bootstrap_scores(truth[shuffled], moved, n_bootstrap=50, seed=3)
    other = bootstrap_scores(truth, predictions, n_bootstrap=50, seed=4)
    np.testing.assert_array_equal(one["good"]["macro_f1"].draws, two["good"]["macro_f1"].draws)
    assert (one["good"]["macro_f1"].draws != other["good"]["macro_f1"].draws).any()


def test_draws_do_not_hang_on_how_many_are_held_at_a_time(cells, monkeypatch):
    truth, predictions = cells
    whole = bootstrap_scores(truth, predictions, n_bootstrap=40)
    monkeypatch.setattr("scfm.evaluate.intervals.DRAWN_AT_ONCE", 100)
    parts = bootstrap_scores(truth, predictions, n_bootstrap=40)
    np.testing.assert_array_equal(whole["poor"]["macro_f1"].draws, parts["poor"]["macro_f1"].draws)


def test_a_method_against_itself_differs_by_nothing(cells):
    truth, predictions = cells
    scores = bootstrap_scores(truth, {"a": predictions["good"], "b": predictions["good"]})
    difference = scores["a"]["macro_f1"].minus(scores["b"]["macro_f1"])
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_no_resamples_are_refused(cells):
    with pytest.raises(ValueError, match="n_bootstrap must be at least 1"):
        bootstrap_scores(*cells, n_bootstrap=0)
