"""What happens around a step: throughput, progress for a person, stopping on request.

in   a trainer's events
out  logged scalars, lines or a bar on stderr, a checkpoint when asked to stop
"""

import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scfm.errors import DivergedError, Interrupted


class Throughput(L.Callback):
    """Cells and useful tokens per second over the steps since the last logged one.

    Useful tokens are those of the packed batch: special tokens, visible genes and targets. There
    is no padding to leave out. All processes are counted.
    """

    def __init__(self) -> None:
        self.cells = self.tokens = 0
        self.since = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.cells, self.tokens, self.since = 0, 0, time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.cells += batch.n_cells * trainer.world_size
        self.tokens += batch.n_tokens * trainer.world_size
        if trainer._logger_connector.should_update_logs:
            loss = trainer.callback_metrics.get("loss")
            if loss is not None and not math.isfinite(float(loss)):
                raise DivergedError(
                    f"The loss is {float(loss)} at step {trainer.global_step:,}: it diverged. "
                    "The last checkpoint is kept. Start a new run with a lower --set optim.lr=..."
                )
            seconds = time.perf_counter() - self.since
            pl_module.log("cells_per_s", self.cells / seconds)
            pl_module.log("tokens_per_s", self.tokens / seconds)
            self.on_train_start(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Validation is not training: its time must not lower the figure.
        self.on_train_start(trainer, pl_module)


class StepProgress(L.Callback):
    """A bar on a terminal, a plain line every ``every_n_steps`` elsewhere; both on stderr."""

    def __init__(self, total_steps: int, every_n_steps: int):
        self.total_steps, self.every_n_steps = total_steps, every_n_steps
        self.bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        console = Console(stderr=True)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("pretrain"),
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
    parts = []
    for key, label, form in (
        ("loss", "loss", ".4f"),
        ("val_loss", "val_loss", ".4f"),
        ("cells_per_s", "cells/s", ",.0f"),
        ("tokens_per_s", "useful tokens/s", ",.0f"),
    ):
        if key in metrics:
            parts.append(f"{label} {float(metrics[key]):{form}}")
    return "  ".join(parts)


class StopOnRequest(L.Callback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, say how to go on.

    The signal only sets a flag. Stopping in the middle of an optimiser step could save weights
    that are half updated. A second Ctrl-C stops at once, without saving.
    """

    def __init__(self, run: Path, resume_command: str):
        self.run, self.resume_command = run, resume_command
        self.asked = False
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        signal.signal(number, self.before[number] or signal.SIG_DFL)
        self.asked = True
        print("\nStopping after this step; the checkpoint is being written.", file=sys.stderr)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Before the next step rather than after this one: by now it is logged and validated.
        if batch_idx % trainer.accumulate_grad_batches or not self._any_asked(trainer):
            return
        path = self.run / "checkpoints" / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        raise Interrupted(
            f"Stopped at step {trainer.global_step:,} on request; {path} is written. "
            f"Go on with: {self.resume_command}"
        )

    def _any_asked(self, trainer: L.Trainer) -> bool:
        """Whether any process was; all must stop at the same step."""
        if trainer.world_size == 1:
            return self.asked
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self.before = {}
