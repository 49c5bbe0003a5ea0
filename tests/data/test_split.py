"""Who is held out: whole groups, a bounded number judged, the same for the same seed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.split import group_codes, split_cells, split_groups
from scfm.errors import LabelError


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    share=st.floats(0.01, 0.9),
    most=st.integers(0, 30),
    n_unlabelled=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_group_is_on_both_sides(sizes, share, most, n_unlabelled, seed):
    codes = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(n_unlabelled, -1)])
    codes = np.random.default_rng(seed).permutation(codes)
    names = [f"d{i}" for i in range(len(sizes))]
    split = split_groups(codes, names, share, most, seed, by="donor")
    on_sides = [set(codes[split.is_training]) - {-1}, set(codes[split.is_held_out])]
    assert not on_sides[0] & on_sides[1]
    assert -1 not in on_sides[1]
    assert [{names[c] for c in side} for side in on_sides] == [
        set(split.groups_training),
        set(split.groups_held_out),
    ]
    assert (split.is_training != split.is_held_out).all()
    n_held_out = split.is_held_out.sum()
    assert n_held_out <= share * sum(sizes) or n_held_out == min(sizes)
    assert n_held_out > 0
    assert len(split.judged) == min(most, n_held_out)
    assert split.is_held_out[split.judged].all()
    assert (np.diff(split.judged) > 0).all()
    assert split.n_without_group == n_unlabelled
    again = split_groups(codes, names, share, most, seed, by="donor")
    np.testing.assert_array_equal(split.judged, again.judged)
    np.testing.assert_array_equal(split.is_training, again.is_training)


def test_groups_fill_the_share():
    codes = np.repeat(np.arange(100), 10)
    split = split_groups(codes, [str(i) for i in range(100)], 0.2, 50, seed=1, by="donor")
    assert split.is_held_out.sum() == 200
    assert len(split.groups_held_out) == 20
    other = split_groups(codes, [str(i) for i in range(100)], 0.2, 50, seed=2, by="donor")
    assert split.groups_held_out != other.groups_held_out


def test_a_share_of_nothing_holds_out_nothing():
    split = split_groups(np.array([0, 1, 1]), ["a", "b"], 0.0, 5, seed=0, by="donor")
    assert split.is_training.all()
    assert len(split.judged) == 0


@pytest.mark.parametrize(
    ("codes", "found"), [([0, 0, -1], "only 'a'"), ([-1, -1, -1], "no value at all")]
)
def test_one_group_cannot_be_split(codes, found):
    with pytest.raises(LabelError, match=f"{found} .*loader.held_out_by"):
        split_groups(np.array(codes), ["a", "b"], 0.5, 5, seed=0, by="donor")


def test_cells_at_random_are_all_judged():
    split = split_cells(1_000, 0.05, 1_024, seed=3)
    assert len(split.judged) == 50
    np.testing.assert_array_equal(np.flatnonzero(split.is_held_out), split.judged)
    assert split.is_training.sum() == 950
    assert split_cells(1_000, 0.05, 20, seed=3).is_training.sum() == 980


@pytest.mark.parametrize(
    "values",
    [
        pd.Categorical(["b", "a", None, "b"], categories=["z", "b", "a"]),
        np.array(["b", "a", None, "b"], dtype=object),
        np.array(["b", "a", np.nan, "b"], dtype=object),
    ],
)
def test_a_column_as_codes(values):
    codes, names = group_codes(pd.DataFrame({"donor": values}), "donor", "x.h5ad")
    assert names == ["a", "b"]
    assert codes.tolist() == [1, 0, -1, 1]


def test_numbers_are_groups_too():
    codes, names = group_codes(pd.DataFrame({"batch": [10, 9, 10]}), "batch", "x.h5ad")
    assert [names[c] for c in codes] == ["10", "9", "10"]


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    obs = pd.DataFrame({"donor": ["a"], "tissue": ["b"]})
    with pytest.raises(LabelError, match=r"x\.h5ad has no obs column 'study'.*donor, tissue"):
        group_codes(obs, "study", "x.h5ad")
