"""Balanced sampling: a pure function of seed and epoch, dealt to processes, background real."""

import dataclasses

import numpy as np
import pytest

from scfm.data.region_sampling import (
    BACKGROUND,
    BOUND,
    UNKNOWN,
    balanced_order,
    labelled_chroms,
    look_at,
    numbers,
    pairs,
    part_examples,
)
from scfm.data.region_split import TRAINING, split_regions
from scfm.errors import ConfigError
from tests.toys_regions import GroupedRegions, window_regions


@pytest.fixture
def grouped(rng):
    return GroupedRegions.drawn(rng, n=90, length=20)


def split_of(examples, **more):
    return split_regions(
        examples.chrom, validation=["chr2"], test=["chr3"], groups=examples.groups, **more
    )


def test_examples_are_numbered_region_by_region(grouped):
    region, group = pairs(grouped, np.arange(5))
    assert region.tolist() == [0, 0, 1, 1, 2]
    assert group.tolist() == [0, 1, 0, 1, 0]
    is_region = np.arange(90) < 2
    assert numbers(grouped, is_region).tolist() == [0, 1, 2, 3]
    assert numbers(grouped, is_region, np.array([False, True])).tolist() == [1, 3]
    region, group = pairs(grouped.windows, np.arange(3))
    assert region.tolist() == [0, 1, 2]
    assert (group == -1).all()


def test_held_out_groups_train_nothing(grouped):
    number = part_examples(grouped, split_of(grouped, held_out_groups=["B"]), TRAINING)
    region, group = pairs(grouped, number)
    assert (group == 0).all()
    assert set(grouped.chrom[region]) == {"chr1"}


def test_look_counts_labels_in_three_states(rng):
    examples = GroupedRegions.drawn(rng, n=60, length=20, unknown=frozenset({1}))
    number = numbers(examples, np.ones(60, dtype=bool))
    table = look_at(examples, number)
    labels = examples.labels(*pairs(examples, number))
    assert table.n_known.tolist() == [120, 0]
    assert table.n_bound[0] == (labels[:, 0] == 1).sum()
    assert table.prevalence.tolist() == [(labels[:, 0] == 1).mean(), 0.5]
    assert ((table.kind == BOUND) == (labels[:, 0] == 1)).all()
    nothing = dataclasses.replace(examples, unknown=frozenset({0, 1}))
    assert (look_at(nothing, number).kind == UNKNOWN).all()


def test_an_epoch_has_all_that_is_bound_and_as_much_background(grouped):
    number = part_examples(grouped, split_of(grouped), TRAINING)
    table = look_at(grouped, number)
    bound = number[table.kind[number] == BOUND]
    background = number[table.kind[number] == BACKGROUND]
    ratio = 0.5
    order = balanced_order(table, number, seed=1, background_ratio=ratio)
    drawn = []
    start = 0
    for epoch in range(6):
        n = order.n_in_epoch(epoch)
        found, _ = order.stretch(start, n)
        start += n
        assert sorted(found[np.isin(found, bound)]) == bound.tolist()
        rest = found[np.isin(found, background)]
        assert len(rest) + len(bound) == n
        assert len(set(rest)) == len(rest)  # each at most once
        assert abs(len(rest) - ratio * len(bound)) < 5 * np.sqrt(len(bound))
        drawn.append(set(rest.tolist()))
    assert drawn[0] != drawn[1]
    # all of it comes in turn: nothing twice before everything once, to within an epoch
    counts = np.bincount(np.concatenate([list(d) for d in drawn]), minlength=table.kind.size)
    assert np.ptp(counts[background]) <= 1


def test_order_is_pure_and_dealt_to_processes(grouped):
    number = part_examples(grouped, split_of(grouped), TRAINING)
    table = look_at(grouped, number)
    orders = [balanced_order(table, number, seed=3, background_ratio=1.0) for _ in range(2)]
    whole, _ = orders[0].stretch(7, 40)
    assert (whole == orders[1].stretch(7, 40)[0]).all()
    other = balanced_order(table, number, seed=4, background_ratio=1.0)
    assert (whole != other.stretch(7, 40)[0]).any()
    parts = [orders[0].share(7, 40, rank, 3)[0] for rank in range(3)]
    assert sorted(np.concatenate(parts)) == sorted(whole)


def test_all_background_where_no_ratio_is_given(grouped):
    number = part_examples(grouped, split_of(grouped), TRAINING)
    order = balanced_order(look_at(grouped, number), number, seed=0, background_ratio=None)
    assert order.n_in_epoch(0) == len(number)


def test_nothing_bound_is_refused(grouped):
    shut = dataclasses.replace(grouped, is_open=np.zeros((90, 2), dtype=bool))
    number = part_examples(shut, split_of(shut), TRAINING)
    with pytest.raises(ConfigError, match="No TF is known to be bound"):
        balanced_order(look_at(shut, number), number, seed=0, background_ratio=1.0)


def test_chromosomes_without_labels(rng):
    windows = window_regions(rng, n=30, length=20)
    labels = windows.label_table.copy()
    labels[windows.chrom == "chr2"] = 0
    found = dataclasses.replace(windows, label_table=labels)
    assert labelled_chroms(found) == ("chr1", "chr3")
