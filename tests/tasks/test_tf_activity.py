from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp

from scfm.errors import ConfigError
from scfm.tasks import tf_activity
from scfm.tasks.tf_activity import deviations, open_peaks, top2_shares
from scfm.tasks.tf_names import blocks_of, find_tfs


@pytest.fixture
def cells(rng):
    counts = rng.poisson(0.4, (7, 40))
    counts[3] = 0
    return counts


def test_deviations_are_the_closed_form(cells, rng, monkeypatch):
    probability = rng.random((40, 5))
    background = rng.integers(0, 40, (9, 40))
    monkeypatch.setattr(tf_activity, "N_AT_ONCE", 90)  # two cells at a time
    found = deviations(open_peaks(sp.csr_matrix(cells)), probability, background)
    for cell, counts in enumerate(cells):
        peaks = np.flatnonzero(counts)
        if len(peaks) == 0:
            assert np.isnan(found[cell]).all()
            continue
        own = probability[peaks].mean(0)
        others = np.stack([probability[other[peaks]].mean(0) for other in background])
        wanted = (own - others.mean(0)) / others.std(0, ddof=1)
        np.testing.assert_allclose(found[cell], wanted, rtol=2e-5)


def test_a_tf_alike_everywhere_deviates_nowhere(cells):
    background = np.tile(np.arange(40)[::-1], (3, 1))
    found = deviations(open_peaks(sp.csr_matrix(cells)), np.full((40, 2), 0.3), background)
    assert (found[[0, 1, 2, 4, 5, 6]] == 0).all()


def test_more_counts_than_the_threshold_are_open(cells):
    np.testing.assert_array_equal(open_peaks(sp.csr_matrix(cells), 1).toarray(), cells > 1)


def test_top2_is_scfans_score(cells, rng):
    """Counted as its authors do: a list of the two top TFs of every peak, then shares of it."""
    tfs = ["A", "B", "C", "D", "E"]
    probability = rng.random((40, 5))
    found = top2_shares(open_peaks(sp.csr_matrix(cells)), probability)
    for cell, counts in enumerate(cells):
        listed = []
        for peak in np.flatnonzero(counts):
            listed += [tfs[i] for i in np.argsort(probability[peak])[::-1][:2]]
        if not listed:
            assert np.isnan(found[cell]).all()
            continue
        counted = Counter(listed)
        wanted = [counted[tf] / sum(counted.values()) for tf in tfs]
        np.testing.assert_allclose(found[cell], wanted, rtol=1e-6)


def test_blocks_vote_apart(cells, rng):
    tasks = ("CTCF:GM12878", "MAX:GM12878", "SP1:GM12878", "CTCF:K562", "REST:K562", "MAX:K562")
    probability = rng.random((40, 6))
    is_open = open_peaks(sp.csr_matrix(cells[:3]))
    found = top2_shares(is_open, probability, blocks_of(tasks))
    for columns in ([0, 1, 2], [3, 4, 5]):
        alone = top2_shares(is_open, probability[:, columns])
        np.testing.assert_array_equal(found[:, columns], alone)
    np.testing.assert_allclose(found.sum(1), 2, rtol=1e-6)


def test_one_tf_takes_all_votes(cells, rng):
    found = top2_shares(open_peaks(sp.csr_matrix(cells[:2])), rng.random((40, 1)))
    assert (found == 1).all()


def test_tfs_by_name():
    tasks = ("CTCF:GM12878", "MAX:GM12878", "CTCF:K562")
    assert find_tfs(["ctcf"], tasks).tolist() == [0, 2]
    assert find_tfs(["CTCF:K562", "MAX"], tasks).tolist() == [2, 1]
    with pytest.raises(ConfigError, match=r"'CTFC'\. Did you mean CTCF.*It knows: CTCF:GM12878"):
        find_tfs(["CTFC"], tasks)
