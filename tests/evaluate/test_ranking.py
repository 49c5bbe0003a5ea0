import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from scfm.evaluate.ranking import ranking


@pytest.mark.parametrize("decimals", [1, 8])
def test_every_resample_is_scikit_learns_with_weights(rng, decimals):
    """Ties (one decimal) and none."""
    n = 300
    is_bound = rng.random(n) < 0.2
    score = np.round(rng.normal(size=n) + is_bound, decimals)
    unit = rng.integers(0, 5, n)
    weight = rng.multinomial(5, [0.2] * 5, size=6)
    found = ranking(is_bound, score, unit, weight)
    for r, drawn in enumerate(weight):
        own = drawn[unit]
        wanted = average_precision_score(is_bound, score, sample_weight=own)
        np.testing.assert_allclose(found.aupr[r], wanted, rtol=1e-10)
        wanted = roc_auc_score(is_bound, score, sample_weight=own)
        np.testing.assert_allclose(found.auroc[r], wanted, rtol=1e-10)
        np.testing.assert_allclose(found.prevalence[r], own[is_bound].sum() / own.sum())


def test_precision_at_the_threshold_that_reaches_a_recall():
    is_bound = np.array([True, False, True, False, False, True, False, True, False, False])
    score = np.arange(10, 0, -1.0)
    found = ranking(is_bound, score, np.zeros(10, dtype=np.int64), np.ones((1, 1)))
    assert found.precision_at_10[0] == 1  # the first is bound: recall 1 in 4
    assert found.precision_at_50[0] == pytest.approx(2 / 3)  # recall 2 in 4 at the third


def test_a_constant_score_has_the_prevalence():
    is_bound = np.array([True, False, False, False])
    found = ranking(is_bound, np.zeros(4), np.zeros(4, dtype=np.int64), np.ones((1, 1)))
    assert (found.aupr[0], found.auroc[0], found.precision_at_50[0]) == (0.25, 0.5, 0.25)


def test_a_resample_without_bound_regions_has_no_score():
    found = ranking(
        np.array([True, False, False]),
        np.array([3.0, 2.0, 1.0]),
        np.array([0, 0, 1]),
        np.array([[1, 1], [0, 2]]),
    )
    assert found.aupr[0] == 1
    assert np.isnan(found.aupr[1])
    assert found.prevalence[1] == 0
