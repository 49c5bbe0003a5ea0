"""--resume: the same command, whatever became of the run; nothing that would change it."""

import errno
import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path

import anndata
import pytest
import yaml

from scfm.config import from_mapping, to_mapping, to_yaml
from scfm.data.lock import LOCK, release_lock, take_lock
from scfm.errors import ConfigError, InputError, Interrupted, ScfmWarning
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_run import (
    MACHINE_KEYS,
    PretrainRun,
    absolute,
    moved,
    on_these_processes,
    read_run,
    with_paths,
)
from scfm.train.checkpoint_files import checkpoints
from scfm.train.loggers import read_metrics
from scfm.train.progress import StepProgress
from tests.toys import toy_vocab
from tests.train.toy_runs import changed, stop_at, toy_run


@pytest.fixture
def run(tmp_path, rng) -> PretrainRun:
    return changed(
        toy_run(tmp_path, rng),
        train={"steps": 5, "validate_every": 5},
        checkpoints={"every_n_steps": 100},
    )


@pytest.fixture
def stopped(run, tmp_path, monkeypatch) -> Path:
    """A run folder whose run was stopped at step 2."""
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            pretrain(run, tmp_path / "run", vocab=toy_vocab())
    return tmp_path / "run"


def losses(out: Path) -> list[str]:
    return [row["loss"] for row in read_metrics(out / "metrics.csv")]


def test_same_command_goes_on(run, stopped, tmp_path):
    resume(stopped, asked=run)
    pretrain(run, tmp_path / "straight", vocab=toy_vocab())
    assert losses(stopped) == losses(tmp_path / "straight")


def test_same_command_without_its_data_goes_on(run, stopped):
    """``--config`` alone: the data is in config.yaml."""
    resume(stopped, asked=replace(run, data=()))
    assert len(losses(stopped)) == 5


@pytest.mark.parametrize(
    ("change", "key", "recorded", "asked"),
    [
        ({"optim": {"lr": 0.5}}, "optim.lr", "0.001", "0.5"),
        ({"train": {"precision": "bf16-mixed"}}, "train.precision", "32-true", "bf16-mixed"),
        ({"loader": {"weights": {"a": 2.0}, "balance": "b"}}, "loader.weights", "{}", "{'a': 2.0}"),
        ({"seed": 3}, "seed", "0", "3"),
        ({"data": ["/elsewhere.h5ad"]}, "data", "cells.h5ad'", "/elsewhere.h5ad'"),
    ],
)
def test_change_of_the_run_is_refused_by_name(run, stopped, change, key, recorded, asked):
    before = (stopped / "config.yaml").read_text()
    with pytest.raises(ConfigError) as refused:
        resume(stopped, asked=asked_with(run, change))
    assert f"{key} is " in str(refused.value)
    assert recorded in str(refused.value)
    assert asked in str(refused.value).partition("asked is ")[2]
    assert (stopped / "config.yaml").read_text() == before


def asked_with(run: PretrainRun, change: dict) -> PretrainRun:
    settings = to_mapping(run)
    for key, value in change.items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    return from_mapping(PretrainRun, settings, where="test")


# Lightning tells callbacks apart by their settings
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_machine_checkpoints_and_logging_may_change(run, stopped):
    asked = asked_with(
        run,
        {
            "train": {"devices": "auto", "strategy": "auto", "recompute": "full"},
            "checkpoints": {"every_n_steps": 3},
            "logging": {"every_n_steps": 5},
            "loader": {"prefetch": 1},
        },
    )
    resume(stopped, asked=asked)
    assert "step=3" in [path.name for path in checkpoints(stopped)]
    assert read_run(stopped) == run  # as it was begun


