"""Batches: every cell once however it is dealt, equal gradients, bounded tokens, nothing moved by
prefetching."""

import threading
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.order import Blocks, CellOrder
from scfm.data.split import split_cells
from scfm.errors import ConfigError, ScfmWarning
from scfm.objectives.regression import mean_squared_error
from scfm.tasks.pretrain_module import PretrainModule
from scfm.tasks.pretrain_objective import ObjectiveConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import CellPool
from scfm.train.datamodule import (
    CellDataModule,
    CellLoader,
    HeldOutLoader,
    LoaderConfig,
    StepsOfCells,
    StepsOfTokens,
    ahead,
    training_order,
)
from scfm.train.optim import OptimConfig
from tests.toy_stores import write_store
from tests.toys import toy_adata, toy_model, toy_vocab

CONFIG = LoaderConfig(batch_size=7, lanes=5, held_out_share=0.1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> CellPool:
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("store") / "store"
    store = write_store(
        folder, {"a.h5ad": toy_adata(rng, 90), "b.h5ad": toy_adata(rng, 40)}, obs=("cell_type",)
    )
    return CellPool([open_input(store, toy_vocab(), InputConfig())[0]], seed=4)


def module_of(pool, config=CONFIG, *, steps=40, accumulate=1, rank=0, world_size=1, step=0):
    """A datamodule as a trainer of so many processes would hold it, at an optimiser step."""
    split = split_cells(pool.n_cells, config.held_out_share, config.max_held_out, pool.seed)
    cells = CellDataModule(pool, split, config, total_steps=steps, accumulate=accumulate)
    cells.trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        global_rank=rank, world_size=world_size, global_step=step
    )
    return cells


def dealt(pool, config, *, state=None, n_steps, **place) -> tuple[list[int], dict[str, int]]:
    """Cells of the next steps over all processes, and the state after them."""
    found, states = [], []
    world_size, accumulate = place.pop("world_size", 1), place.get("accumulate", 1)
    for rank in range(world_size):
        cells = module_of(pool, config, rank=rank, world_size=world_size, **place)
        if state is not None:
            cells.load_state_dict(state)
        batches = iter(cells.train_dataloader())
        for _ in range(n_steps * accumulate):
            batch = next(batches)
            if batch.weight:
                found += batch.cells.cell_index.tolist()
        cells.trainer.global_step = cells.first_step + n_steps
        states.append(cells.state_dict())
    assert all(other == states[0] for other in states)
    return found, states[0]


@pytest.mark.filterwarnings("ignore:.*some processes have nothing to do")
@settings(deadline=None, max_examples=25)
@given(
    sittings=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=5),
    accumulate=st.integers(1, 3),
    budget=st.sampled_from([None, 300, 900]),
    prefetch=st.sampled_from([0, 3]),
)
def test_interrupted_at_any_step_and_moved_to_any_number_of_processes(
    pool, sittings, accumulate, budget, prefetch
):
    """What all sittings saw is exactly the beginning of the stream, cell for cell."""
    config = replace(CONFIG, batch_tokens=budget, prefetch=prefetch)
    found, state = [], None
    for n_steps, world_size in sittings:
        some, state = dealt(
            *(pool, config),
            state=state,
            n_steps=n_steps,
            world_size=world_size,
            accumulate=accumulate,
        )
        found += some
    assert state is not None
    assert state["optimiser_steps"] == sum(n_steps for n_steps, _ in sittings)
    assert state["position"] == len(found)
    wanted, _ = module_of(pool, config).order.stretch(0, len(found))
    assert sorted(found) == sorted(wanted.tolist())


@pytest.mark.filterwarnings("ignore:.*some processes have nothing to do")
@pytest.mark.parametrize("budget", [None, 700])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (3, 1), (2, 3), (4, 2)])
def test_gradients_do_not_hang_on_how_cells_are_dealt(pool, world_size, accumulate, budget):
    """Processes by hand: what DDP and Lightning average is the plain gradient of one process."""
    config = replace(CONFIG, batch_tokens=budget, lanes=10)
    module = PretrainModule(toy_model().double(), ObjectiveConfig(), OptimConfig())

    def gradient(world_size: int, accumulate: int) -> dict[str, torch.Tensor]:
        module.zero_grad()
        for rank in range(world_size):
            cells = module_of(pool, config, rank=rank, world_size=world_size, accumulate=accumulate)
            batches = iter(cells.train_dataloader())
            for _ in range(accumulate):
                batch = next(batches)
                doubled = batch.cells.map(lambda x: x.double() if x.is_floating_point() else x)
                loss = batch.weight * module.losses(doubled)["loss"]
                (loss / (world_size * accumulate)).backward()
        return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    alone = gradient(1, 1)
    for name, theirs in gradient(world_size, accumulate).items():
        torch.testing.assert_close(theirs, alone[name], rtol=1e-4, atol=1e-6, msg=name)


