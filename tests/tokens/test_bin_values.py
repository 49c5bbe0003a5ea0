"""Bins back to values: the equation solved, the closed form of one gene, shares, counts."""

import numpy as np
import pytest
from scipy.optimize import brentq

from scfm.tokens.bin_values import bin_scale, counts_from_values, values_from_bins


def test_one_gene_has_all_counts():
    """expm1(x) = 10^4 * share, whatever its bin."""
    for bin_ in (1, 4, 10):
        found = values_from_bins(np.array([0, 1]), np.array([bin_]), 10, share=0.4)
        np.testing.assert_allclose(found, np.log1p(4000), rtol=1e-12)


def test_the_scale_is_the_root(rng):
    """Against scipy's bracketing solver."""
    histogram = rng.poisson(30, (20, 10)) * rng.integers(0, 2, (20, 10))
    histogram[0] = 0
    histogram[1] = [0] * 9 + [1]
    histogram[2] = [4000] + [0] * 9
    found = bin_scale(histogram, 1e4)
    middle = (np.arange(10) + 0.5) / 10
    assert found[0] == 0
    for s, genes in zip(found[1:], histogram[1:], strict=True):
        root = brentq(lambda s, genes=genes: genes @ np.expm1(s * middle) - 1e4, 1e-9, 400)
        assert s == pytest.approx(root, rel=1e-9)


def test_values_sum_to_the_share_and_rise_with_the_bin(rng):
    indptr = np.array([0, 40, 40, 100])  # the second cell says nothing
    bins = rng.integers(0, 11, 100)
    values = values_from_bins(indptr, bins, 10, share=0.7)
    assert (values[bins == 0] == 0).all()
    for first, last in ((0, 40), (40, 100)):
        assert np.expm1(values[first:last]).sum() == pytest.approx(7000)
        some = bins[first:last] > 0
        ratio = values[first:last][some] / (bins[first:last][some] - 0.5)
        np.testing.assert_allclose(ratio, ratio[0])


def test_real_values_come_back_within_half_a_bin(rng):
    """Through np.digitize and back: the scale is off by what the middles of bins are off."""
    counts = rng.poisson(rng.gamma(0.5, 4, 300))
    x = np.log1p(1e4 * counts / counts.sum())
    bins = np.digitize(x, np.linspace(0, x.max(), 11), right=True)
    found = values_from_bins(np.array([0, 300]), bins, 10)
    assert np.abs(found - x).max() < x.max() / 10
    assert np.corrcoef(found, x)[0, 1] > 0.99


@pytest.mark.parametrize(("bins", "share"), [([11], 1.0), ([-1], 1.0), ([3], 0.0), ([3], 1.1)])
def test_impossible_values_are_refused(bins, share):
    with pytest.raises(ValueError, match=r"bins are 0 to 10|share must be"):
        values_from_bins(np.array([0, 1]), np.array(bins), 10, share=share)


def test_counts_are_multinomial(rng):
    """Sums exact, means of many cells near the shares; a cell's draw is its own."""
    values = np.log1p(np.array([6000.0, 3000.0, 1000.0, 0.0]))
    many = np.tile(values, 400)
    indptr = np.arange(0, 1601, 4)
    found = counts_from_values(indptr, many, 500, seed=3).reshape(400, 4)
    assert (found.sum(1) == 500).all()
    spread = np.sqrt(500 * 0.25 / 400)
    np.testing.assert_allclose(found.mean(0), [300, 150, 50, 0], atol=5 * spread)
    fewer = counts_from_values(indptr[:11], many[:40], 500, seed=3).reshape(10, 4)
    np.testing.assert_array_equal(fewer, found[:10])
    empty = counts_from_values(np.array([0, 2]), np.zeros(2), 500, seed=3)
    np.testing.assert_array_equal(empty, 0)
