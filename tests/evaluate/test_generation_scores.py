"""Scores of generated cells against plain formulas, other libraries and limits."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from scfm.evaluate.generation_baselines import binned, moments, negative_binomial, noisy
from scfm.evaluate.generation_scores import (
    SCORES,
    Truth,
    TypeCells,
    _row_space,
    auroc,
    gaussian,
    median_distance,
    mmd2,
    over_types,
    resamples,
    score_type,
)


def type_cells(profiles):
    return TypeCells(profiles, (profiles > 0).sum(1))


def truth_of(profiles, rng, n_bootstrap=0):
    weights = resamples(len(profiles), n_bootstrap, rng)
    return Truth(type_cells(profiles), weights, median_distance(profiles))


def plain_mmd2(x, y, bandwidth):
    """Gretton et al. 2012, eq. 3, by loops."""

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * bandwidth**2))

    n, m = len(x), len(y)
    within = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    made = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + made - 2 * np.mean([[k(a, b) for b in y] for a in x])


def test_mmd_is_the_published_estimator(rng):
    x, y = rng.normal(size=(9, 4)), rng.normal(0.5, 1, size=(7, 4))
    truth = truth_of(x, rng)
    found = mmd2(truth, y, np.ones((1, 7)))
    assert found[0] == pytest.approx(plain_mmd2(x, y, truth.bandwidth), rel=1e-12)


def test_mmd_of_a_resample_counts_no_cell_twice(rng):
    """A cell drawn twice is not its own neighbour: as the estimator on those pairs alone."""
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    weights = np.array([[2.0, 1, 0, 1, 2, 0]])
    truth = Truth(type_cells(x), weights, 1.3)
    kernel = gaussian(y, y, 1.3)
    drawn = np.repeat(np.arange(6), [2, 1, 0, 1, 2, 0])
    pairs = [kernel[i, j] for a, i in enumerate(drawn) for b, j in enumerate(drawn) if i != j]
    within = [truth.kernel[i, j] for i in drawn for j in drawn if i != j]
    across = gaussian(x[drawn], y[drawn], 1.3).mean()
    found = mmd2(truth, y, weights)[0]
    assert found == pytest.approx(np.mean(within) + np.mean(pairs) - 2 * across, rel=1e-12)


def test_mmd_of_equal_distributions_is_zero_on_average(rng):
    values = [
        mmd2(truth_of(rng.normal(size=(30, 5)), rng), rng.normal(size=(30, 5)), np.ones((1, 30)))[0]
        for _ in range(60)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(60)


def test_auroc_is_scikit_learns(rng):
    real, made = rng.integers(0, 6, 25).astype(float), rng.integers(1, 7, 17).astype(float)
    found = auroc(real, made, np.ones((1, 25)), np.ones((1, 17)))[0]
    truth = np.r_[np.zeros(25), np.ones(17)]
    assert found == pytest.approx(roc_auc_score(truth, np.r_[real, made]), rel=1e-12)


def test_the_regression_is_the_same_in_the_cells_own_space(rng):
    """Held-out log odds of a fit on the genes themselves."""
    x, is_made = rng.normal(size=(40, 200)), np.arange(40) % 2
    x[:, 0] += is_made
    seen = np.arange(40) < 30
    odds = []
    for features in (x - x.mean(0), _row_space(x)):
        model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(
            features[seen], is_made[seen]
        )
        odds.append(model.decision_function(features[~seen]))
    np.testing.assert_allclose(odds[1], odds[0], atol=1e-4)


def test_limits(rng):
    """The truth itself is perfect by every score but the classifier, which only guesses; a
    shuffle of genes keeps the zeros and loses the rest."""
    types = {name: rng.poisson(rng.gamma(0.5, 2, 60), size=(40, 60)).astype(float) for name in "ab"}
    profiles = {name: np.log1p(counts) for name, counts in types.items()}
    truth, other = truth_of(profiles["a"], rng), truth_of(profiles["b"], rng)
    options = {"n_genes": 60, "n_bootstrap": 0, "rng": rng}
    same = score_type(type_cells(profiles["a"]), truth, {"b": other}, **options)
    assert set(same) == set(SCORES)
    assert same["mean_r"][0] == pytest.approx(1)
    assert same["variance_r"][0] == pytest.approx(1)
    assert same["zero_gap"][0] == 0
    assert same["mmd2"][0] < 0, "unbiased: pairs across include each cell with itself"
    assert same["margin"][0] > 0
    shuffled = profiles["a"][:, rng.permutation(60)]
    worse = score_type(type_cells(shuffled), truth, {}, **options)
    assert worse["zero_gap"][0] == 0
    assert worse["mean_r"][0] < 0.6
    assert worse["mmd2"][0] > same["mmd2"][0]
    assert worse["auroc"][0] > 0.95
    assert np.isnan(worse["margin"][0]), "no other type to be confused with"


def test_means_and_variances_are_numpys(rng):
    x, y = rng.gamma(1, 2, (20, 15)), rng.gamma(1, 2, (12, 15))
    found = score_type(*(type_cells(y), truth_of(x, rng), {}), n_genes=15, n_bootstrap=0, rng=rng)
    assert found["mean_r"][0] == pytest.approx(np.corrcoef(x.mean(0), y.mean(0))[0, 1])
    assert found["variance_r"][0] == pytest.approx(np.corrcoef(x.var(0), y.var(0))[0, 1])


def test_intervals_hold_the_value(rng):
    x, y = rng.gamma(1, 2, (25, 30)), rng.gamma(1, 2, (25, 30))
    scores = score_type(
        *(type_cells(y), truth_of(x, rng, 60), {}), n_genes=30, n_bootstrap=60, rng=rng
    )
    scores["margin"] = np.zeros(61)
    for score in over_types([scores, scores]).values():
        interval = score.interval()
        assert interval.low <= interval.value <= interval.high


def test_noise_keeps_totals_and_expectation(rng):
    counts = sp.csr_matrix(np.array([[4, 0, 12], [0, 30, 10]]))
    found = noisy(counts, 4000, rng).toarray()
    from_first = found[:, 1] == 0
    assert from_first.mean() == pytest.approx(0.5, abs=0.05)
    assert (found[from_first].sum(1) == 16).all()
    assert (found[~from_first].sum(1) == 40).all()
    np.testing.assert_allclose(found[from_first].mean(0), [4, 0, 12], atol=0.2)
    assert found[from_first][:, 0].var() == pytest.approx(16 * 0.25 * 0.75, rel=0.15)


def test_moments_of_a_negative_binomial(rng):
    """Recovered from 20,000 cells whose totals vary; a Poisson gene has dispersion near 0."""
    total, share = rng.integers(500, 1500, 20_000), np.array([0.01, 0.03])
    mean = total[:, None] * share
    shape = 2.0
    counts = rng.poisson(mean * np.c_[rng.gamma(shape, 1 / shape, 20_000), np.ones(20_000)])
    rest = total - counts.sum(1)
    p, a = moments(sp.csr_matrix(np.c_[counts, rest]))
    np.testing.assert_allclose(p[:2], share, rtol=0.03)
    assert a[0] == pytest.approx(1 / shape, rel=0.06)
    assert a[1] < 0.01


def test_negative_binomial_cells_have_its_moments(rng):
    counts = sp.csr_matrix(rng.poisson(rng.gamma(0.7, 8, (300, 12))) + 1)
    p, a = moments(counts)
    total = np.asarray(counts.sum(1)).ravel()
    made = negative_binomial(counts, 6000, rng).toarray()
    np.testing.assert_allclose(made.mean(0), p * total.mean(), rtol=0.1)
    expected = p * total.mean() + a * p**2 * (total**2).mean() + p**2 * total.var()
    np.testing.assert_allclose(made.var(0), expected, rtol=0.2)
    assert (made.sum(1) > 0).all()


def test_bins_keep_the_order_and_the_genes(rng):
    counts = sp.csr_matrix(rng.poisson(rng.gamma(0.5, 6, (8, 40))) + np.eye(8, 40, dtype=int))
    found = binned(counts, 10)
    assert ((found.toarray() > 0) == (counts.toarray() > 0)).all()
    np.testing.assert_allclose(found.sum(1), 1e4)
    for before, after in zip(counts.toarray(), found.toarray(), strict=True):
        order = np.argsort(before, kind="stable")
        assert (np.diff(after[order]) >= 0).all()
    fine = binned(counts, 20_000)
    cp10k = 1e4 * counts.toarray() / counts.sum(1).A
    np.testing.assert_allclose(fine.toarray(), cp10k, rtol=5e-3)