def test_prefetching_changes_no_batch(pool):
    plain, early = (
        list(module_of(pool, replace(CONFIG, prefetch=n), steps=30).train_dataloader())
        for n in (0, 4)
    )
    assert len(plain) == len(early) == 30
    for one, other in zip(plain, early, strict=True):
        assert one.weight == other.weight
        for name in ("gene_ids", "values", "is_target", "cell_index"):
            assert torch.equal(getattr(one.cells, name), getattr(other.cells, name))


def test_state_counts_what_was_trained_on_not_what_was_prefetched(pool):
    cells = module_of(pool, replace(CONFIG, prefetch=5, batch_tokens=400))
    batches = iter(cells.train_dataloader())
    n_cells = sum(next(batches).n_cells for _ in range(3))
    cells.trainer.global_step = 3
    assert cells.state_dict() == {"optimiser_steps": 3, "position": n_cells}
    batches.close()


def test_a_thread_that_fails_is_heard_and_one_that_is_left_ends():
    def broken():
        yield from range(5)
        raise ValueError("torn")

    found = []
    with pytest.raises(ValueError, match="torn"):
        found.extend(ahead(broken(), 3))
    assert list(ahead(iter([]), 2)) == []
    items = ahead(iter(range(100)), 3)
    assert next(items) == 0
    items.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@settings(deadline=None, max_examples=100)
