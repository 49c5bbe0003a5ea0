"""metrics.csv, TensorBoard and wandb: the same steps and numbers, and one run after a resume."""

import pytest
from lightning.pytorch.utilities import rank_zero_only

from scfm.errors import ConfigError, Interrupted
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_objective import ObjectiveConfig, metrics_of
from scfm.train.loggers import (
    CsvMetrics,
    LoggingConfig,
    read_metrics,
    tensorboard_logger,
    wandb_logger,
)
from tests.toys import toy_vocab
from tests.train.toy_runs import changed, stop_at, toy_run


def scalars(folder, name: str) -> list[tuple[int, float]]:
    """(step, value) as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.parametrize("stopped_at", [3, 4])
def test_rows_after_a_resume_are_those_of_a_run_never_stopped(
    tmp_path, rng, monkeypatch, stopped_at
):
    """Every other step is logged; CSV and TensorBoard hold the same steps and losses."""
    run = changed(toy_run(tmp_path, rng), logging={"every_n_steps": 2, "tensorboard": True})
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        with pytest.raises(Interrupted):
            pretrain(run, out, vocab=toy_vocab())
    resume(out)
    rows = read_metrics(out / "metrics.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    for name in ("loss", "loss_zero", "tokens_per_s", "val_loss", "gradient_norm"):
        written = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert scalars(out / "tensorboard", name) == [
            (step, pytest.approx(value, rel=1e-5)) for step, value in written
        ], name
    assert rows[-1]["val_loss"]


def test_tensorboard_forgets_what_no_checkpoint_has(tmp_path):
    first = tensorboard_logger(tmp_path, at_step=0)
    for step in range(1, 6):
        first.steps_done = lambda step=step: step
        first.log_metrics({"loss": step, "epoch": 0})
    first.finalize("success")
    again = tensorboard_logger(tmp_path, at_step=3)
    again.steps_done = lambda: 4
    again.log_metrics({"loss": 40.0})
    again.finalize("success")
    assert scalars(tmp_path / "tensorboard", "loss") == [(1, 1), (2, 2), (3, 3), (4, 40)]
    with pytest.raises(KeyError):
        scalars(tmp_path / "tensorboard", "epoch")


def test_without_tensorboard_the_next_command_is_named(tmp_path, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        tensorboard_logger(tmp_path, at_step=0)


def test_wandb_id_is_made_once_by_the_first_process(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    config, file = LoggingConfig(wandb="offline"), tmp_path / "wandb_id.txt"
    with monkeypatch.context() as patch:
        patch.setattr(rank_zero_only, "rank", 1)
        wandb_logger(tmp_path, config, {})
    assert not file.exists()
    logger = wandb_logger(tmp_path, config, {})
    chosen = file.read_text()
    assert logger.version == chosen
    assert wandb_logger(tmp_path, config, {}).version == chosen  # the run goes on
    assert file.read_text() == chosen


def test_a_cell_is_empty_where_there_is_no_number_and_nan_where_it_is_none(tmp_path):
    metrics = CsvMetrics(tmp_path / "metrics.csv", ["loss", "spike"])
    metrics.start(at_step=0)
    for step, loss in ((1, 0.5), (2, float("nan"))):
        metrics.steps_done = lambda step=step: step
        metrics.log_metrics({"loss": loss})
    metrics.log_metrics({"spike": 1, "unknown": 3})  # a second call for a row completes it
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        *("step,loss,spike", "1,0.5,", "2,nan,1"),
    ]


def test_every_column_is_documented():
    from tests.conftest import ROOT

    text = (ROOT / "docs" / "training_numbers.md").read_text()
    for name in ("step", *metrics_of(ObjectiveConfig())):
        assert f"`{name.removeprefix('val_')}`" in text, name


@pytest.mark.parametrize("peak", [0, -1, float("inf")])
def test_impossible_peaks_are_refused(peak):
    with pytest.raises(ValueError, match=r"logging\.peak_tflops"):
        LoggingConfig(peak_tflops=peak)
