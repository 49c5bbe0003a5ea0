"""Runs of several processes go on exactly, on as many processes and on others.

The oracle is the run that was never stopped.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load_file

from scfm.tools.export_model import export_model
from scfm.train.checkpoint_files import checkpoint_folder, checkpoints, read_manifest, step_of
from scfm.train.loggers import read_metrics
from tests.train.toy_runs import numbers
from tests.train.warm_processes import run_processes

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

SETTINGS = [
    *("train.steps=40", "train.validate_every=10", "train.accelerator=cpu"),
    *("model.d_model=16", "loader.batch_size=8", "logging.every_n_steps=1"),
    *("checkpoints.every_n_steps=5", "checkpoints.keep_last=9"),
]
STRATEGIES = ["ddp", "fsdp", "deepspeed_2"]


@pytest.fixture(scope="module")
def cells(demo_cells, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::20].copy().write_h5ad(path)
    return path


def arguments(n_processes: int, run: Path, strategy: str, *more: str) -> list[str]:
    machine = [
        "train.accelerator=cpu",
        f"train.devices={n_processes}",
        f"train.strategy={strategy}",
    ]
    words = [word for setting in machine for word in ("--set", setting)]
    return ["pretrain", "--out", str(run), *words, *more]


def new_run(cells: Path) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["--config", "scfm-tiny", "--data", str(cells), *settings]


def make(n_processes: int, run: Path, strategy: str, *more: str) -> str:
    """Run to the end; what was said."""
    done = run_processes(n_processes, arguments(n_processes, run, strategy, *more))
    assert done.returncode == 0, done.stderr
    return done.stderr


def killed_after(run: Path, copy: Path, step: int) -> Path:
    """What a kill right after a step's checkpoint would have left, with rows of later steps."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    for path in checkpoints(copy):
        if step_of(path) > step:
            shutil.rmtree(path)
    (copy / "checkpoints" / f".step={step + 5}.partial").mkdir()
    return copy


def truncate_newest(run: Path) -> Path:
    newest = checkpoints(run)[0]
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    return newest


def assert_same_numbers(one: Path, other: Path, rtol: float) -> None:
    ours, theirs = numbers(one), numbers(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for name in ("loss", "val_loss", "lr"):
        values = [[float(row[name]) for row in rows if row[name]] for rows in (ours, theirs)]
        np.testing.assert_allclose(values[0], values[1], rtol=rtol, err_msg=name)


def assert_same_weights(one: Path, other: Path, atol: float) -> None:
    theirs = load_file(other / "model.safetensors")
    for name, ours in load_file(one / "model.safetensors").items():
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def straight(cells, tmp_path_factory):
    """Runs of 40 steps on two processes that were never stopped, made when first asked for."""
    made: dict[str, Path] = {}

    def of(strategy: str) -> Path:
        if strategy not in made:
            made[strategy] = tmp_path_factory.mktemp("straight") / strategy
            make(2, made[strategy], strategy, *new_run(cells))
        return made[strategy]

    return of


def test_killed_run_ends_as_if_never_stopped(cells, straight, tmp_path):
    """A real kill -9 at about step 17 of 40."""
    run = tmp_path / "killed"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = subprocess.Popen(
        [*torchrun, "-m", "scfm.cli", *arguments(2, run, "ddp", *new_run(cells))],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while process.poll() is None and len(read_metrics(run / "metrics.csv")) < 17:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "model").exists()
    assert max(int(r["step"]) for r in numbers(run)) > step_of(checkpoints(run)[0]) >= 10
    make(2, run, "ddp", "--resume")
    assert numbers(run) == numbers(straight("ddp"))
    assert_same_weights(run / "model", straight("ddp") / "model", atol=0)
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_same_number_of_processes_is_exact(straight, tmp_path, strategy):
    """Also where the newest checkpoint is damaged: the one before is taken, and this is said."""
    run = killed_after(straight(strategy), tmp_path / "run", 20)
    damaged = truncate_newest(run)
    said = make(2, run, strategy, "--resume")
    assert f"{damaged} is damaged" in said
    assert f"Taking {checkpoint_folder(run, 15)}" in said
    assert numbers(run) == numbers(straight(strategy))
    assert_same_weights(run / "model", straight(strategy) / "model", atol=0)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "deepspeed_3"])
def test_other_numbers_of_processes_go_on_exactly(straight, tmp_path, strategy):
    """2 -> 3 -> 1 processes; weight decay and step counts of the optimiser must survive too."""
    three = killed_after(straight(strategy), tmp_path / "three", 15)
    make(3, three, strategy, "--resume")
    assert read_manifest(checkpoints(three)[0]).world_size == 3
    assert_same_numbers(three, straight(strategy), rtol=1e-5)
    one = killed_after(three, tmp_path / "one", 30)
    make(1, one, strategy, "--resume")
    assert_same_numbers(one, straight(strategy), rtol=1e-5)
    assert_same_weights(one / "model", straight(strategy) / "model", atol=1e-4)


@pytest.mark.parametrize("strategy", [*STRATEGIES[1:], "deepspeed_3"])
def test_exports_of_all_strategies_agree(straight, tmp_path, strategy):
    """Without a process group, from shards; the oracle is ddp, whose weights are whole."""
    theirs = export_model(f"{straight('ddp')}@10", tmp_path / "ddp")
    ours = export_model(f"{straight(strategy)}@10", tmp_path / "ours")
    assert_same_weights(ours, theirs, atol=1e-5)
    last = export_model(straight(strategy), tmp_path / "last")
    assert_same_weights(last, straight(strategy) / "model", atol=0)
    assert_same_numbers(straight(strategy), straight("ddp"), rtol=1e-5)


def test_another_strategy_is_refused(straight, tmp_path):
    run = killed_after(straight("ddp"), tmp_path / "run", 20)
    done = run_processes(1, arguments(1, run, "fsdp", "--resume"))
    assert done.returncode != 0
    assert "train.strategy=ddp" in done.stderr
