"""The probe: scikit-learn's own answer, the penalty of least held-out loss, shares taken out."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from scfm.tasks.celltype_features import Seen
from scfm.tasks.celltype_probe import PENALTIES, fit_probe, spread_of, strongest


def cells(rng, n_types, n=300):
    """Vectors of uneven scale, and the values of eight genes, one of which no cell has."""
    types = rng.integers(0, n_types, n)
    types[: n // 2] = 0
    means = rng.normal(size=(n_types, 6))
    vectors = rng.normal(size=(n, 6)) * [1, 5, 1, 1, 0.2, 1] + means[types]
    values = rng.poisson(0.5, (n, 8)) * (np.arange(8) != 3)
    return Seen(vectors, sp.csr_matrix(values.astype(float))), types


@pytest.mark.parametrize("n_types", [2, 4])
def test_probe_is_scikit_learns_regression(rng, n_types):
    (seen, y), (held, truth) = cells(rng, n_types), cells(rng, n_types, 80)
    probe = fit_probe(seen, y, held, truth, n_types, "weights", (0.1,))

    def design(one):
        standard = (one.vectors - seen.vectors.mean(0)) / seen.vectors.std(0)
        return np.hstack([standard, one.values.toarray()])

    theirs = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000, tol=1e-8)
    expected = theirs.fit(design(seen), y).predict_proba(design(held))
    np.testing.assert_allclose(softmax(probe.scores(held), axis=1), expected, atol=2e-3)
    assert (probe.weights["gene_weight.weight"][3] == 0).all()


@pytest.mark.parametrize("reads", ["vectors", "values"])
def test_either_part_may_be_left_out(rng, reads):
    seen, y = cells(rng, 3)
    if reads == "vectors":
        part = Seen(seen.vectors, sp.csr_matrix((300, 0)))
        wanted = {"bias", "mean", "scale", "linear.weight"}
    else:
        part, wanted = Seen(np.zeros((300, 0)), seen.values), {"bias", "gene_weight.weight"}
    assert set(fit_probe(part, y, part, y, 3, "none", (1.0,)).weights) == wanted


def test_the_strongest_penalty_within_an_error_of_the_best_is_kept():
    """The error is that of the best one's mean: 0.1 here."""
    noise = np.tile([-1.0, 1.0], 50)
    losses = [noise + mean for mean in (1.3, 1.09, 1.0, 1.05)]
    assert strongest((0.01, 0.1, 1.0, 10.0), losses) == 1
    assert strongest((10.0, 1.0, 0.1, 0.01), losses) == 3


def test_the_losses_of_all_penalties_are_told(rng):
    (seen, y), (held, truth) = cells(rng, 3, 60), cells(rng, 3, 500)
    probe = fit_probe(seen, y, held, truth, 3, "weights")
    assert list(map(float, probe.losses)) == list(PENALTIES)
    found = fit_probe(seen, y, held, truth, 3, "weights", (probe.inverse_penalty,))
    assert found.losses[f"{probe.inverse_penalty:g}"] == probe.losses[f"{probe.inverse_penalty:g}"]


def test_adjusted_scores_have_the_shares_taken_out(rng):
    """Vectors that say nothing: each type is as likely as the next, though half are the first."""
    _, y = cells(rng, 3, 900)
    seen = Seen(rng.normal(size=(900, 2)), sp.csr_matrix((900, 0)))
    middle = Seen(np.zeros((1, 2)), sp.csr_matrix((1, 0)))
    probe = fit_probe(seen, y, seen, y, 3, "logits", (1e-4,))
    np.testing.assert_allclose(softmax(probe.scores(middle), axis=1), 1 / 3, atol=0.02)
    plain = fit_probe(seen, y, seen, y, 3, "none", (1e-4,))
    shares = np.bincount(y) / 900
    np.testing.assert_allclose(softmax(plain.scores(middle))[0], shares, atol=0.02)


def test_a_constant_number_keeps_its_scale():
    """Another value of it later is no earthquake."""
    vectors = np.stack([np.full(50, 3.0), np.arange(50.0), np.full(50, 3.0) + 1e-9], axis=1)
    np.testing.assert_allclose(spread_of(vectors), [1, np.arange(50).std(), 1])
