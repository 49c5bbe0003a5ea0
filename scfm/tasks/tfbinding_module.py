"""The TF binding task: a model, its loss on disturbed windows, and what stops the training.

in   RegionMicroBatches; validation examples
out  the loss, and the weights of the best validation AUPR
"""

import math
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scfm.batch import RegionBatch
from scfm.data.region_examples import RegionExamples
from scfm.data.region_sampling import pairs
from scfm.errors import ConfigError, DivergedError
from scfm.model.dna import BindingModel, binding_logits, strand_logits
from scfm.objectives.binding import binding_loss
from scfm.tasks.tfbinding_adversary import disturbed
from scfm.tasks.tfbinding_augment import augment, generator
from scfm.tasks.tfbinding_data import RegionMicroBatch
from scfm.tasks.tfbinding_run import BindingTraining
from scfm.tasks.tfbinding_scores import task_scores
from scfm.train.gradients import gradient_norm
from scfm.train.loggers import is_logged, log_row
from scfm.train.optim import build_optimizer

METRICS = ["loss", "lr", "gradient_norm", "val_loss", "val_aupr", "val_auroc"]
DROPOUT, AUGMENT, ADVERSARY = range(3)  # which draw of a step
JUDGED_AT_ONCE = 512  # windows a forward pass
Examples = Int[np.ndarray, " example"]


