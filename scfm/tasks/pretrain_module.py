"""The pretraining task: guess the hidden genes of a cell, twice.

in   packed cells with targets
out  the loss and its parts, and what is logged of them

The raw-depth value of hidden genes of a cell that may have been thinned is guessed once by asking
the cell's other genes (query decoder), once from the cell's one state.
"""

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from scfm.batch import CellBatch
from scfm.model.attention import Packing
from scfm.model.pretrained import ScfmModel
from scfm.objectives.regression import mean_squared_error
from scfm.train.datamodule import MicroBatch
from scfm.train.gradients import engine_gradient_norm, gradient_norm
from scfm.train.optim import OptimConfig, build_optimizer
from scfm.train.sharding import is_sharded, shard

LOSSES = ("loss", "loss_query", "loss_cell")
METRICS = [
    *LOSSES,
    *("lr", "gradient_norm", "cells_per_s", "tokens_per_s"),
    *("val_loss", "val_loss_query", "val_loss_cell", "val_loss_expressed", "val_loss_zero"),
]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the loss is made of."""

    cell_weight: float = 1.0  # of the loss from the cell state, against the query decoder's

    def __post_init__(self) -> None:
        if not 0 <= self.cell_weight < float("inf"):
            raise ValueError(f"objective.cell_weight must be at least 0, got {self.cell_weight}")


class PretrainModule(L.LightningModule):
    """Model + objective + what is logged of them."""

    def __init__(self, model: ScfmModel, objective: ObjectiveConfig, optim: OptimConfig):
        super().__init__()
        self.model, self.objective, self.optim = model, objective, optim
        self.so_far: torch.Tensor | int = 0  # losses of the step's micro-batches, summed

    def configure_model(self) -> None:
        """Shard the weights where the strategy asks for it; Lightning may call this twice."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not is_sharded(self):
            shard(self, self.model.blocks, entry="losses")

    def losses(self, cells: CellBatch) -> dict[str, torch.Tensor]:
        """The loss and its parts on one batch."""
        by_query, by_cell = self.model.predict_targets(cells, self.model(cells))
        target, cell_of = cells.target_values[cells.is_target], self._cell_of_targets(cells)
        query = mean_squared_error(by_query, target, cell_of, cells.n_cells)
        cell = mean_squared_error(by_cell, target, cell_of, cells.n_cells)
        loss = query + self.objective.cell_weight * cell
        return {
            **{"loss": loss, "loss_query": query, "loss_cell": cell},
            "squared_error": (by_query.float() - target).square().detach(),
            "is_expressed": target > 0,
        }

    def _cell_of_targets(self, cells: CellBatch) -> torch.Tensor:
        return Packing(cells.offsets).cell_of[cells.is_target]

    def training_step(self, batch: MicroBatch, batch_idx: int) -> torch.Tensor:
        found = self.losses(batch.cells)
        # A step's loss, and its gradient, is the mean over all of its cells. Lightning takes the
        # mean over micro-batches and processes, whose numbers of cells may differ: hence weights.
        parts = batch.weight * torch.stack([found[name].detach() for name in LOSSES])
        self.so_far = parts + (self.so_far if batch_idx % self._accumulate else 0)
        if (batch_idx + 1) % self._accumulate == 0:
            for name, value in zip(LOSSES, self.so_far / self._accumulate, strict=True):
                self.log(name, value, sync_dist=self.trainer.world_size > 1)
        return batch.weight * found["loss"]

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches

    def validation_step(self, cells: CellBatch, batch_idx: int) -> None:
        found = self.losses(cells)
        error, is_expressed = found["squared_error"], found["is_expressed"]
        shown = {name: found[name] for name in LOSSES}
        shown["loss_expressed"] = error[is_expressed].mean()
        if not is_expressed.all():
            shown["loss_zero"] = error[~is_expressed].mean()
        for name, value in shown.items():
            self.log(f"val_{name}", value, batch_size=cells.n_cells)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.trainer._logger_connector.should_update_logs:
            self._log_gradient_norm(gradient_norm(self))
            self.log("lr", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, outputs: Any, batch: MicroBatch, batch_idx: int) -> None:
        if self.trainer._logger_connector.should_update_logs:
            self._log_gradient_norm(engine_gradient_norm(self))

    def _log_gradient_norm(self, norm: torch.Tensor | None) -> None:
        if norm is not None:
            self.log("gradient_norm", norm)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build_optimizer(
            self, self.optim, int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
