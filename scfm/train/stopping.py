"""Stopping on request, with nothing lost.

in   a signal
out  a checkpoint, and how to go on
"""

import os
import signal
import sys
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist

from scfm.errors import Interrupted
from scfm.train.checkpoint import StepCheckpoint
from scfm.train.processes import AnotherSaysWhy

# Ctrl-C; the system's and Kubernetes' wish; what a SLURM script is sent before its time is up
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopOnRequest(L.Callback):
    """At a signal: finish the step, save a checkpoint, say how to go on.

    The signal only sets a flag. Stopping in the middle of an optimiser step could save weights
    that are half updated. A second Ctrl-C stops at once, without saving; the other signals may
    come twice, since a cluster sends them to the script and to the processes.
    """

    def __init__(self, checkpoints: StepCheckpoint, resume_command: str):
        self.checkpoints, self.resume_command = checkpoints, resume_command
        self.asked = self.is_first = False
        self.before: dict[int, Any] = {}
        self.vote: Vote | None = None
        self.agent: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # here, before Lightning sets a handler of its own, which must not outlive the run
        self.before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.is_first = trainer.is_global_zero
        for number in SIGNALS:
            signal.signal(number, self._ask)
        if trainer.world_size > 1:
            self.vote = Vote()
            # Lightning asks the first process about SIGTERM before every batch, on the device:
            # a wait for the GPU each time. The vote stands in its place.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing
        if dist.is_torchelastic_launched():
            self.agent = os.getppid()

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a third ends even what hangs
            raise Interrupted(
                "Stopped at once, in the middle of a step. The checkpoints written before are "
                f"kept. Go on with: {self.resume_command}"
            )
        if self.is_first and not self.asked:
            print(
                "\nStopping after this step; the checkpoint is being written.",
                file=sys.stderr,
                flush=True,
            )
        self.asked = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Before the next step rather than after this one: by now it is logged and validated.
        if batch_idx % trainer.accumulate_grad_batches or not self._any_asked():
            return
        path = self.checkpoints.save(trainer, wait=True)
        # the others leave it to the first, unless nobody is there to end them
        kind = Interrupted if trainer.is_global_zero or self._is_orphan() else AnotherSaysWhy
        raise kind(
            f"Stopped at step {trainer.global_step:,} on request; {path} is written. "
            f"Go on with: {self.resume_command}"
        )

    def _any_asked(self) -> bool:
        """Whether any process was; all must stop at the same step."""
        asked = self.asked or self._is_orphan()
        return self.vote(asked) if self.vote else asked

    def _is_orphan(self) -> bool:
        """Whether the launcher was killed: a run that goes on must not meet this one's writing."""
        return self.agent is not None and os.getppid() != self.agent

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.vote:
            self.vote.result()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        # When a process ends in the middle of a step, the launcher sends the others SIGTERM, and
        # what they see besides is a closed connection.
        if self.vote and self.asked and isinstance(exception, RuntimeError):
            raise AnotherSaysWhy(
                "Stopped in the middle of a step, since another process ended. Go on with: "
                f"{self.resume_command}"
            ) from exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self.before = {}


class Vote:
    """Whether any process says yes, one call late, so that no process waits for another.

    A group of its own on the CPU: an answer that comes by way of the GPU would cost a wait for
    all the work queued there. All processes must call in the same steps.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo")
        self.any_yes = torch.zeros(1, dtype=torch.int32, device="cpu")
        self.under_way: Any = None

    def __call__(self, yes: bool) -> bool:
        """Cast this call's vote; the result of the last call's."""
        result = self.result()
        self.any_yes = torch.tensor([int(yes)], dtype=torch.int32, device="cpu")
        self.under_way = dist.all_reduce(
            self.any_yes, dist.ReduceOp.MAX, group=self.group, async_op=True
        )
        return result

    def result(self) -> bool:
        """The result of the last call, waited for; False before the first."""
        if self.under_way is None:
            return False
        self.under_way.wait()
        self.under_way = None
        return bool(self.any_yes.item())


def _nothing() -> None:
    """What is done in the place of a collective that is not needed."""