class BindingModule(L.LightningModule):
    """Windows -> loss. ``prevalence`` is of the training examples, for the weighted loss."""

    def __init__(
        self,
        model: BindingModel,
        config: BindingTraining,
        prevalence: Float[np.ndarray, " task"],
    ):
        super().__init__()
        self.model, self.config = model, config
        share = torch.from_numpy(np.asarray(prevalence, dtype=np.float32))
        weight = config.objective.positive_weight(share)
        self.register_buffer("positive_weight", weight, persistent=False)
        if config.cells_only:
            only_cells_train(model)

    def on_train_batch_start(self, batch: RegionMicroBatch, batch_idx: int) -> None:
        if self.config.cells_only:
            # the norms of what does not train stand still too, and dropout is its own noise
            self.model.eval()
            self.model.training = True  # its own flag, for the null embedding
            for module in cell_readers(self.model):
                module.train()

    def training_step(self, batch: RegionMicroBatch, batch_idx: int) -> Tensor:
        place = (self.trainer.global_step, batch_idx % self._accumulate, self.global_rank)
        # by place rather than by what was drawn before: a resumed run draws the same again
        torch.manual_seed(generator(self.config.seed, DROPOUT, *place).initial_seed() % 2**63)
        shown = self._shown(batch.regions, place)
        loss = self.loss(shown)
        if is_logged(self.trainer, batch_idx):
            several = self.trainer.world_size > 1
            self.log("loss", batch.weight * loss.detach(), sync_dist=several)
        return batch.weight * loss + self.model.penalty()

    def _shown(self, regions: RegionBatch, place: tuple[int, int, int]) -> RegionBatch:
        config = self.config
        shown = augment(regions, config.augment, generator(config.seed, AUGMENT, *place))
        adversary = config.adversary
        if adversary.kind == "none" or self.trainer.global_step < adversary.after:
            return shown
        random = generator(config.seed, ADVERSARY, *place)
        return disturbed(self.model, self.loss, shown, adversary, random)

    def loss(self, regions: RegionBatch) -> Float[Tensor, ""]:
        """The loss of the strand that the batch holds."""
        logits = strand_logits(self.model, regions)
        weight = self.positive_weight
        assert isinstance(weight, Tensor)
        return binding_loss(logits, regions.labels, self.config.objective, weight)

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.trainer._logger_connector.should_update_logs:
            norm = gradient_norm(self)
            if norm is not None:
                self.log("gradient_norm", norm)
            self.log("lr", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, outputs: Any, batch: RegionMicroBatch, batch_idx: int) -> None:
        loss = self.trainer.callback_metrics.get("loss")
        if is_logged(self.trainer, batch_idx) and loss is not None and not loss.isfinite():
            raise diverged(f"The loss is {float(loss)} at step {self.trainer.global_step:,}")

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build_optimizer(
            self, self.config.optim, int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def diverged(what: str) -> DivergedError:
    """What to say of numbers that are none any more."""
    return DivergedError(
        f"{what}: training diverged. Start again with a lower --set optim.lr=..., or with --set "
        "optim.gradient_clip=1."
    )


def cell_readers(model: BindingModel) -> list[nn.Module]:
    """The layers that the cell embedding comes in by."""
    films = getattr(model.trunk, "films", None)
    if model.null_cell is None or films is None:
        raise ConfigError(
            "cells_only trains what reads the cell embedding, and this model reads none. Name one "
            "with --cell-key, or use --set cells_only=false."
        )
    return list(films)


def only_cells_train(model: BindingModel) -> None:
    """Weights other than the cell readers' get no gradient."""
    readers = cell_readers(model)
    model.requires_grad_(False)
    for module in readers:
        module.requires_grad_(True)
    assert model.null_cell is not None
    model.null_cell.requires_grad_(True)


class KeepBestAupr(L.Callback):
    """The weights of the highest validation AUPR; stops when it rises no more.

    The model is small: its best weights stay in memory, and in every checkpoint. The first process
    judges, since the others' norms have other running means until the next step.
    """

    def __init__(self, examples: RegionExamples, judged: Examples, config: BindingTraining):
        self.examples, self.judged, self.config = examples, judged, config
        self.curve: list[tuple[int, float]] = []
        self.best, self.best_step = -math.inf, 0
        self.state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        names = ("curve", "best", "best_step", "state")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
        self.curve = [(int(step), float(score)) for step, score in self.curve]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.curve:
            self._look(trainer, pl_module)
        self._stop_if_enough(trainer)  # a run may go on from where it had stopped

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, idx: int
    ) -> None:
        step = trainer.global_step
        if (idx + 1) % trainer.accumulate_grad_batches or step == self.curve[-1][0]:
            return
        if step % self.config.train.validate_every and step != trainer.max_steps:
            return
        self._look(trainer, pl_module)
        self._stop_if_enough(trainer)

    def _stop_if_enough(self, trainer: L.Trainer) -> None:
        since = sum(at > self.best_step for at, _ in self.curve)
        patience = self.config.stopping.patience
        trainer.should_stop = trainer.should_stop or bool(patience and since >= patience)

    def _look(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, BindingModule)
        found = self._judge(module) if trainer.is_global_zero else {}
        found = trainer.strategy.broadcast(found)
        score = found["val_aupr"]
        if math.isnan(score):
            raise ConfigError(
                "No TF has both bound and unbound windows on the validation chromosomes, so that "
                "nothing could stop the training. Choose others with --validation-chroms."
            )
        log_row(trainer, found)
        for name, value in found.items():
            trainer.callback_metrics[name] = torch.tensor(value)
        self.curve.append((trainer.global_step, score))
        if score > self.best:
            self.best, self.best_step = score, trainer.global_step
            state = module.model.state_dict()
            self.state = {name: value.detach().cpu().clone() for name, value in state.items()}

    def _judge(self, module: BindingModule) -> dict[str, float]:
        region, group = pairs(self.examples, self.judged)
        logits = predict_logits(module.model, self.examples, region, group, device=module.device)
        if not np.isfinite(logits).all():
            raise diverged("Logits of validation windows are no numbers")
        labels = self.examples.labels(region, group)
        scores = task_scores(logits, labels, self.examples.tasks)
        loss = binding_loss(
            torch.from_numpy(logits), torch.from_numpy(labels), self.config.objective
        )
        return {
            "val_loss": float(loss),
            "val_aupr": scores.mean_aupr,
            "val_auroc": scores.mean_auroc,
        }


@torch.no_grad()
def predict_logits(
    model: BindingModel,
    examples: RegionExamples,
    region: Examples,
    group: Examples,
    *,
    batch_size: int = JUDGED_AT_ONCE,
    device: torch.device | str | None = None,
) -> Float[np.ndarray, "example task"]:
    """Logits of these examples, of both strands where the model's config says so.

    ``device`` is where the model is put; None: where it is. It is left as it was otherwise.
    """
    if device is not None:
        model = model.to(device)
    place = model.head.bias.device
    states = {module: module.training for module in model.modules()}
    model.eval()
    found = np.empty((len(region), len(model.tasks)), np.float32)
    try:
        for first in range(0, len(region), batch_size):
            some = slice(first, first + batch_size)
            batch = examples.batch(region[some], group[some]).map(torch.from_numpy)
            logits = binding_logits(model, batch.map(lambda x: x.to(place)))
            found[some] = logits.float().cpu().numpy()
    finally:
        for module, training in states.items():
            module.training = training
    return found
