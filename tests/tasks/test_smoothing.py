"""Smoothing: worked weights, the limit at distance zero, and scikit-learn's figures."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from scfm.errors import InputError
from scfm.tasks.smoothing import (
    SmoothingConfig,
    inverse_distances,
    neighbours,
    principal_components,
    smooth,
    vote,
)


def chunked(x, size=7):
    return lambda: (x[first : first + size] for first in range(0, len(x), size))


def test_weights_are_inverse_distances():
    """Worked by hand: 1/1 + 1/2 + 1/4 = 7/4."""
    found = inverse_distances(np.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_allclose(found, [[4 / 7, 2 / 7, 1 / 7]], rtol=1e-12)


def test_neighbours_in_the_same_spot_share_all_the_weight():
    """The limit: a neighbour that comes ever closer takes all; two of them half each."""
    near = inverse_distances(np.array([[1e-12, 1e-12, 1.0, 3.0]]))
    there = inverse_distances(np.array([[0.0, 0.0, 1.0, 3.0]]))
    np.testing.assert_array_equal(there, [[0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(near, there, atol=1e-11)
    np.testing.assert_array_equal(inverse_distances(np.zeros((1, 4))), np.full((1, 4), 0.25))
    assert np.isfinite(inverse_distances(np.array([[5e-324, 1.0]]))).all()


def test_the_vote():
    """Two far neighbours of one label lose to a near one of another: 4/7 against 3/7."""
    weight = inverse_distances(np.array([[1.0, 2.0, 4.0]] * 3))
    codes, share = vote(np.array([[1, 0, 0], [0, 1, -1], [-1, -1, -1]]), weight)
    assert codes.tolist() == [1, 0, -1]
    np.testing.assert_allclose(share, [4 / 7, 4 / 7, 0])
    tied, _ = vote(np.array([[1, 0]]), np.array([[0.5, 0.5]]))
    assert tied.tolist() == [0]


def test_whole_threshold_is_a_number_of_neighbours():
    """k = 15: 7 of the 14 others that vote."""
    assert SmoothingConfig(threshold=7).share == 0.5
    assert SmoothingConfig(threshold=0.3).share == 0.3
    assert SmoothingConfig(threshold=1).share == 1 / 14
    for wrong in (15, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"smoothing\.threshold"):
            SmoothingConfig(threshold=wrong)


def test_components_are_scikit_learns(rng):
    x = rng.normal(size=(60, 20)) @ rng.normal(size=(20, 20)) + 1e3
    found = principal_components(chunked(x.astype(np.float64)), 10)
    theirs = PCA(10, svd_solver="full").fit_transform(x)
    np.testing.assert_allclose(np.abs(found), np.abs(theirs), atol=1e-6)


def test_labels_and_scores_are_those_summed_one_by_one(rng):
    """Oracle: scikit-learn's 15 neighbours, the cell itself left out, weights summed per label."""
    x = np.concatenate([rng.normal(m, 1.0, size=(40, 16)) for m in (0, 1.5)])
    codes = rng.integers(0, 3, 80)
    points = PCA(10, svd_solver="full").fit_transform(x)
    far, near = NearestNeighbors(n_neighbors=15, algorithm="brute").fit(points).kneighbors(points)
    found, share = smooth(chunked(x), codes, SmoothingConfig())
    for cell in range(80):
        assert near[cell, 0] == cell
        weight = 1 / far[cell, 1:] / (1 / far[cell, 1:]).sum()
        score = [weight[codes[near[cell, 1:]] == c].sum() for c in range(3)]
        assert found[cell] == np.argmax(score)
        np.testing.assert_allclose(share[cell], max(score), rtol=1e-8)


def test_many_cells_in_one_spot_never_vote_for_themselves():
    points = np.zeros((40, 3))
    neighbour, distance = neighbours(points, 14)
    assert (neighbour != np.arange(40)[:, None]).all()
    assert (distance == 0).all()
    codes = np.r_[np.zeros(39, dtype=int), 1]
    found, share = smooth(chunked(points), codes, SmoothingConfig(n_components=2))
    assert found[-1] == 0
    assert share[-1] == 1


def test_order_and_chunks_do_not_matter(rng):
    x, codes = rng.normal(size=(50, 12)), rng.integers(0, 4, 50)
    expected, share = smooth(chunked(x), codes, SmoothingConfig())
    order = rng.permutation(50)
    found, again = smooth(chunked(x[order], 50), codes[order], SmoothingConfig())
    np.testing.assert_array_equal(found, expected[order])
    np.testing.assert_allclose(again, share[order], atol=1e-10)


def test_one_cell_has_no_neighbours():
    found, share = smooth(chunked(np.ones((1, 3))), np.array([2]), SmoothingConfig())
    assert (found.tolist(), share.tolist()) == ([2], [0.0])
    with pytest.raises(InputError, match="1 embedded cells and 2 labels"):
        smooth(chunked(np.ones((1, 3))), np.array([2, 1]), SmoothingConfig())
