"""Folds: every cell judged once, no donor on both sides, the same for the same seed."""

import numpy as np
import pytest

from scfm.errors import LabelError
from scfm.evaluate.splits import from_reference, hold_out_cells, hold_out_groups, stratified


@pytest.fixture
def donors(rng):
    names = np.array([f"donor{i:02d}" for i in range(40)], dtype=object)
    return np.repeat(names, rng.integers(20, 300, size=40))


def test_donors_are_held_out_whole_eight_a_fold(donors, rng):
    labels = rng.choice(["A", "B"], size=len(donors))
    plan = hold_out_groups(donors, labels, n_folds=5, seed=0, by="donor")
    assert np.array_equal(np.sort(plan.judged), np.arange(len(donors)))
    for fold in plan.folds:
        assert len(fold.held_out) == 8
        assert set(donors[fold.test]) == set(fold.held_out)
        assert not set(donors[fold.train]) & set(donors[fold.test])
        assert len(fold.train) + len(fold.test) == len(donors)
    sizes = [len(fold.test) for fold in plan.folds]
    assert max(sizes) < 1.3 * min(sizes)
    assert not plan.is_optimistic
    assert "40 groups in 5 folds" in plan.sentence


def test_the_seed_decides_and_the_order_of_cells_does_not(donors, rng):
    labels = np.full(len(donors), "A")

    def held_out(order, seed):
        plan = hold_out_groups(donors[order], labels, n_folds=5, seed=seed, by="donor")
        return [fold.held_out for fold in plan.folds]

    straight = np.arange(len(donors))
    assert held_out(straight, 1) == held_out(rng.permutation(straight), 1)
    assert held_out(straight, 1) != held_out(straight, 2)


def test_random_folds_hold_the_same_share_of_each_label(rng):
    labels = np.repeat(["common", "rare"], [1_000, 10])
    plan = hold_out_cells(labels, n_folds=5, seed=0)
    assert [int((labels[f.test] == "rare").sum()) for f in plan.folds] == [2] * 5
    assert np.array_equal(np.sort(plan.judged), np.arange(1_010))
    assert plan.is_optimistic
    assert "optimistic" in plan.sentence
    assert len(np.unique(stratified(labels, 5, 0)[labels == "common"])) == 5


def test_one_donor_cannot_be_held_out():
    with pytest.raises(LabelError, match=r"'site' cannot be held out.*only 'x'"):
        hold_out_groups(np.full(9, "x"), np.full(9, "A"), n_folds=3, seed=0, by="site")


def test_fewer_donors_than_folds_is_said_and_a_label_of_one_donor_cannot_be_learned():
    groups, labels = np.repeat(["x", "y", "z"], 10), np.repeat(["A", "A", "B"], 10)
    plan = hold_out_groups(groups, labels, n_folds=5, seed=0, by="donor")
    assert len(plan.folds) == 3
    assert plan.notes[0] == "'donor' has 3 groups, so 3 folds."
    assert len(plan.notes) == 2
    assert "nothing teaches 'B'" in plan.notes[1]
    assert "its 10 judged cells" in plan.notes[1]


def test_a_reference_is_learned_from_whole():
    plan = from_reference(7, 3)
    assert plan.folds[0].train.tolist() == list(range(7))
    assert plan.judged.tolist() == [7, 8, 9]
