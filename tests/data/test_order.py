"""Which cell next: every cell once an epoch, on any number of processes, from any step on."""

from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.order import Blocks, CellOrder, Weights
from scfm.data.split import held_out_cells

LAYOUTS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


def blocks_of(sizes: list[int]) -> Blocks:
    lengths = np.array(sizes, dtype=np.int64)
    return Blocks(np.cumsum(lengths) - lengths, lengths)


@settings(deadline=None, max_examples=150)
@given(
    sizes=LAYOUTS,
    batch_size=st.integers(1, 17),
    worlds=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    lanes=st.integers(5, 13),
    seed=st.integers(0, 2**31),
    stops=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    share=st.floats(0.2, 1.0),
)
def test_every_cell_once_an_epoch_through_interruptions_and_changes_of_world_size(
    sizes, batch_size, worlds, lanes, seed, stops, share
):
    blocks = blocks_of(sizes)
    selected = np.random.default_rng(seed).random(blocks.total) < share
    selected[-1] = True
    n_epochs = 2
    wanted = n_epochs * selected.sum()
    found, position = [], 0
    for sitting in count():  # each starts anew, with nothing but the position, on other processes
        order = CellOrder(blocks=blocks, seed=seed, lanes=lanes, selected=selected)
        world_size = worlds[sitting % len(worlds)]
        for _ in range(stops[sitting % len(stops)]):
            for rank in range(world_size):
                cells, epochs = order.share(position, batch_size, rank, world_size)
                found += zip(epochs.tolist(), cells.tolist(), strict=True)
            position += batch_size
        if position >= wanted:
            break
    for epoch in range(n_epochs):
        assert sorted(c for e, c in found if e == epoch) == np.flatnonzero(selected).tolist()


@settings(deadline=None, max_examples=60)
@given(sizes=LAYOUTS, start=st.integers(0, 300), cut=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_stretch_is_the_sum_of_its_parts(sizes, start, cut, seed):
    order = CellOrder(blocks=blocks_of(sizes), seed=seed, lanes=7)
    whole = np.stack(order.stretch(start, 40))
    parts = [np.stack(order.stretch(start, cut)), np.stack(order.stretch(start + cut, 40 - cut))]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))


@settings(deadline=None, max_examples=80)
@given(
    sizes=LAYOUTS,
    seed=st.integers(0, 999),
    shares=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    world_size=st.integers(1, 5),
)
def test_weighted_cells_come_as_often_as_their_class_says(sizes, seed, shares, world_size):
    blocks = blocks_of(sizes)
    codes = np.random.default_rng(seed).integers(0, 3, blocks.total)
    weights = Weights(codes, np.array(shares) * 4 + [0, 0, 0.05])
    if not (weights.repeats[codes] > 0).any():
        return
    n_epochs = 5
    try:
        order = CellOrder(blocks=blocks, seed=seed, lanes=6, weights=weights)
    except ValueError:  # the first epoch has none of them
        return
    total = sum(order.n_in_epoch(epoch) for epoch in range(n_epochs))
    parts = [order.share(0, total, rank, world_size) for rank in range(world_size)]
    cells, draws = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    epochs = draws & 0xFFFFFFFF
    assert len(set(zip(cells.tolist(), draws.tolist(), strict=True))) == len(cells) == total
    assert (np.bincount(epochs) == [order.n_in_epoch(e) for e in range(epochs.max() + 1)]).all()
    found = np.bincount(cells, minlength=blocks.total)
    wanted = n_epochs * weights.repeats[codes]
    assert (found >= np.floor(wanted - 1e-9)).all()
    assert (found <= np.ceil(wanted + 1e-9)).all()


def test_mixing_gives_the_shares_asked_for(rng):
    codes = rng.choice(3, size=3_000, p=[0.9, 0.08, 0.02])
    weights = Weights.mixing(codes, np.array([1.0, 1.0, 1.0]), max_repeats=50)
    order = CellOrder(blocks=Blocks.even(3_000, 16), seed=1, lanes=20, weights=weights)
    cells, _ = order.stretch(0, order.n_in_epoch(0))
    np.testing.assert_allclose(np.bincount(codes[cells]) / len(cells), 1 / 3, atol=0.02)
    held_back = Weights.mixing(codes, np.ones(3), max_repeats=2)
    assert held_back.repeats.max() == 2
    with pytest.raises(ValueError, match="positive share"):
        Weights.mixing(codes, np.zeros(3))


