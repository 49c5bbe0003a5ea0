"""A run's numbers -> metrics.csv, and to wandb where asked for.

in   named scalars at a step
out  RUN/metrics.csv, one row a logged step; nothing of an earlier part of the run is lost
"""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

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


class CsvMetrics(Logger):
    """metrics.csv with fixed columns; a cell is empty where a number was not taken at that step.

    ``step`` counts optimiser steps done. When a run resumes at step N, rows after N (written but
    not checkpointed) are dropped, so the file reads as if the run had never stopped.
    """

    def __init__(self, path: Path, columns: list[str]):
        super().__init__()
        self.steps_done: Callable[[], int] = lambda: 0  # the trainer's, once there is one
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


def wandb_logger(run: Path, config: LoggingConfig, settings: Mapping[str, Any]) -> Logger:
    """A wandb logger whose run id survives a resume. Raises ConfigError without wandb."""
    try:
        from lightning.pytorch.loggers import WandbLogger

        id_file = run / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid4().hex[:8])
        return WandbLogger(
            name=run.name,
            save_dir=str(run),
            project=config.wandb_project,
            offline=config.wandb == "offline",
            id=id_file.read_text(),
            resume="allow",
            config=dict(settings),
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "logging.wandb is set, but wandb is not installed. Run: pip install 'scfm[wandb]'"
        ) from error


def _short(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return value
