"""Exact resume: stopped anywhere, a run ends where it would have ended."""

from dataclasses import replace
from pathlib import Path

import anndata
import pytest

from scfm.config import to_mapping
from scfm.errors import ConfigError, DivergedError, InputError, Interrupted, ScfmWarning
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_run import PretrainRun, read_run
from scfm.train.checkpoint import latest_checkpoint
from scfm.train.checkpoint_files import checkpoints
from scfm.train.loggers import read_metrics
from scfm.train.optim import OptimConfig
from scfm.train.throughput import Throughput
from tests.toys import toy_vocab
from tests.train.toy_runs import assert_same_model, changed, numbers, stop_at, toy_run


@pytest.fixture
def run(tmp_path, rng) -> PretrainRun:
    return changed(
        toy_run(tmp_path, rng),
        train={"steps": 14, "validate_every": 4},
        checkpoints={"every_n_steps": 3},
    )


def crash_at(monkeypatch, step: int) -> None:
    """Fail while ``step + 1`` is being made, as a kill would: nothing more is saved or said."""
    original = Throughput.on_train_batch_end

    def hook(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == step + 1:
            raise RuntimeError("killed")

    monkeypatch.setattr(Throughput, "on_train_batch_end", hook)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stopped_at", [1, 8, 13])  # first, with a validation, last but one
def test_interrupted_run_ends_as_if_never_stopped(
    run, tmp_path, monkeypatch, stopped_at, accumulate
):
    run = replace(run, train=replace(run.train, accumulate=accumulate))
    vocab = toy_vocab()
    pretrain(run, tmp_path / "straight", vocab=vocab)
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        with pytest.raises(Interrupted, match=f"Stopped at step {stopped_at} .* --resume"):
            pretrain(run, tmp_path / "stopped", vocab=vocab)
    assert latest_checkpoint(tmp_path / "stopped").name == f"step={stopped_at}"
    resume(tmp_path / "stopped")
    assert_same_model(tmp_path / "straight", tmp_path / "stopped")
    assert numbers(tmp_path / "straight") == numbers(tmp_path / "stopped")


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_dropout_is_drawn_again(run, tmp_path, monkeypatch, recompute):
    run = replace(
        run,
        model=replace(run.model, dropout=0.3),
        train=replace(run.train, recompute=recompute, accumulate=2, steps=8),
    )
    pretrain(run, tmp_path / "straight", vocab=toy_vocab())
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            pretrain(run, tmp_path / "stopped", vocab=toy_vocab())
    resume(tmp_path / "stopped")
    assert_same_model(tmp_path / "straight", tmp_path / "stopped")
    assert numbers(tmp_path / "straight") == numbers(tmp_path / "stopped")


@pytest.mark.parametrize("crashed_after", [3, 5, 12])  # 3 and 12: right after a checkpoint
def test_killed_run_resumes_from_its_checkpoint(run, tmp_path, monkeypatch, crashed_after):
    run = replace(run, train=replace(run.train, validate_every=3))
    vocab = toy_vocab()
    pretrain(run, tmp_path / "straight", vocab=vocab)
    with monkeypatch.context() as patch:
        crash_at(patch, crashed_after)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(run, tmp_path / "killed", vocab=vocab)
    resume(tmp_path / "killed")
    assert_same_model(tmp_path / "straight", tmp_path / "killed")
    assert numbers(tmp_path / "straight") == numbers(tmp_path / "killed")


def test_truncated_newest_checkpoint_is_passed_over(run, tmp_path):
    vocab = toy_vocab()
    pretrain(run, tmp_path / "run", vocab=vocab)
    newest, before = checkpoints(tmp_path / "run")
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.warns(
        ScfmWarning, match=rf"step=14 is damaged: .* 1,000 bytes .* Taking .*{before}"
    ):
        assert latest_checkpoint(tmp_path / "run") == before


def test_changed_data_is_refused(run, tmp_path, monkeypatch):
    vocab = toy_vocab()
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        pretrain(run, tmp_path / "run", vocab=vocab)
    adata = anndata.read_h5ad(run.data[0])
    adata[::-1].copy().write_h5ad(run.data[0])
    with pytest.raises(InputError, match="has changed since this run was started"):
        resume(tmp_path / "run")


def test_data_that_is_gone_is_refused(run, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    Path(run.data[0]).unlink()
    with pytest.raises(InputError, match="is gone"):
        resume(tmp_path / "run")


def test_resume_may_move_but_not_change(run, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    with pytest.raises(ConfigError, match="would change it"):
        resume(tmp_path / "run", ["optim.lr=1"])
    resume(tmp_path / "run", ["train.devices=1"])


def test_a_diverged_run_stops_and_exports_nothing(run, tmp_path):
    run = replace(run, optim=OptimConfig(lr=1e30, warmup_steps=0))
    with pytest.raises(DivergedError, match=r"optim\.lr"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    assert not (tmp_path / "run" / "model").exists()


def test_logged_loss_is_the_whole_batchs(run, tmp_path):
    """However the batch is cut into micro-batches, equal ones or not."""
    first = []
    for accumulate in (1, 2, 3, 4):
        cut = replace(run, train=replace(run.train, accumulate=accumulate, steps=1))
        pretrain(cut, tmp_path / str(accumulate), vocab=toy_vocab())
        first.append(float(read_metrics(tmp_path / str(accumulate) / "metrics.csv")[0]["loss"]))
    assert first == pytest.approx([first[0]] * 4, rel=1e-5)


def test_run_folder_is_not_overwritten(run, tmp_path):
    pretrain(run, tmp_path / "run", vocab=toy_vocab())
    with pytest.raises(ConfigError, match="--resume"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())


def test_resolved_config_is_the_run(run, tmp_path):
    pretrain(run, tmp_path / "run", vocab=toy_vocab())
    assert to_mapping(read_run(tmp_path / "run")) == to_mapping(run)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="is no run folder"):
        resume(tmp_path)


def test_batch_of_fewer_cells_than_parts_is_refused(run, tmp_path):
    run = replace(run, train=replace(run.train, accumulate=9))
    with pytest.raises(ConfigError, match=r"loader\.batch_size=9"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
