"""The fine-tuning task: say the type of each cell, and by wish bring batches together.

in   packed cells with codes of types and batches
out  the loss, what is logged of it, and when to stop
"""

import math
from typing import Any, Literal

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from scfm.batch import CellBatch
from scfm.errors import DivergedError
from scfm.metrics import macro_f1_of
from scfm.model.base import CellModel
from scfm.objectives.classification import TypeBalance, contrastive_loss, type_loss
from scfm.train.datamodule import MicroBatch
from scfm.train.gradients import undivided
from scfm.train.optim import OptimConfig, build_optimizer
from scfm.train.sharding import is_sharded, shard
from scfm.train.strategy import offloads_optimizer

Integration = Literal["none", "contrastive"]


class CelltypeModule(L.LightningModule):
    """Model with a classifier + loss + what is logged of it.

    ``integrate_weight`` above 0 adds what brings batches together (comparisons are within one
    process's micro-batch); ``seed`` is for dropout.
    """

    weight: torch.Tensor
    gain: torch.Tensor

    def __init__(
        self,
        model: CellModel,
        balance: TypeBalance,
        optim: OptimConfig,
        *,
        integrate_weight: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        assert model.classifier is not None
        self.model, self.optim, self.seed = model, optim, seed
        self.integrate_weight = integrate_weight
        self.register_buffer("weight", balance.weight, persistent=False)
        self.register_buffer("gain", balance.gain, persistent=False)
        self.n_types = len(model.classifier.spec.labels)
        self.confusion = np.zeros((self.n_types, self.n_types + 1))

    def configure_model(self) -> None:
        """Shard the weights where the strategy asks for it; Lightning may call this twice."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not is_sharded(self):
            shard(self, self.model.blocks, entry="losses")

    def losses(self, cells: CellBatch) -> dict[str, torch.Tensor]:
        """The loss, its parts and the scores, of one batch."""
        states = self.model(cells)
        scores = self.model.classify(cells, states)
        types = cells.labels["type"]
        loss = type_loss(scores, types, TypeBalance(self.weight, self.gain))
        found = {"loss": loss, "loss_type": loss, "scores": scores}
        if self.integrate_weight:
            spec = self.model.classifier.spec  # pyright: ignore[reportOptionalMemberAccess]
            vectors = self.model.pool(states, spec.pooling)
            found["batch_loss"] = contrastive_loss(vectors, types, cells.labels["batch"])
            found["loss"] = loss + self.integrate_weight * found["batch_loss"]
        return found

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        self.model.before_step(self.seed, self.trainer.global_step)

    def training_step(self, batch: MicroBatch, batch_idx: int) -> torch.Tensor:
        self._seed_dropout(batch_idx)
        found = self.losses(batch.cells)
        for name in ("loss_type", "batch_loss"):
            if name in found:
                self._log_mean(name.replace("loss_type", "loss"), batch.weight * found[name])
        # the mean over a step's cells, as in scfm.tasks.pretrain_module
        return batch.weight * found["loss"] * undivided(self)

    def _log_mean(self, name: str, value: torch.Tensor) -> None:
        """Of a step's last micro-batch, over processes; only where it is shown."""
        if self.trainer._logger_connector.should_update_logs:
            value = value.detach().float()
            if self.trainer.world_size > 1:
                value = self.trainer.strategy.reduce(value, reduce_op="mean")
            self.log(name, value)

    def _seed_dropout(self, batch_idx: int) -> None:
        place = (self.trainer.global_step, batch_idx % self.trainer.accumulate_grad_batches)
        entropy = [self.seed, *place, self.global_rank]
        (seed,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        torch.manual_seed(int(seed))

    def on_validation_epoch_start(self) -> None:
        self.confusion[:] = 0

    def validation_step(self, cells: CellBatch, batch_idx: int) -> None:
        found = self.losses(cells)
        self.log("val_loss", found["loss_type"], batch_size=cells.n_cells)
        truth = cells.labels["type"].cpu().numpy()
        said = found["scores"].argmax(1).cpu().numpy()
        np.add.at(self.confusion, (truth, said), 1)

    def on_validation_epoch_end(self) -> None:
        judged = self.confusion[self.confusion.sum(1) > 0]
        if len(judged) == self.n_types:
            self.log("val_macro_f1", float(macro_f1_of(self.confusion)))

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


class StopWhenNoBetter(L.Callback):
    """Ends training when the validation loss has not fallen for ``patience`` validations.

    ``curve`` is (step, validation loss). All processes judge the same cells; the first one's figure
    decides for all.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.curve: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss: float = trainer.strategy.broadcast(float(trainer.callback_metrics["val_loss"]))
        if not math.isfinite(loss):
            raise DivergedError(
                f"The validation loss is {loss} at step {trainer.global_step:,}: training "
                "diverged. Start again with a lower --set optim.lr=..."
            )
        self.curve.append((trainer.global_step, loss))
        best = min(range(len(self.curve)), key=lambda at: self.curve[at][1])
        if len(self.curve) - 1 - best >= self.patience:
            trainer.should_stop = True
