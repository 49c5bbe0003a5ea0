"""Who learns, who stops the training and who is judged; what a training cell looks like."""

import numpy as np
import pytest

from scfm.errors import LabelError
from scfm.tasks.celltype_data import LabelledPool, require_types, split_labelled
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.target_depth import parse_target_depth
from tests.toys import toy_adata, toy_model

SHARES = {"judged_share": 0.2, "validation_share": 0.2}


@pytest.fixture
def make(rng):
    def pool(types, **how):
        model, adata = toy_model(), toy_adata(rng, n_cells=len(types))
        member, _ = open_input(adata, model.vocab, InputConfig(), model.token_config)
        types = np.array(types, dtype=object)
        return LabelledPool([member], 0, types, parse_target_depth("source"), **how)

    return pool


def test_random_sides_have_their_share_of_every_type():
    types = np.repeat([0, 1, 2, -1], [100, 40, 20, 30])
    split = split_labelled(types, **SHARES, seed=5)
    sides = (split.training, split.validation, split.judged)
    together = np.concatenate(sides)
    assert sorted(together) == list(range(160))
    for side, share in zip(sides, (0.6, 0.2, 0.2), strict=True):
        shares = np.bincount(types[side]) / np.array([100, 40, 20])
        np.testing.assert_allclose(shares, share, atol=0.06)
    assert split.is_optimistic


def test_donors_are_on_one_side_only(rng):
    codes = rng.integers(0, 10, 300)
    codes[:7] = -1
    names = [f"d{i}" for i in range(10)]
    split = split_labelled(np.zeros(300, int), **SHARES, seed=1, groups=(codes, names), by="donor")
    sides = {"training": split.training, "validation": split.validation, "judged": split.judged}
    owners = [{names[c] for c in codes[cells] if c >= 0} for cells in sides.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 10
    assert [set(split.groups[side]) for side in sides] == owners
    assert set(range(7)) <= set(split.training)
    assert "7 cells have no value" in " ".join(split.notes)
    assert not split.is_optimistic


def test_two_donors_leave_one_for_both_uses():
    codes = np.arange(100) % 2
    split = split_labelled(np.zeros(100, int), **SHARES, seed=1, groups=(codes, "ab"), by="donor")
    np.testing.assert_array_equal(split.validation, split.judged)
    assert "somewhat optimistic" in split.notes[0]


@pytest.mark.parametrize(("code", "words"), [(0, "only 'a'"), (-1, "no value at all")])
def test_donors_all_on_one_side_are_refused(code, words):
    groups = (np.full(50, code), ["a", "b"])
    with pytest.raises(LabelError, match=f"{words} there"):
        split_labelled(np.zeros(50, int), **SHARES, seed=1, groups=groups, by="donor")


def test_a_type_that_nothing_teaches_is_named_and_stays_wrong(make):
    pool = make(["A"] * 20 + ["B"] * 20 + ["C"] * 10)
    codes = np.repeat([0, 1, 2], [30, 10, 10])
    codes[:5], codes[20:25] = 1, 1
    split = split_labelled(pool.types, **SHARES, seed=3, groups=(codes, "abc"), by="donor")
    assert set(pool.texts[split.judged]) | set(pool.texts[split.validation]) >= {"C"}
    known, split = require_types(pool, split, "the file")
    assert known.labels == ("A", "B")
    assert "'C' is in no training cell: its 10 cells" in " ".join(split.notes)
    assert (known.types[split.validation] >= 0).all()
    assert set(known.types[pool.texts == "C"]) == {-1}


def test_one_type_to_learn_is_refused(make):
    pool = make(["A"] * 30 + ["B"] * 10)
    codes = np.repeat([0, 0, 0, 1], 10)
    split = split_labelled(pool.types, **SHARES, seed=3, groups=(codes, "ab"), by="donor")
    with pytest.raises(LabelError, match="the training cells have only 'A'"):
        require_types(pool, split, "the file")


def test_cells_are_thinned_anew_each_epoch_and_shown_whole_when_asked(make):
    pool = make(["A", None] * 10, thin_probability=1.0, thin_min_counts=1)
    cells = np.arange(20)
    shown = pool.shown(cells)
    first, again, later = (pool.training(cells, np.full(20, epoch)) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.source_depth < shown.source_depth).mean() > 0.9
    assert not np.array_equal(first.source_depth, later.source_depth)
    assert not shown.is_target.any()
    np.testing.assert_array_equal(shown.labels["type"], [0, -1] * 10)
    whole = make(["A"] * 20, thin_probability=0.0)
    as_trained, as_is = whole.training(cells, np.zeros(20, int)), whole.shown(cells)
    for name in ("gene_ids", "values", "offsets", "source_depth"):
        np.testing.assert_array_equal(getattr(as_trained, name), getattr(as_is, name))