def test_every_other_key_is_held_fast(run):
    """The list of what may change is what this says, and nothing is forgotten in it."""
    sections = to_mapping(run)
    keys = {
        f"{name}.{key}" if isinstance(section, dict) else name
        for name, section in sections.items()
        for key in (section if isinstance(section, dict) else [""])
    }
    assert set(MACHINE_KEYS) < keys
    fast = keys - set(MACHINE_KEYS)
    assert {key for key in fast if key.startswith("train.")} == {
        *("train.steps", "train.precision", "train.accumulate", "train.validate_every")
    }
    assert not [key for key in fast if key.startswith(("checkpoints.", "logging.", "guard."))]


def test_run_that_never_began_begins(run, tmp_path):
    """Killed before it wrote config.yaml, even after it had made the folder and other files."""
    out = tmp_path / "new"
    out.mkdir()
    (out / "vocab.tsv").write_text("torn")
    run = replace(run, input=replace(run.input, minimum_coverage=0.0))
    with pytest.warns(ScfmWarning, match="holds no run yet: it begins"):
        resume(out, asked=run)
    assert len(losses(out)) == 5


def test_run_that_never_began_needs_to_know_what(run, tmp_path):
    with pytest.raises(ConfigError, match="is no run folder"):
        resume(tmp_path / "nothing")
    with pytest.warns(ScfmWarning), pytest.raises(ConfigError, match="--data"):
        resume(tmp_path / "nothing", asked=replace(run, data=()))


def test_run_without_a_checkpoint_begins_again(run, stopped, tmp_path):
    shutil.rmtree(stopped / "checkpoints")
    with pytest.warns(ScfmWarning, match="no checkpoint yet: the run begins again at step 0"):
        resume(stopped, asked=run)
    pretrain(run, tmp_path / "straight", vocab=toy_vocab())
    assert losses(stopped) == losses(tmp_path / "straight")


def test_run_without_a_checkpoint_still_checks_its_data(run, stopped):
    shutil.rmtree(stopped / "checkpoints")
    cells = anndata.read_h5ad(run.data[0])
    cells[::-1].copy().write_h5ad(run.data[0])
    with (
        pytest.warns(ScfmWarning, match="begins again"),
        pytest.raises(InputError, match="has changed"),
    ):
        resume(stopped, asked=run)


def test_finished_run_stays_as_it_is(run, stopped):
    model = resume(stopped)
    files = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    with pytest.warns(ScfmWarning, match="finished already"):
        assert resume(stopped, asked=run) == model
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()} == files
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        resume(stopped, ["optim.lr=1"])


def test_two_never_train_in_one_folder(run, tmp_path, monkeypatch):
    """Locks are between open files: this process stands for another one too."""
    out, refusals = tmp_path / "run", []
    original = StepProgress.on_train_batch_end
    owner = f"process {os.getpid()} on {os.uname().nodename}"

    def meddle(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step != 2:
            return
        files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        for start in (resume, lambda o: resume(o, asked=run), lambda o: pretrain(run, o)):
            with pytest.raises(
                ConfigError, match=f"A run is going on in {out} .{owner}"
            ) as refused:
                start(out)
            refusals.append(refused)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files

    with monkeypatch.context() as patch:
        patch.setattr(StepProgress, "on_train_batch_end", meddle)
        patch.setattr("scfm.data.lock.GRACE_SECONDS", 0)
        pretrain(run, out, vocab=toy_vocab())
    assert len(refusals) == 3
    release_lock(take_lock(out / LOCK))


def test_a_run_that_failed_lets_go_of_its_folder(stopped):
    release_lock(take_lock(stopped / LOCK))


def test_folder_without_locks_is_warned_of(stopped, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(ScfmWarning, match="cannot be locked"):
        resume(stopped)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoints": {"every_n_steps": 3}}, r"every_n_steps=3 .* train\.validate_every=5"),
        ({"loader": {"held_out_share": 0.0}}, "needs held-out cells"),
        ({"loader": {"max_held_out": 0}}, "needs held-out cells"),
    ],
)
def test_best_that_nobody_could_know_is_refused(run, tmp_path, change, words):
    """Before the folder is a run."""
    best = asked_with(run, {"checkpoints": {"keep_best": 1}})
    with pytest.raises(ConfigError, match=words):
        pretrain(asked_with(best, change), tmp_path / "run", vocab=toy_vocab())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_best_that_nobody_could_know_is_refused_later_too(stopped):
    with pytest.raises(ConfigError, match="divide it"):
        resume(stopped, ["checkpoints.keep_best=1", "checkpoints.every_n_steps=3"])


