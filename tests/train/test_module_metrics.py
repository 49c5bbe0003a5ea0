"""The training loss by kind of target and by depth: the mean over a step's targets, however cut."""

import csv
from itertools import pairwise

import numpy as np
import pytest
import torch

from scfm.objectives.parts import DEPTH_EDGES, PARTS, part_means, part_sums
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_objective import ObjectiveConfig, metrics_of
from scfm.train.loggers import read_metrics
from tests.toys import toy_vocab
from tests.train.toy_runs import changed, toy_run
from tests.train.warm_processes import run_processes

LOSS_COLUMNS = [
    name for name in metrics_of(ObjectiveConfig()) if name.startswith(("loss", "val_loss"))
]


def by_hand(error, is_expressed, cell_of, depth) -> dict[str, float]:
    of_target = np.log10(depth)[cell_of]
    edges = [-np.inf, *DEPTH_EDGES, np.inf]
    chosen = [is_expressed, ~is_expressed]
    chosen += [(of_target >= a) & (of_target < b) for a, b in pairwise(edges)]
    return {p: error[c].mean() for p, c in zip(PARTS, chosen, strict=True) if c.any()}


def test_parts_are_means_over_targets_and_empty_ones_are_left_out(rng):
    error = rng.gamma(1, 1, 40)
    is_expressed, cell_of = rng.random(40) < 0.5, np.sort(rng.integers(0, 5, 40))
    depth = np.array([999.0, 1000, 3000, 3500, 2e4], dtype=np.float32)  # 3.0 lies in 3_to_3.5
    tensors = [torch.from_numpy(x) for x in (error, is_expressed, cell_of, depth)]
    assert part_means(part_sums(*tensors)) == pytest.approx(
        by_hand(error, is_expressed, cell_of, depth), rel=1e-5
    )
    shallow = torch.full((5,), 10.0)
    found = part_means(part_sums(*tensors[:3], shallow))
    assert [name for name in found if "depth" in name] == ["depth_below_3"]


def test_an_error_that_is_not_finite_stays_in_its_parts():
    error = torch.tensor([1.0, torch.nan])
    kinds = torch.tensor([True, False])
    found = part_means(part_sums(error, kinds, torch.tensor([0, 1]), torch.tensor([10.0, 1e5])))
    assert found["expressed"] == found["depth_below_3"] == 1
    assert np.isnan(found["zero"])
    assert np.isnan(found["depth_above_4"])


def test_sums_of_processes_and_micro_batches_are_those_of_the_whole(rng):
    n = 60
    error, kinds = torch.from_numpy(rng.gamma(1, 1, n)), torch.from_numpy(rng.random(n) < 0.3)
    cell_of = torch.from_numpy(np.sort(rng.integers(0, 6, n)))
    depth = torch.from_numpy(10 ** rng.uniform(2.5, 4.5, 6))
    whole = part_means(part_sums(error, kinds, cell_of, depth))
    for n_parts in (1, 2, 3):
        sums = 0
        for part in range(n_parts):
            here = cell_of % n_parts == part
            sums = sums + part_sums(error[here], kinds[here], cell_of[here], depth)
        assert part_means(sums) == pytest.approx(whole, rel=1e-5)


def test_columns_do_not_hang_on_accumulation(tmp_path, rng):
    """Unequal micro-batches of eight cells: the step's figure is the mean over its targets."""
    run = toy_run(tmp_path, rng, depth=100)
    rows = []
    for accumulate in (1, 2, 3):
        cut = changed(run, train={"accumulate": accumulate, "steps": 2, "validate_every": 2})
        pretrain(cut, tmp_path / str(accumulate), vocab=toy_vocab())
        rows.append(read_metrics(tmp_path / str(accumulate) / "metrics.csv"))
    for row in (0, 1):
        for name in LOSS_COLUMNS:
            first, *others = [cut[row][name] for cut in rows]
            if not first:
                assert not any(others), name
                continue
            assert [float(x) for x in others] == pytest.approx([float(first)] * 2, rel=1e-4), name
    assert rows[0][0]["loss_depth_below_3"]
    assert rows[0][0]["loss_depth_3_to_3.5"]
    assert not rows[0][0]["loss_depth_above_4"]  # no cell: an empty field, not a nan
    assert rows[0][1]["val_loss_zero"]


def test_a_part_that_a_step_lacks_is_not_the_step_before(tmp_path, rng):
    """One deep cell among shallow ones: its bin has a figure in the rows of its steps alone."""
    run = changed(toy_run(tmp_path, rng), loader={"batch_size": 1}, train={"steps": 5})
    pretrain(run, tmp_path / "run", vocab=toy_vocab())
    for row in read_metrics(tmp_path / "run" / "metrics.csv"):
        depths = [row[f"loss_{part}"] for part in PARTS if part.startswith("depth")]
        assert sum(map(bool, depths)) == 1  # one cell a step is in one bin
        both = [float(row[f"loss_{kind}"]) for kind in ("expressed", "zero")]
        assert min(both) <= float(row["loss_query"]) <= max(both)


@pytest.mark.multiprocess
def test_two_processes_log_what_one_does(tmp_path, rng):
    """On seven cells a step, dealt unevenly; the oracle is one process."""
    run = toy_run(tmp_path, rng)
    asked = {
        **{"train.steps": 3, "train.validate_every": 3, "train.accelerator": "cpu"},
        **{"loader.batch_size": 7, "logging.every_n_steps": 1, "model.d_model": 16},
        **{"logging.peak_tflops": 1, "logging.tensorboard": "true", "input.minimum_coverage": 0},
    }
    more = [word for key, value in asked.items() for word in ("--set", f"{key}={value}")]
    rows = []
    for n in (1, 2):
        out = tmp_path / str(n)
        command = ["pretrain", "--config", "scfm-tiny", "--data", run.data[0], "--out", str(out)]
        done = run_processes(n, [*command, *more])
        assert done.returncode == 0, done.stderr
        with (out / "metrics.csv").open(newline="") as file:
            rows.append(list(csv.DictReader(file)))
    for one, two in zip(*rows, strict=True):
        for name in LOSS_COLUMNS:
            assert bool(one[name]) == bool(two[name]), name
            if one[name]:
                assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-4), name
    # per second, so only their ratios tell: useful tokens a cell, operations a token
    for more_of, of in (("tokens_per_s", "cells_per_s"), ("mfu", "tokens_per_s")):
        ratios = [float(r[0][more_of]) / float(r[0][of]) for r in rows]
        devices = 2 if more_of == "mfu" else 1
        assert ratios[0] == pytest.approx(devices * ratios[1], rel=1e-4)