@given(
    bounds=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    budget=st.integers(1, 300),
    accumulate=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_step_is_the_longest_stretch_within_its_tokens(bounds, budget, accumulate, seed):
    order = CellOrder(blocks=Blocks.even(len(bounds)), seed=seed)
    tokens = np.array(bounds)
    steps, start = StepsOfTokens(order, tokens, budget, accumulate), 0
    for _ in range(6):
        cuts = steps.cuts(start)
        assert len(cuts) == accumulate + 1
        assert all(b > a for a, b in pairwise(cuts))  # a cell at least for each micro-batch
        following = tokens[order.stretch(start, cuts[-1] - start + 1)[0]]
        assert following[:-1].sum() <= budget or len(following) - 1 == accumulate
        assert following.sum() > budget
        start = cuts[-1]


def test_micro_batches_of_a_token_budget_are_about_equal():
    tokens = np.random.default_rng(0).integers(200, 3000, 5000)
    order = CellOrder(blocks=Blocks.even(5000), seed=1)
    cuts = StepsOfTokens(order, tokens, 400_000, 4).cuts(1234)
    of_part = [tokens[order.stretch(a, b - a)[0]].sum() for a, b in pairwise(cuts)]
    assert max(of_part) - min(of_part) < 2 * 3000
    assert 397_000 <= sum(of_part) <= 400_000


def test_token_batches_stay_within_their_budget(pool):
    loader = module_of(pool, replace(CONFIG, batch_tokens=600)).train_dataloader()
    sizes = [batch.n_tokens for batch in loader]
    assert max(sizes) <= 600
    assert np.mean(sizes) > 400


def test_fixed_steps_are_cut_evenly():
    assert StepsOfCells(8, 1).cuts(16) == [16, 24]
    assert StepsOfCells(8, 3).cuts(0) == [0, 2, 5, 8]


def test_a_process_without_a_cell_looks_on_with_no_weight(pool):
    """Lanes of three processes, two cells a micro-batch: one has none, and its loss counts 0."""
    order = module_of(pool).order
    loaders = [
        CellLoader(pool, order, StepsOfCells(2, 1), 9, rank=rank, world_size=3) for rank in range(3)
    ]
    for batches in zip(*loaders, strict=True):
        weights = [batch.weight for batch in batches]
        assert sum(weights) == pytest.approx(3)
        assert sum(batch.n_cells for batch in batches) == 2
        for batch in batches:
            assert batch.cells.n_cells >= 1
            assert (batch.n_tokens == 0) == (batch.weight == 0)
    assert 0 in weights


def test_balanced_training_sees_every_class_equally_often(pool):
    codes, names = pool.column("dataset")
    split = split_cells(pool.n_cells, 0.1, 1024, seed=0)
    config = replace(CONFIG, balance="dataset")
    order = training_order(pool, split, config)
    cells, _ = order.stretch(0, order.n_in_epoch(0))
    assert np.bincount(codes[cells]) / len(cells) == pytest.approx([0.5, 0.5], abs=0.03)
    assert split.is_training[cells].all()
    weighted = replace(config, weights={names[0]: 3.0})
    order = training_order(pool, split, weighted)
    cells, _ = order.stretch(0, order.n_in_epoch(0))
    assert np.bincount(codes[cells]) / len(cells) == pytest.approx([0.75, 0.25], abs=0.03)


def test_a_class_of_no_weight_is_left_out(pool):
    codes, names = pool.column("cell_type")
    split = split_cells(pool.n_cells, 0.1, 1024, seed=0)
    order = training_order(pool, split, replace(CONFIG, balance="cell_type", weights={"B": 0}))
    cells, _ = order.stretch(0, 2 * order.n_in_epoch(0))
    assert names == ["A", "B"]
    assert set(codes[cells]) == {0}


def test_impossible_weights_are_named(pool):
    split = split_cells(pool.n_cells, 0.1, 1024, seed=0)
    wrong = replace(CONFIG, balance="dataset", weights={"a.h5a": 2.0})
    with pytest.raises(ConfigError, match=r"no value of 'dataset'. Did you mean 'a\.h5ad'"):
        training_order(pool, split, wrong)
    none = replace(CONFIG, balance="cell_type", weights={"A": 0, "B": 0})
    with pytest.raises(ConfigError, match=r"loader\.weights leave no cell"):
        training_order(pool, split, none)


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"lanes": 0}, "lanes must be at least 1"),
        ({"prefetch": -1}, "prefetch must be at least 0"),
        ({"max_repeats": 0.5}, "max_repeats must be at least 1"),
        ({"weights": {"a": 1.0}}, "name it with loader.balance"),
        ({"balance": "x", "weights": {"a": -1.0}}, r"weights\.a must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, wanted):
    with pytest.raises(ValueError, match=f"loader.*{wanted}"):
        LoaderConfig(**wrong)


def test_processes_without_work_are_said_aloud(pool):
    with pytest.warns(ScfmWarning, match=r"batch_size \(7\) is less than processes \(4\)"):
        module_of(pool, world_size=4, accumulate=2).train_dataloader()


def test_more_processes_than_lanes_are_refused(pool):
    with pytest.raises(ConfigError, match=r"loader\.lanes \(5\).*loader\.lanes=240"):
        module_of(pool, world_size=6).train_dataloader()


def test_held_out_cells_are_read_once(pool, monkeypatch):
    loader = HeldOutLoader(pool, np.arange(100))
    first = [batch.cells.gene_ids for batch in loader]
    monkeypatch.setattr(pool, "training", None)
    again = [batch.cells.gene_ids for batch in loader]
    assert len(first) == len(loader) == 2
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


def test_many_held_out_cells_are_read_again(pool, monkeypatch):
    monkeypatch.setattr("scfm.train.datamodule.KEPT_TOKENS", 2_000)
    loader = HeldOutLoader(pool, np.arange(130))
    first = [batch.cells.gene_ids for batch in loader]
    assert 1 <= len(loader._kept) < len(first) == 3
    for one, other in zip(first, loader, strict=True):
        assert torch.equal(one, other.cells.gene_ids)


def test_weighted_parts_are_the_mean_over_cells():
    """The closed form behind the weights, with parts of 1, 2 and 5 cells."""
    error = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cell, zero = torch.arange(8), torch.zeros(8, dtype=torch.float64)
    whole = mean_squared_error(error, zero, cell, 8)
    parts = [(0, 1), (1, 3), (3, 8)]
    losses = [
        (b - a) * 3 / 8 * mean_squared_error(error[a:b], zero[a:b], cell[: b - a], b - a)
        for a, b in parts
    ]
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
