"""Which cell next: every cell once an epoch, on any number of processes, from any step on."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.order import CellOrder
from scfm.data.split import held_out_cells


@settings(deadline=None, max_examples=60)
@given(
    n_cells=st.integers(1, 60),
    shares=st.integers(1, 6),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_every_cell_once_an_epoch_on_any_number_of_processes(n_cells, shares, world_size, seed):
    order = CellOrder(n_cells=n_cells, batch_size=shares * world_size, seed=seed)
    n_epochs = 3
    steps = -(-n_epochs * n_cells // order.batch_size)
    cells, epochs = [], []
    for step in range(steps):
        parts = [order.batch(step, rank, world_size) for rank in range(world_size)]
        alone = order.batch(step)
        assert sorted(np.concatenate([c for c, _ in parts])) == sorted(alone[0])
        cells.append(alone[0])
        epochs.append(alone[1])
    cells, epochs = np.concatenate(cells), np.concatenate(epochs)
    for epoch in range(n_epochs):
        assert sorted(cells[epochs == epoch]) == list(range(n_cells))


def test_epochs_and_seeds_differ_and_repeat():
    first, other = (CellOrder(n_cells=500, batch_size=500, seed=s) for s in (1, 2))
    one, two = first.batch(0)[0], first.batch(1)[0]
    assert (one != two).any()
    assert (one != other.batch(0)[0]).any()
    np.testing.assert_array_equal(one, CellOrder(n_cells=500, batch_size=500, seed=1).batch(0)[0])


def test_held_out_cells_come_from_everywhere():
    chosen = held_out_cells(20_000, 0.5, 1_000, seed=3)
    assert len(chosen) == len(set(chosen)) == 1_000
    by_fifth = np.histogram(chosen, bins=5, range=(0, 20_000))[0]
    assert abs(by_fifth - 200).max() < 5 * np.sqrt(200)
    np.testing.assert_array_equal(chosen, held_out_cells(20_000, 0.5, 1_000, seed=3))
    assert len(held_out_cells(100, 0.05, 1_000, seed=3)) == 5
    assert len(held_out_cells(100, 0.0, 1_000, seed=3)) == 0
