"""Bins are numpy.digitize's over numpy.linspace's edges, in float64 and to the bit."""

import numpy as np
import pytest

from scfm.tokens.value_bins import value_bins


def digitized(values: np.ndarray, n_bins: int = 10) -> np.ndarray:
    return np.digitize(values, np.linspace(0, values.max(), n_bins + 1), right=True)


def test_worked_numbers():
    values = np.array([0.5, 1.2, 3.0, 2.4, 0.01])
    np.testing.assert_array_equal(value_bins(np.array([0, 5]), values), [2, 4, 10, 8, 1])


def test_edges_are_rounded_as_numpy_rounds_them():
    # what ceil(10 x / max) would put elsewhere
    values = np.array([0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0])
    bins = value_bins(np.array([0, 10]), values)
    np.testing.assert_array_equal(bins, [1, 2, 4, 4, 5, 7, 7, 8, 10, 10])
    np.testing.assert_array_equal(bins, digitized(values))
    assert (bins != np.ceil(10 * values / 3.0)).any()


@pytest.mark.parametrize("n_bins", [1, 2, 7, 10, 100])
def test_on_and_beside_every_edge(n_bins, rng):
    cells = []
    for largest in rng.uniform(0.5, 9, 50):
        edges = np.linspace(0, largest, n_bins + 1)[1:]
        beside = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges[:-1], 10)])
        cells.append(np.concatenate([beside, rng.uniform(0, largest, 20)]))
    indptr = np.cumsum([0, *map(len, cells)])
    expected = np.concatenate([digitized(cell, n_bins) for cell in cells])
    bins = value_bins(indptr, np.concatenate(cells), n_bins)
    np.testing.assert_array_equal(bins, expected)
    assert (bins.min(), bins.max()) == (1, n_bins)


def test_a_cell_s_bins_are_its_own(rng):
    one, other = rng.uniform(0.1, 3, 30), rng.uniform(0.1, 9, 40)
    together = value_bins(np.array([0, 30, 30, 70]), np.concatenate([one, other]))
    np.testing.assert_array_equal(together, np.concatenate([digitized(one), digitized(other)]))
