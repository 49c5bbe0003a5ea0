"""The pretraining task: guess what of a cell is hidden, or not yet said.

in   packed cells with targets
out  the loss and its parts, and what is logged of them
"""

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from scfm.batch import CellBatch
from scfm.model.base import CellModel
from scfm.objectives.parts import PARTS, part_means, part_sums
from scfm.tasks.pretrain_losses import BatchLosses
from scfm.tasks.pretrain_objective import Objective, losses_of
from scfm.train.datamodule import MicroBatch
from scfm.train.gradients import engine_gradient_norm, gradient_norm, undivided
from scfm.train.loggers import is_logged, log_row
from scfm.train.optim import OptimConfig, build_optimizer
from scfm.train.sharding import is_sharded, shard
from scfm.train.strategy import offloads_optimizer


class PretrainModule(L.LightningModule):
    """Model + objective + what is logged of them.

    ``seed`` is for dropout.
    """

    def __init__(
        self, model: CellModel, objective: Objective, optim: OptimConfig, *, seed: int = 0
    ):
        super().__init__()
        self.model, self.objective, self.optim, self.seed = model, objective, optim, seed
        self.shown_losses = losses_of(objective)
        # summed over the step's micro-batches: weighted losses, then what the parts' means are of
        self.so_far: torch.Tensor | int = 0
        self.held_out_parts = torch.zeros(2, len(PARTS))
        self.step_parts: dict[str, float] = {}

    def configure_model(self) -> None:
        """Shard the weights where the strategy asks for it; Lightning may call this twice."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not is_sharded(self):
            shard(self, self.model.blocks, entry="losses")

    def losses(self, cells: CellBatch) -> BatchLosses:
        """The loss and its parts on one batch."""
        return self.objective.losses(self.model, cells)

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        self.model.before_step(self.seed, self.trainer.global_step)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> torch.Tensor:
        if self.model.config.sizes.dropout:
            self._seed_dropout(batch_idx)
        found = self.losses(batch.cells)
        if self._is_shown:
            self._add_up(found, batch, batch_idx)
        # A step's loss, and its gradient, is the mean over all of its cells. Lightning takes the
        # mean over micro-batches and processes, whose numbers of cells may differ: hence weights.
        return batch.weight * found["loss"] * undivided(self)

    def _seed_dropout(self, batch_idx: int) -> None:
        """Masks by place rather than by what was drawn before: a resumed run draws them again.

        Those of other numbers of processes or micro-batches are others: with dropout the loss
        curve hangs on them.
        """
        place = (self.trainer.global_step, batch_idx % self._accumulate, self.global_rank)
        (seed,) = np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed))

    @property
    def _is_shown(self) -> bool:
        """Whether the optimiser step being made is logged, or the last: what others show of it."""
        is_last = self.trainer.global_step + 1 == self.trainer.max_steps
        return is_last or self.trainer._logger_connector.should_update_logs

    def _add_up(self, found: BatchLosses, batch: MicroBatch, batch_idx: int) -> None:
        """Losses of a step's micro-batches; at its last one, over all processes, and logged."""
        losses = batch.weight * torch.stack([found[name].detach() for name in self.shown_losses])
        parts = self._part_sums(found, batch.cells)
        if batch.n_cells == 0:  # the cell it looks at counts where it is at home
            parts = torch.zeros_like(parts)
        both = torch.cat([losses.float(), parts.flatten()])
        self.so_far = both + (self.so_far if batch_idx % self._accumulate else 0)
        if (batch_idx + 1) % self._accumulate == 0:
            self._log_losses(self.so_far)

    def _log_losses(self, both: torch.Tensor) -> None:
        if self.trainer.world_size > 1:
            both = self.trainer.strategy.reduce(both, reduce_op="sum")
        losses, parts = both.split([len(self.shown_losses), 2 * len(PARTS)])
        mean = losses / (self._accumulate * self.trainer.world_size)
        for name, value in zip(self.shown_losses, mean, strict=True):
            self.log(name, value)
        self.step_parts = part_means(parts.unflatten(0, (2, -1)))

    def _part_sums(self, found: BatchLosses, cells: CellBatch) -> torch.Tensor:
        return part_sums(
            found["squared_error"], found["is_expressed"], found["cell_of"], cells.library_size
        )

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches

    def on_validation_epoch_start(self) -> None:
        self.held_out_parts = torch.zeros(2, len(PARTS), device=self.device)

    def validation_step(self, cells: CellBatch, batch_idx: int) -> None:
        found = self.losses(cells)
        for name in self.shown_losses:
            self.log(f"val_{name}", found[name], batch_size=cells.n_cells)
        self.held_out_parts = self.held_out_parts + self._part_sums(found, cells)

    def on_validation_epoch_end(self) -> None:
        for part, mean in part_means(self.held_out_parts).items():
            self.log(f"val_loss_{part}", mean)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.trainer._logger_connector.should_update_logs:
            self._log_gradient_norm(gradient_norm(self))
            self.log("lr", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, outputs: Any, batch: MicroBatch, batch_idx: int) -> None:
        if self.trainer._logger_connector.should_update_logs:
            self._log_gradient_norm(engine_gradient_norm(self))
        if is_logged(self.trainer, batch_idx):
            log_row(self.trainer, {f"loss_{k}": v for k, v in self.step_parts.items()})

    def _log_gradient_norm(self, norm: torch.Tensor | None) -> None:
        if norm is not None:
            self.log("gradient_norm", norm)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build_optimizer(
            self,
            self.optim,
            int(self.trainer.estimated_stepping_batches),
            offloaded=offloads_optimizer(self.trainer.strategy),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
