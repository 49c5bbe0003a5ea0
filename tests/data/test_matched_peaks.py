import numpy as np

from scfm.data.matched_peaks import matched_peaks


def test_backgrounds_are_alike_and_of_open_peaks(rng):
    n = 3000
    accessibility = rng.lognormal(2, 1, n).round()
    gc = np.clip(0.45 + 0.05 * np.log1p(accessibility) + rng.normal(0, 0.05, n), 0, 1)
    found = matched_peaks(accessibility, gc, n=20, seed=1)
    assert found.shape == (20, n)
    is_open = accessibility > 0
    assert (accessibility[found[:, is_open]] > 0).all()
    np.testing.assert_array_equal(found[:, ~is_open], np.flatnonzero(~is_open)[None].repeat(20, 0))
    for values, spread in ((np.log10(np.maximum(accessibility, 1)), 0.1), (gc, 0.02)):
        gap = np.abs(values[found[:, is_open]] - values[is_open])
        assert np.median(gap) < spread  # of random pairs: 0.4 and 0.08
    assert (found[:, is_open] != np.flatnonzero(is_open)).mean() > 0.7
    np.testing.assert_array_equal(found, matched_peaks(accessibility, gc, n=20, seed=1))
    assert (found != matched_peaks(accessibility, gc, n=20, seed=2)).any()


def test_without_gc_by_accessibility_alone(rng):
    accessibility = np.repeat([1.0, 1000.0], 50)
    for gc in (None, np.full(100, np.nan), np.full(100, 0.5)):
        found = matched_peaks(accessibility, gc, n=5)
        assert ((found < 50) == (np.arange(100) < 50)).all()


def test_few_or_no_peaks():
    assert matched_peaks(np.zeros(4), None, n=3).tolist() == [[0, 1, 2, 3]] * 3
    assert set(matched_peaks(np.array([0.0, 5.0]), None, n=3)[:, 1]) == {1}
    assert matched_peaks(np.zeros(0), None, n=3).shape == (3, 0)
