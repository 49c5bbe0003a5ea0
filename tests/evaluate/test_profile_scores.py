"""Scores of profiles against closed forms, SciPy and resamples made by hand."""

import numpy as np
import pytest
from scipy import stats

from scfm.evaluate.profile_scores import SCORES, pearson_rows, score_profiles


def score(truth, predicted, n_bootstrap=20, seed=0):
    return score_profiles(truth, {"it": predicted}, n_bootstrap=n_bootstrap, seed=seed)["it"]


def test_errors_by_hand():
    truth = np.array([[0.0, 2.0, 4.0], [1.0, 0.0, 0.0]])
    predicted = np.array([[1.0, 1.0, 4.0], [3.0, 0.5, 0.0]])
    found = score(truth, predicted)
    assert found["mae"].value == pytest.approx((1 + 1 + 0 + 2 + 0.5 + 0) / 6)
    assert found["mae_nonzero"].value == pytest.approx((1 + 0 + 2) / 3)
    assert found["mre"].value == pytest.approx((0.5 + 0 + 2) / 3)


def test_correlations_are_scipys(rng):
    truth, predicted = rng.gamma(2, size=(30, 12)), rng.gamma(2, size=(30, 12))
    found = score(truth, predicted)
    by_cell = np.mean([stats.pearsonr(t, p)[0] for t, p in zip(truth, predicted, strict=True)])
    by_gene = np.mean([stats.pearsonr(t, p)[0] for t, p in zip(truth.T, predicted.T, strict=True)])
    assert found["pearson_cell"].value == pytest.approx(by_cell, rel=1e-10)
    assert found["pearson_gene"].value == pytest.approx(by_gene, rel=1e-10)


def test_constant_predictions_tell_nothing_and_constant_truth_is_left_out():
    truth = np.array([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0], [3.0, 1.0, 5.0]])
    predicted = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0], [3.0, 1.0, 5.0]])
    rows = pearson_rows(truth, predicted)
    np.testing.assert_allclose(rows, [0, np.nan, 1], atol=1e-12)
    found = score(truth, predicted)
    assert found["pearson_cell"].value == pytest.approx(0.5)
    columns = pearson_rows(truth.T, predicted.T)
    assert found["pearson_gene"].value == pytest.approx(np.nanmean(columns))


def test_the_truth_itself_is_perfect(rng):
    truth = rng.poisson(1.0, size=(20, 15)).astype(float)
    found = score(truth, truth)
    assert [round(found[name].value, 12) for name in SCORES] == [0, 0, 0, 1, 1]
    assert found["mae"].interval().high == 0


def test_resamples_are_cells_drawn_with_replacement(rng):
    """Oracle: repeat the drawn cells and score the larger table anew."""
    truth = rng.poisson(1.5, size=(12, 30)).astype(float)
    predicted = truth + rng.normal(size=truth.shape)
    found = score(truth, predicted, n_bootstrap=3, seed=7)
    draws = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=3)
    tables = [np.repeat(np.arange(12), times) for times in draws]
    expected = [score(truth[rows], predicted[rows], n_bootstrap=1) for rows in tables]
    for name in SCORES:
        theirs = np.array([one[name].value for one in expected])
        if name == "pearson_gene":  # centred on the value
            theirs += found[name].value - theirs.mean()
        np.testing.assert_allclose(found[name].draws, theirs, rtol=1e-9, err_msg=name)


def test_methods_share_their_resamples(rng):
    truth = rng.poisson(1.5, size=(12, 30)).astype(float)
    predicted = truth + rng.normal(size=truth.shape)
    both = score_profiles(truth, {"a": predicted, "b": predicted + 0}, n_bootstrap=9, seed=0)
    difference = both["a"]["mae"].minus(both["b"]["mae"])
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
