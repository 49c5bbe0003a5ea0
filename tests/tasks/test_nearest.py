"""Neighbours: exact against a sort of all cosines, approximate by its recall."""

import sys

import numpy as np
import pytest

from scfm.errors import ConfigError
from scfm.tasks.nearest import ApproximateSearch, ExactSearch, nearest, searched


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_sorting(query, reference, k, own=None):
    """All cosines on the grid, a stable sort: equals keep the order of the reference."""
    steps = np.rint(np.einsum("qd,rd->qr", query, reference) * 1e9)
    if own is not None:
        steps[np.arange(len(query)), own] = -np.inf
    order = np.argsort(-steps, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(steps, order, 1) / 1e9


@pytest.mark.parametrize("d", [2, 64, 300])
def test_exact_is_a_sort_of_all_cosines(rng, d):
    reference, query = unit(rng.normal(size=(500, d))), unit(rng.normal(size=(40, d)))
    # thrice the same vector, and some closer than float32 can tell apart
    reference[300:400] = reference[:100]
    reference[400:] = unit(reference[:100] + 1e-8 * rng.normal(size=(100, d)))
    query[:20] = reference[:20]
    neighbour, cosine = nearest(query, reference, 15)
    expected, expected_cosine = by_sorting(query, reference, 15)
    np.testing.assert_allclose(cosine, expected_cosine, rtol=0, atol=2e-9)
    # the oracle sums in another order, so of cosines at a grid line either may come first
    is_clear = np.abs(np.diff(expected_cosine, axis=1, append=-2.0)) > 2e-9
    is_clear &= np.abs(np.diff(expected_cosine, axis=1, prepend=2.0)) > 2e-9
    np.testing.assert_array_equal(neighbour[is_clear], expected[is_clear])
    assert (neighbour[:20, 0] == np.arange(20)).all()  # the first of three equals
    assert (neighbour[:20, 1] == np.arange(300, 320)).all()


def test_a_cell_is_not_its_own_neighbour(rng):
    cells = unit(rng.normal(size=(60, 8)))
    own = np.arange(60)
    found = nearest(cells, cells, 5, own=own)
    expected = by_sorting(cells, cells, 5, own)
    np.testing.assert_array_equal(found[0], expected[0])
    assert nearest(cells, cells, 100, own=own)[0].shape == (60, 59)


def test_auto_is_exact_until_the_reference_is_very_large(rng):
    few = unit(rng.normal(size=(10, 3)))
    assert isinstance(searched(few), ExactSearch)
    assert isinstance(searched(np.broadcast_to(few[:1], (300_000, 3))), ApproximateSearch)
    assert isinstance(searched(few, "approximate"), ApproximateSearch)


@pytest.fixture
def many(rng):
    """8,000 unit vectors in 30 kinds, each of 6 directions: as embeddings lie."""
    centre, basis = rng.normal(size=(30, 32)), 0.3 * rng.normal(size=(30, 6, 32))
    kind = rng.integers(0, 30, 8200)
    within = np.einsum("nk,nkd->nd", rng.normal(size=(8200, 6)), basis[kind])
    cells = unit(centre[kind] + within + 0.1 * rng.normal(size=(8200, 32)))
    return cells[:8000], cells[8000:]


def test_approximate_finds_nearly_all_with_their_exact_cosines(many):
    reference, query = many
    search = ApproximateSearch(reference)
    found, cosine = search.nearest(query, 15)
    exact, exact_cosine = nearest(query, reference, 15)
    recall = np.mean([len(set(a) & set(b)) / 15 for a, b in zip(found, exact, strict=True)])
    assert recall >= 0.99
    assert (np.diff(cosine, axis=1) <= 0).all()
    is_same = found == exact
    np.testing.assert_allclose(cosine[is_same], exact_cosine[is_same], rtol=0, atol=2e-9)
    alone = [search.nearest(query[i : i + 1], 15)[0][0] for i in range(20)]
    np.testing.assert_array_equal(alone, found[:20])
    np.testing.assert_array_equal(ApproximateSearch(reference).nearest(query, 15)[0], found)


def test_approximate_of_few_is_whole(rng):
    """Where the lists that are searched hold too few vectors, all are."""
    reference = unit(rng.normal(size=(200, 4)))
    found, _ = ApproximateSearch(reference).nearest(reference[:5], 180)
    np.testing.assert_array_equal(found, nearest(reference[:5], reference, 180)[0])
    assert ApproximateSearch(reference).nearest(np.empty((0, 4)), 3)[0].shape == (0, 3)


def test_without_faiss_the_search_is_exact(rng, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "faiss", None)
    large = np.broadcast_to(np.eye(3)[:1], (300_000, 3))
    assert isinstance(searched(large), ExactSearch)
    with pytest.raises(ConfigError, match=r"pip install 'scfm\[ann\]'"):
        searched(large, "approximate")
