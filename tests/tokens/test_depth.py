"""Read-depth down-sampling: against scipy's binomial, and the moments of the published scheme."""

import numpy as np
import pytest
import scipy.stats

from scfm.tokens.depth import round_expected, thin, thin_counts
from scfm.tokens.rng import DEPTH, cell_keys, open_stream


def thin_at(rate: float, counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Counts of one cell thinned at a given rate."""
    start, step = open_stream(cell_keys(seed, 0, np.zeros(1, int))[0], DEPTH)
    stream = np.uint64(start), np.uint64(step)
    thinned, lanes = np.empty_like(counts), np.empty(len(counts) + 2, np.uint64)
    total = thin_counts(counts, len(counts), np.uint64(int(rate * 2**64)), stream, lanes, thinned)
    assert total == thinned.sum()
    return thinned


def binomial_pvalue(drawn: np.ndarray, n: int, rate: float) -> float:
    """Chi-square of draws against scipy.stats.binom, in up to 22 bins."""
    law = scipy.stats.binom(n, rate)
    shares = np.concatenate([[0.002], np.linspace(0.05, 0.95, 19), [0.998]])
    edges = np.unique(law.ppf(shares))
    expected = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]])) * len(drawn)
    observed = np.bincount(np.searchsorted(edges, drawn), minlength=len(expected))
    is_filled = expected > 1e-9
    assert observed[~is_filled].sum() == 0
    return scipy.stats.chisquare(observed[is_filled], expected[is_filled]).pvalue


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.618, 0.97])
@pytest.mark.parametrize("n", [1, 2, 16, 17, 63, 64, 65, 500, 4000])
def test_is_binomial(n, rate):
    assert binomial_pvalue(thin_at(rate, np.full(6000, n)), n, rate) > 1e-4


@pytest.mark.parametrize("rate", [0.2, 0.75])
def test_molecules_are_independent_of_each_other(rate):
    # sums over genes that share random words must be binomial too
    counts = np.tile([1, 3, 1, 60, 1, 2], 50)
    totals = np.array([thin_at(rate, counts, seed).sum() for seed in range(3000)])
    assert binomial_pvalue(totals, counts.sum(), rate) > 1e-4


def test_a_molecule_is_kept_as_often_wherever_its_count_stands():
    drawn = np.array([thin_at(0.4, np.array([1, 62, 5, 200, 63, 1]), seed) for seed in range(4000)])
    np.testing.assert_allclose(drawn.mean(0) / [1, 62, 5, 200, 63, 1], 0.4, atol=0.03)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 4.5 / np.sqrt(len(drawn))


@pytest.fixture(scope="module")
def many():
    """40,000 cells of the same 5,000 molecules, thinned with the defaults."""
    counts = np.array([0, 1, 0, 1, 2, 6, 40, 150, 800, 4000])
    indptr = np.arange(40_001) * len(counts)
    keys = cell_keys(1, 0, np.arange(40_000))
    thinned, rates = thin(indptr, np.tile(counts, 40_000), keys)
    return counts, thinned.reshape(-1, len(counts)), rates


def test_moments_of_the_published_scheme(many):
    # item E of the specification
    counts, thinned, rates = many
    share = thinned.sum(1) / counts.sum()
    is_thinned = rates < 1
    assert is_thinned.mean() == pytest.approx(0.5, abs=0.01)
    assert (share < 1).mean() == pytest.approx(0.5, abs=0.01)
    assert share.mean() == pytest.approx(0.75, abs=0.01)
    assert share[is_thinned].mean() == pytest.approx(0.5, abs=0.006)
    assert share[is_thinned].var() == pytest.approx(0.05 + 0.2 / 5000, abs=0.0015)
    assert (rates[is_thinned] < 0.1).mean() == pytest.approx(0.028, abs=0.004)
    assert (rates[is_thinned] < 0.2).mean() == pytest.approx(0.104, abs=0.007)
    assert scipy.stats.kstest(rates[is_thinned], scipy.stats.beta(2, 2).cdf).pvalue > 1e-3


def test_zeros_stay_zero_and_nothing_is_added(many):
    counts, thinned, rates = many
    assert (thinned[:, counts == 0] == 0).all()
    assert (thinned <= counts).all()
    np.testing.assert_array_equal(thinned[rates == 1], np.tile(counts, ((rates == 1).sum(), 1)))


def test_genes_share_the_cells_rate(many):
    _, thinned, rates = many
    np.testing.assert_allclose(thinned[:, 9] / 4000, rates, atol=5 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize(("total", "is_thinned"), [(999, False), (1000, True)])
def test_cells_below_the_minimum_stay(total, is_thinned):
    keys = cell_keys(0, 0, np.arange(200))
    thinned, _ = thin(np.arange(201), np.full(200, total), keys, probability=1.0)
    assert (thinned < total).all() == is_thinned
    assert (thinned == total).all() != is_thinned


def test_a_cell_is_never_emptied():
    keys = cell_keys(0, 0, np.arange(2000))
    thinned, rates = thin(np.arange(2001), np.ones(2000, int), keys, probability=1.0, min_counts=1)
    assert (thinned == 1).all()
    # the one molecule survived the thinning in about half of the cells
    assert (rates < 1).mean() == pytest.approx(0.5, abs=0.05)


def test_expected_counts_are_rounded_without_bias(rows_of, columns):
    expected = np.array([0.25, 1.0, 2.9, 1e-3, 0.5, 0.75, 3.1])
    column_to_gene = np.array([4, 0, 2, 1, -1, -1, -1])
    n_cells = 20_000
    rows = rows_of(np.tile(expected, (n_cells, 1)))
    rounded = round_expected(rows, column_to_gene, 5, cell_keys(0, 0, rows.cell_index))
    assert rounded.counts.dtype == np.int32
    assert rounded.counts.min() == 1
    totals = np.zeros((n_cells, len(expected)))
    totals[np.repeat(np.arange(n_cells), np.diff(rounded.indptr)), rounded.indices] = rounded.counts
    np.testing.assert_allclose(totals.mean(0)[:4], expected[:4], atol=0.015)
    assert set(totals[:, 2]) == {2, 3}
    assert set(totals[:, 4:].sum(1)) == {4, 5}  # of 4.35 outside the vocabulary
    assert totals[:, 4:].sum(1).mean() == pytest.approx(4.35, abs=0.015)


def test_whole_counts_are_not_rounded(cells, rows_of):
    rows = rows_of(cells)
    keys = cell_keys(0, 0, rows.cell_index)
    assert round_expected(rows, np.arange(cells.shape[1]), cells.shape[1], keys) is rows
