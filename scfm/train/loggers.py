"""A run's numbers -> metrics.csv, and to TensorBoard and wandb where asked for.

in   named scalars at a step
out  RUN/metrics.csv, one row a logged step; nothing of an earlier part of the run is lost

All of them count optimiser steps done. Lightning's own count is one behind, and one off after some
resumes; ``LogSteps`` mends both.
"""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import lightning.pytorch as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from scfm.data.write import atomic_path
from scfm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where numbers go besides metrics.csv."""

    every_n_steps: int = 10
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "scfm"
    tensorboard: bool = False
    peak_tflops: float | None = None  # of one device, for MFU; None: from the table of known ones

    def __post_init__(self) -> None:
        if self.every_n_steps < 1:
            raise ValueError(f"logging.every_n_steps must be at least 1, got {self.every_n_steps}")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"logging.peak_tflops must be positive, got {self.peak_tflops}")


class CountsSteps:
    """A logger that is told how many optimiser steps are done."""

    steps_done: Callable[[], int] = staticmethod(lambda: 0)  # the trainer's, once there is one


class LogSteps(L.Callback):
    """Which steps are logged, and as which: by the optimiser steps done alone.

    First among the callbacks: the others ask it, by ``is_logged``.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CountsSteps):
                logger.steps_done = lambda: trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning adds one too many when it resumes from a checkpoint that was saved between two
        # batches: rows would then be taken at other steps than those of a run never stopped.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def is_logged(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the last of an optimiser step whose numbers are logged."""
    is_last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return is_last and trainer._logger_connector.should_update_logs


def log_row(trainer: L.Trainer, numbers: Mapping[str, float]) -> None:
    """Numbers that not every row has, after the step they are of.

    Lightning writes what a module once logged into every later row, where it was not logged again.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(numbers), step=trainer.global_step)


class CsvMetrics(CountsSteps, Logger):
    """metrics.csv with fixed columns; a cell is empty where a number was not taken at that step.

    ``step`` counts optimiser steps done. When a run resumes at step N, rows after N (written but
    not checkpointed) are dropped, so the file reads as if the run had never stopped.
    """

    def __init__(self, path: Path, columns: list[str]):
        super().__init__()
        self.path, self.columns = path, ["step", *columns]
        self.row: dict[str, Any] = {}
        self.row_start = 0  # where in the file the row begins that may still gain numbers

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def start(self, at_step: int) -> None:
        """Write the header, or keep the rows up to ``at_step`` of what is there."""
        rows = [r for r in read_metrics(self.path) if at_step and int(r["step"]) <= at_step]
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        known = {k: v for k, v in metrics.items() if k in self.columns}
        if not known:
            return
        # Lightning's own ``step`` is one off after some resumes; the trainer's count is not.
        done = self.steps_done()
        # Training and validation numbers of a step come in separate calls: one row, rewritten.
        if self.row.get("step") != done:
            self.row, self.row_start = {"step": done}, self.path.stat().st_size
        self.row |= {k: _short(v) for k, v in known.items()}
        with self.path.open("r+", newline="") as file:
            file.seek(self.row_start)
            file.truncate()
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(self.row)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml says it all."""


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv; none where there is no file. A torn last line is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def tensorboard_logger(run: Path, at_step: int) -> Logger:
    """TensorBoard's files in RUN/tensorboard; rows beyond ``at_step`` are hidden on a resume.

    Raises ConfigError without tensorboard.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    class StepTensorBoard(CountsSteps, TensorBoardLogger):
        @rank_zero_only
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            super().log_metrics(_without_epoch(metrics), self.steps_done())

        @rank_zero_only
        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            """The run's config.yaml says it all."""

        @rank_zero_only
        def save(self) -> None:
            self.experiment.flush()

    try:
        return StepTensorBoard(
            save_dir=str(run),
            name="tensorboard",
            version="",
            purge_step=at_step + 1 if at_step else None,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "logging.tensorboard is true, but tensorboard is not installed. Run: pip install "
            "tensorboard"
        ) from error


def wandb_logger(run: Path, config: LoggingConfig, settings: Mapping[str, Any]) -> Logger:
    """A wandb logger whose run id survives a resume. Raises ConfigError without wandb."""
    from lightning.pytorch.loggers import WandbLogger

    class StepWandb(CountsSteps, WandbLogger):
        @rank_zero_only
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            super().log_metrics(_without_epoch(metrics), self.steps_done())

    try:
        return StepWandb(
            name=run.name,
            save_dir=str(run),
            project=config.wandb_project,
            offline=config.wandb == "offline",
            id=_wandb_id(run / "wandb_id.txt"),
            resume="allow",
            config=dict(settings),
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "logging.wandb is set, but wandb is not installed. Run: pip install 'scfm[wandb]'"
        ) from error


def _wandb_id(file: Path) -> str | None:
    """The run's id, made once. Only the first process talks to wandb; others need none."""
    if rank_zero_only.rank != 0:
        return None
    if not file.exists():
        with atomic_path(file) as temporary:
            temporary.write_text(uuid4().hex[:8])
    return file.read_text()


def _without_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without Lightning's count of epochs: a run is one of them, whatever the data's size."""
    return {name: value for name, value in metrics.items() if name != "epoch"}


def _short(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return value
