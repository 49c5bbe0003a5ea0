"""Progress for a person.

in   a trainer's events
out  lines or a bar on stderr
"""

import sys
from typing import Any

import lightning.pytorch as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

NUMBERS = (
    ("loss", "loss", ".4f"),
    ("val_loss", "val_loss", ".4f"),
    ("val_aupr", "val_aupr", ".4f"),
    ("cells_per_s", "cells/s", ",.0f"),
    ("tokens_per_s", "useful tokens/s", ",.0f"),
    ("mfu", "mfu", ".1%"),
    ("data_wait", "data wait", ".1%"),
)


class StepProgress(L.Callback):
    """A bar on a terminal, a plain line every ``every_n_steps`` elsewhere; both on stderr."""

    def __init__(self, total_steps: int, every_n_steps: int, what: str = "pretrain"):
        self.total_steps, self.every_n_steps, self.what = total_steps, every_n_steps, what
        self.bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        console = Console(stderr=True)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        self.bar = Progress(
            TextColumn(self.what),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self.task = self.bar.add_task("", total=self.total_steps, numbers="")
        self.bar.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if self.bar is not None:
            self.bar.update(self.task, completed=step)
        is_due = step % self.every_n_steps == 0 or step == self.total_steps
        if not trainer.is_global_zero or not is_due:
            return
        numbers = _numbers(trainer.callback_metrics)
        if self.bar is not None:
            self.bar.update(self.task, numbers=numbers)
        else:
            print(f"step {step:,}/{self.total_steps:,}  {numbers}", file=sys.stderr, flush=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _numbers(metrics: Any) -> str:
    return "  ".join(
        f"{label} {float(metrics[key]):{form}}" for key, label, form in NUMBERS if key in metrics
    )
