"""A run's checkpoints: written whole or not at all, found again newest first.

in   what a trainer wants saved
out  RUN/checkpoints/step=N.ckpt

Checkpoints hold tensors and plain values only and are read with ``weights_only=True``.
"""

import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from scfm.data.write import atomic_path
from scfm.errors import ModelError, ScfmWarning


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often, how many, where else."""

    every_n_steps: int = 500  # optimiser steps
    keep_last: int = 2
    keep_best: int = 0  # by the validation loss
    keep_every_hours: float | None = None  # one of each so many hours stays for good
    asynchronous: bool = True  # written beside training, where the strategy can
    mirror: str | None = None  # a second place for each (fsspec)

    def __post_init__(self) -> None:
        for name, least in (("every_n_steps", 1), ("keep_last", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"checkpoints.{name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.keep_every_hours is not None and not self.keep_every_hours > 0:
            raise ValueError(
                f"checkpoints.keep_every_hours must be positive, got {self.keep_every_hours}"
            )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a kill or a full disk leaves the old file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


class StepCheckpoint(ModelCheckpoint):
    """Every ``every_n_steps`` optimiser steps and at the last; the newest ``keep`` stay."""

    def __init__(self, run: Path, every_n_steps: int, keep: int):
        super().__init__(
            dirpath=run / "checkpoints",
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, newest step first."""
    found = (run / "checkpoints").glob("step=*.ckpt")
    return sorted(found, key=_step, reverse=True)


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint that is whole. Raises ModelError where there is none."""
    for path in checkpoints(run):
        if zipfile.is_zipfile(path):
            return path
        warnings.warn(f"{path} is truncated; taking the one before it.", ScfmWarning, stacklevel=2)
    raise ModelError(
        f"{run} holds no checkpoint to resume from. Start the run anew with another --out, or "
        "remove the folder."
    )


def _step(path: Path) -> int:
    match = re.search(r"step=(\d+)", path.name)
    assert match is not None, path
    return int(match.group(1))
