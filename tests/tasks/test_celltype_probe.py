"""The probe: scikit-learn's own answer, the penalty of least held-out loss, shares taken out."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scfm.tasks.celltype_probe import fit_probe


def cells(rng, n_types, n=300):
    types = rng.integers(0, n_types, n)
    types[: n // 2] = 0
    means = rng.normal(size=(n_types, 6))
    return rng.normal(size=(n, 6)) * [1, 5, 1, 1, 0.2, 1] + means[types], types


@pytest.mark.parametrize("n_types", [2, 4])
def test_probe_is_scikit_learns_regression(rng, n_types):
    x, y = cells(rng, n_types)
    held, truth = cells(rng, n_types, 80)
    probe = fit_probe(x, y, held, truth, n_types, "weights", (0.1,))
    theirs = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    ).fit(x, y)
    ours = softmax(probe.scores(held), axis=1)
    np.testing.assert_allclose(ours, theirs.predict_proba(held), atol=1e-6)


def test_the_penalty_of_least_held_out_loss_is_kept(rng):
    x, y = cells(rng, 3, 60)
    held, truth = cells(rng, 3, 500)
    probe = fit_probe(x, y, held, truth, 3, "weights")
    best = min(probe.losses, key=lambda c: probe.losses[c])
    assert float(best) == probe.inverse_penalty
    assert len(probe.losses) == 8


def test_adjusted_scores_have_the_shares_taken_out(rng):
    """Features that say nothing: each type is as likely as the next, though half are the first."""
    _, y = cells(rng, 3, 900)
    x = rng.normal(size=(900, 2))
    probe = fit_probe(x, y, x, y, 3, "logits", (1e-4,))
    np.testing.assert_allclose(softmax(probe.scores(np.zeros((1, 2))), axis=1), 1 / 3, atol=0.02)
    plain = fit_probe(x, y, x, y, 3, "none", (1e-4,))
    shares = np.bincount(y) / 900
    np.testing.assert_allclose(softmax(plain.scores(np.zeros((1, 2))))[0], shares, atol=0.02)
