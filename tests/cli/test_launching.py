"""Several processes by one command: started, stopped, gone on with, and heard once."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import anndata as ad
import pytest
import typer

from scfm.cli import launching
from scfm.errors import ConfigError, Interrupted, MissingFileError
from scfm.train.processes import AnotherSaysWhy
from scfm.train.trainer import TrainConfig

PRETRAIN = [sys.executable, "-m", "scfm.cli", "pretrain", "--config", "scfm-tiny"]
SETTINGS = [
    *("--set", "train.steps=16", "--set", "model.d_model=16", "--set", "loader.batch_size=8"),
    *("--set", "train.validate_every=8", "--set", "logging.every_n_steps=1"),
    *("--set", "train.accelerator=cpu", "--set", "train.devices=2"),
]


@pytest.fixture
def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}


def under_torchrun(monkeypatch, rank: int = 0, local: int = 2, world: int = 2) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
    for name, value in (values | {"WORLD_SIZE": world}).items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.multiprocess
@pytest.mark.slow
def test_ctrl_c_and_the_same_command_with_resume(demo_cells, tmp_path, environment):
    cells, out = tmp_path / "cells.h5ad", tmp_path / "run"
    ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::20].copy().write_h5ad(cells)
    command = [*PRETRAIN, "--data", cells, "--out", out, *SETTINGS, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGINT)
        printed, err = process.stdout.read(), "".join(said)
    assert process.returncode == 2, err
    assert printed == ""
    assert err.count("scfm: ") == err.count("scfm: Stopped at step") == 1, err
    assert err.count("Stopping after this step") == 1
    assert f"scfm pretrain --out {out} --resume" in err
    assert "Traceback" not in err
    assert "torch/distributed" not in err
    (checkpoint,) = (out / "checkpoints").iterdir()

    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"run": str(out), "model": str(out / "model")}
    assert done.stderr.count("Model written to") == 1
    step = int(checkpoint.stem.partition("=")[2])
    assert f"step {step + 1}/16 " in done.stderr
    assert f"step {step}/16 " not in done.stderr
    with (out / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 17))


@pytest.mark.multiprocess
def test_bad_input_is_said_once(tmp_path, environment):
    command = [*PRETRAIN, "--data", "nowhere.h5ad", "--out", tmp_path / "run", *SETTINGS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("scfm: ") == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "nowhere.h5ad" in done.stderr


def test_processes_of_a_plain_command(monkeypatch):
    def count(overrides=(), is_recorded=False, **train):
        config = TrainConfig(accelerator="cpu", **train)
        return launching.processes_to_start(config, overrides, is_recorded=is_recorded)

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert count() == 1
    assert count(devices=3) == 3
    assert count(devices="auto") == 1  # of CPUs there is one, with many cores
    with pytest.raises(ConfigError, match=r"train\.num_nodes=2.*torchrun_nodes"):
        count(num_nodes=2)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters set it, for machines
    assert count(devices=3) == 3


def test_under_torchrun_its_numbers_hold(monkeypatch):
    def count(*overrides, is_recorded=False, **train):
        return launching.processes_to_start(
            TrainConfig(**train), list(overrides), is_recorded=is_recorded
        )

    under_torchrun(monkeypatch, local=2, world=4)
    assert count() == 1
    assert count(devices=2, num_nodes=2) == 1
    assert count(devices="auto") == 1
    assert count(devices=8, is_recorded=True) == 1  # begun elsewhere
    for wrong in ({"devices": 3}, {"num_nodes": 3}):
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=rf"train\.{name}={value}, but torchrun started 2"):
            count(**wrong)
    with pytest.raises(ConfigError, match=r"train\.devices=1, but torchrun started 2"):
        count("train.devices=1", devices=1)
    with pytest.raises(ConfigError, match=r"train\.devices=8, but torchrun started 2"):
        count("train.devices=8", devices=8, is_recorded=True)


def test_the_first_process_speaks_at_once(monkeypatch):
    under_torchrun(monkeypatch, rank=0)
    monkeypatch.setattr(launching.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(MissingFileError), launching.one_voice():
        raise MissingFileError("no such file")


@pytest.mark.parametrize(
    ("error", "seconds", "ends_as"),
    [
        (MissingFileError("no such file"), launching.PATIENCE, MissingFileError),
        (RuntimeError("a fault"), launching.PATIENCE, RuntimeError),
        (AnotherSaysWhy("all stop"), launching.PATIENCE_WITH_ALL, typer.Exit),
        (Interrupted("a signal"), 1, typer.Exit),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_others_wait_for_it(monkeypatch, error, seconds, ends_as):
    """What none has said for them by then, they say."""
    under_torchrun(monkeypatch, rank=1)
    waited = []
    monkeypatch.setattr(launching.time, "sleep", waited.append)
    with pytest.raises(ends_as), launching.one_voice():
        raise error
    assert waited == [seconds]


def test_the_others_end_in_silence_when_asked(monkeypatch):
    under_torchrun(monkeypatch, rank=1)
    handlers = {n: signal.getsignal(n) for n in launching.FORWARDED}
    monkeypatch.setattr(launching.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(typer.Exit) as ended, launching.one_voice():
        raise MissingFileError("no such file")
    assert ended.value.exit_code == 2
    assert {n: signal.getsignal(n) for n in launching.FORWARDED} == handlers


@pytest.mark.parametrize(
    ("codes", "expected", "words"),
    [
        ([(2, 5), (-15, 6)], 2, ""),  # bad input in one, the other ended for it
        ([(1, 5), (2, 5)], 1, ""),
        ([(-9, 5), (1, 6)], 1, "process 1 of 2 was ended by SIGKILL.*memory is full.*--resume"),
    ],
)
def test_exit_code_is_the_first_failures(capsys, codes, expected, words):
    failures = {n: SimpleNamespace(exitcode=c, timestamp=t) for n, (c, t) in enumerate(codes)}
    assert launching._exit_code(failures, 2) == expected
    assert re.search(words, capsys.readouterr().err)
