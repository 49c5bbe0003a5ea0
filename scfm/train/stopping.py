"""Stopping on request, with nothing lost.

in   a signal
out  a checkpoint, and how to go on
"""

import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from scfm.errors import Interrupted


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