def test_copies_of_a_cell_are_spread_over_the_epoch():
    codes = (np.arange(2_000) % 100 == 0).astype(int)
    weights = Weights(codes, np.array([1.0, 8.0]))
    order = CellOrder(blocks=Blocks.even(2_000, 10), seed=2, lanes=8, weights=weights)
    cells, _ = order.stretch(0, order.n_in_epoch(0))
    places = np.flatnonzero(cells == 100)
    assert len(places) == 8
    assert np.ptp(places) > len(cells) / 3


def test_a_batch_comes_from_many_blocks():
    order = CellOrder(blocks=Blocks.even(64 * 1_000, 64), seed=3)
    cells, _ = order.stretch(10_000, 128)
    assert len(np.unique(cells // 64)) > 100


def test_processes_read_different_blocks():
    order = CellOrder(blocks=Blocks.even(64 * 480, 64), seed=3)
    shares = [order.share(0, 64 * 480, rank, 2)[0] // 64 for rank in range(2)]
    in_both = np.intersect1d(*shares)
    assert len(in_both) < 10  # those that the end of a lane cuts
    assert [len(share) for share in shares] == [64 * 240, 64 * 240]


def test_within_an_epoch_neighbours_in_the_file_are_not_neighbours():
    """Every cell is about as likely anywhere: the mean place of a block's cells is the middle."""
    n = 64 * 500
    order = CellOrder(blocks=Blocks.even(n, 64), seed=5, lanes=20)
    places = np.empty((20, n))
    for epoch in range(20):
        cells, _ = order.stretch(epoch * n, n)
        places[epoch, cells] = np.arange(n) / n
    assert abs(places.mean(axis=0).mean() - 0.5) < 1e-3
    # uniform places have a standard deviation of 1 / sqrt(12); the error of 20 epochs' mean:
    assert abs(places[:, :64].mean() - 0.5) < 5 / np.sqrt(12 * 20)
    inside = np.argsort(places[:, :64], axis=1)
    assert len(np.unique(inside, axis=0)) == 20  # another order of a block's cells each time


def test_shuffling_within_a_block_is_fair():
    """Each of the 24 orders of 4 cells is as likely as the others: chi-square over 4,800 draws."""
    order = CellOrder(blocks=Blocks.even(4 * 4_800, 4), seed=11, lanes=2)
    cells, _ = order.stretch(0, 4 * 4_800)
    block, inside = np.divmod(cells, 4)
    by_block = inside[np.argsort(block, kind="stable")].reshape(-1, 4)
    _, counts = np.unique(by_block, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7  # 99.9 % of chi-square with 23 degrees


def test_single_cells_are_permuted_through_and_through():
    """Data in memory: one permutation an epoch, dealt by position, as it was before blocks."""
    order = CellOrder(blocks=Blocks.even(500), seed=1)
    cells, epochs = order.stretch(0, 1_000)
    for epoch in (0, 1):
        sequence = np.random.SeedSequence([1, epoch])
        wanted = np.random.Generator(np.random.Philox(sequence)).permutation(500)
        np.testing.assert_array_equal(cells[epochs == epoch], wanted)
    np.testing.assert_array_equal(order.share(7, 20, 1, 2)[0], cells[7:27][::2])


def test_epochs_and_seeds_differ():
    one, other = (CellOrder(blocks=Blocks.even(640, 64), seed=s, lanes=4) for s in (1, 2))
    first = one.stretch(0, 640)[0]
    assert (first != one.stretch(640, 640)[0]).any()
    assert (first != other.stretch(0, 640)[0]).any()


def test_blocks_of_several_sources_are_numbered_on():
    joined = Blocks.joined([Blocks.even(5, 2), Blocks.even(3, 3)])
    np.testing.assert_array_equal(joined.first, [0, 2, 4, 5])
    np.testing.assert_array_equal(joined.n_cells, [2, 2, 1, 3])
    assert joined.total == 8


def test_nothing_to_order_is_refused():
    with pytest.raises(ValueError, match="no cells"):
        CellOrder(blocks=Blocks.even(5), seed=1, selected=np.zeros(5, bool))


def test_held_out_cells_come_from_everywhere():
    chosen = held_out_cells(20_000, 0.5, 1_000, seed=3)
    assert len(chosen) == len(set(chosen)) == 1_000
    by_fifth = np.histogram(chosen, bins=5, range=(0, 20_000))[0]
    assert abs(by_fifth - 200).max() < 5 * np.sqrt(200)
    np.testing.assert_array_equal(chosen, held_out_cells(20_000, 0.5, 1_000, seed=3))
    assert len(held_out_cells(100, 0.05, 1_000, seed=3)) == 5
    assert len(held_out_cells(100, 0.0, 1_000, seed=3)) == 0
