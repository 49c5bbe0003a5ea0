"""How fast a run goes.

in   a trainer's events
out  logged scalars
"""

import math
import time
from typing import Any

import lightning.pytorch as L

from scfm.errors import DivergedError


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
