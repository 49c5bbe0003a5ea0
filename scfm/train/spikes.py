"""Losses that jump: told from a running mean, said, and marked in the log.

in   the loss of each logged step
out  a warning, and 1 in the column ``spike``
"""

import math
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_warn

from scfm.errors import ScfmWarning
from scfm.train.loggers import is_logged, log_row

RATE = 0.05  # a loss's share in the running mean: it reaches back over about 20 logged steps
LEAST = 20  # losses before any is judged


class RunningLoss:
    """Exponentially weighted mean and deviation of a loss, and whether the next one jumps.

    m <- m + a d,  v <- (1 - a) (v + a d^2),  d = loss - m, with a = max(1 / n, RATE) at the n-th
    loss: the plain mean and variance at first, then the last ones' (Finch 2009, "Incremental
    calculation of weighted mean and variance"). A spike enters as the bound it exceeds, so that
    one does not hide the next, while a loss that stays high is the new level in the end.
    """

    def __init__(self, sigmas: float):
        self.sigmas = sigmas
        self.n, self.mean, self.variance = 0, 0.0, 0.0

    @property
    def deviation(self) -> float:
        return math.sqrt(self.variance)

    def takes(self, loss: float) -> bool:
        """Take in a loss; whether it is beyond the mean by ``sigmas`` deviations."""
        bound = self.mean + self.sigmas * self.deviation
        is_spike = self.n >= LEAST and loss > bound
        self.n += 1
        rate = max(1 / self.n, RATE)
        distance = (bound if is_spike else loss) - self.mean
        self.mean += rate * distance
        self.variance = (1 - rate) * (self.variance + rate * distance**2)
        return is_spike


class LossSpikes(L.Callback):
    """Warns once of each spike of the logged loss; a run that goes on knows its mean."""

    def __init__(self, sigmas: float):
        self.running, self.inside = RunningLoss(sigmas), False

    def state_dict(self) -> dict[str, Any]:
        running = self.running
        state = {"n": running.n, "mean": running.mean, "variance": running.variance}
        return state | {"inside": self.inside}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inside = state_dict["inside"]
        for name in ("n", "mean", "variance"):
            setattr(self.running, name, state_dict[name])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if is_logged(trainer, batch_idx):
            loss = float(trainer.callback_metrics["loss"])
            if math.isfinite(loss):  # others are the guard's
                self._judge(trainer, loss)

    def _judge(self, trainer: L.Trainer, loss: float) -> None:
        mean, deviation = self.running.mean, self.running.deviation
        is_spike = self.running.takes(loss)
        if is_spike:
            log_row(trainer, {"spike": 1})
        if is_spike and not self.inside:
            rank_zero_warn(
                f"The loss jumped to {loss:.4g} at step {trainer.global_step:,}; its running mean "
                f"is {mean:.4g}, its deviation {deviation:.2g}. Where it does not come back, start "
                "a new run with a lower --set optim.lr=...",
                category=ScfmWarning,
            )
        self.inside = is_spike