def test_run_is_recorded_on_the_processes_it_has(run, monkeypatch):
    assert on_these_processes(run) is run
    for name, value in {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "RANK": 5, "WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    train = on_these_processes(run).train
    assert (train.devices, train.num_nodes) == (4, 2)


def test_config_yaml_makes_the_folder_a_run(run, stopped):
    """It is written last: with it, all a resume needs is there."""
    written = {name: (stopped / name).stat().st_mtime_ns for name in ("vocab.tsv", "data.json")}
    assert (stopped / "config.yaml").stat().st_mtime_ns >= max(written.values())
    assert yaml.safe_load((stopped / "config.yaml").read_text()) == to_mapping(run)


@pytest.fixture
def recorded(run, tmp_path) -> Path:
    """A run folder as far as what it is to be is written down."""
    out = tmp_path / "recorded"
    out.mkdir()
    (out / "config.yaml").write_text(to_yaml(absolute(run)))
    return out


def test_another_guard_is_taken_and_said(run, recorded):
    asked = asked_with(run, {"guard": {"on_nonfinite": "skip"}})
    with pytest.warns(ScfmWarning, match=r"guard\.on_nonfinite was stop when .* on with skip"):
        assert moved(recorded, asked).guard.on_nonfinite == "skip"
    assert read_run(recorded) == run


def test_another_strategy_is_explained(run, recorded):
    with pytest.raises(ConfigError, match=r"of train\.strategy auto and ddp are one, others stay"):
        moved(recorded, asked_with(run, {"seed": 1}))


MACHINE_PATHS = {
    "train": {
        **{"strategy": "deepspeed_3", "offload": "parameters"},
        **{"offload_to": "drive", "deepspeed": "machine.json"},
    },
    "checkpoints": {"mirror": "copies"},
}


def test_paths_are_recorded_whole(run, tmp_path, monkeypatch):
    """And the same relative path is the same again, where it is asked from the same folder."""
    monkeypatch.chdir(tmp_path)
    run = asked_with(run, MACHINE_PATHS)
    found = absolute(run)
    assert found.train.offload_to == str(tmp_path / "drive")
    assert found.train.deepspeed == str(tmp_path / "machine.json")
    assert found.checkpoints.mirror == str(tmp_path / "copies")
    (tmp_path / "config.yaml").write_text(to_yaml(found))
    assert moved(tmp_path, run) == read_run(tmp_path) == found
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert absolute(read_run(tmp_path)) == found
    names = to_mapping(with_paths(found, lambda path: Path(path).name))
    assert "/" not in str(names)
    assert names["train"]["offload_to"] == "drive"


@pytest.mark.parametrize("mirror", ["s3://bucket/run", "memory://run", "~/copies", None])
def test_what_is_no_relative_path_stays(run, mirror):
    run = asked_with(run, {"checkpoints": {"mirror": mirror}})
    assert absolute(run) == run
    assert absolute(run).train.offload_to == "cpu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoints": {"mirror": "foo://bar"}}, "mirror=foo://bar cannot be opened"),
        (
            {"train": {"strategy": "deepspeed_2"}, "guard": {"on_nonfinite": "skip"}},
            "on_nonfinite=skip does not work with deepspeed",
        ),
        ({"train": {"deepspeed": "x.json"}}, "x.json needs train.strategy=deepspeed_1"),
        ({"train": {"strategy": "deepspeed_1", "deepspeed": "x.json"}}, "no file x.json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(run, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        pretrain(asked_with(run, change), tmp_path / "new", vocab=toy_vocab())
    assert not (tmp_path / "new").exists()
