import numpy as np
import pytest

from scfm.errors import LabelError
from scfm.evaluate.tf_cells import cell_scores, standardised, unit_rows


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
    assert found["a"].leiden == pytest.approx((1, 1))
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


def test_unit_rows(rng):
    values = rng.normal(size=(5, 3))
    np.testing.assert_allclose(np.linalg.norm(unit_rows(values), axis=1), 1)
    np.testing.assert_allclose(unit_rows(3 * values), unit_rows(values))


def test_standardised():
    values = np.array([[1.0, 5, 2], [3, 5, np.nan], [5, 5, 4]])
    found = standardised(values)
    np.testing.assert_allclose(found[:, 0], [-(1.5**0.5), 0, 1.5**0.5])
    assert (found[:, 1] == 0).all()
    np.testing.assert_allclose(found[:, 2], [-1, 0, 1])
