import numpy as np
import pytest
import scipy.sparse as sp

from scfm.errors import LabelError
from scfm.evaluate.tf_cells import cell_scores, lsi


@pytest.fixture
def types():
    return np.repeat(["B", "T", "NK"], [40, 30, 20])


def test_clusters_of_what_tells_types_apart(types, rng):
    codes = np.unique(types, return_inverse=True)[1]
    good = np.eye(3)[codes] + rng.normal(0, 0.05, (90, 3))
    bad = rng.normal(size=(90, 30))
    found = {
        one.key: one
        for one in cell_scores({"a": ("A", "", good), "b": ("B", "", bad)}, types, n_runs=2)
    }
    assert found["a"].ari.value == pytest.approx(1)
    assert found["a"].nmi.value == pytest.approx(1)
    assert abs(found["b"].ari.value) < 0.1


def test_cells_without_a_type_are_left_out(types, rng):
    codes = np.unique(types, return_inverse=True)[1]
    values = np.eye(3)[codes]
    some = types.copy().astype(object)
    some[:5] = ""
    (found,) = cell_scores({"a": ("A", "", values)}, some, n_runs=1)
    assert found.ari.value == pytest.approx(1)
    with pytest.raises(LabelError, match="1 type"):
        cell_scores({"a": ("A", "", values)}, np.full(90, "B"), n_runs=1)


def test_lsi_tells_types_apart_whatever_their_depth(types, rng):
    codes = np.unique(types, return_inverse=True)[1]
    rate = np.full((3, 300), 0.05)
    for at in range(3):
        rate[at, 100 * at : 100 * (at + 1)] = 0.3
    depth = rng.uniform(0.5, 2, (90, 1))
    counts = sp.csr_matrix(rng.poisson(rate[codes] * depth))
    vectors = lsi(counts, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    (found,) = cell_scores({"lsi": ("LSI", "", vectors)}, types, n_runs=2)
    assert found.ari.value > 0.9
    with pytest.raises(LabelError, match="too few"):
        lsi(counts[:2], 5)
