"""Training a perturbation head on pseudo-pairs; the model whose embeddings it uses stays frozen.

in   PerturbedCells, a split, gene embeddings of the vocabulary
out  the head at its best validation error, and the curve

What stops training is the mean profile of the validation perturbations, predicted against
measured: what the head is judged by later, on perturbations that train nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from scfm.errors import DivergedError
from scfm.model.perturbation import (
    PerturbationHead,
    PerturbationSizes,
    PerturbedGenes,
    coexpression_graph,
    marks,
)
from scfm.objectives.perturbation import PerturbationObjective, perturbation_loss
from scfm.tasks.perturbation_data import PerturbationSplit, PerturbedCells, pseudo_pairs
from scfm.tokens.vocab import GeneVocab
from scfm.train.loggers import LoggingConfig
from scfm.train.optim import OptimConfig, build_optimizer
from scfm.train.settings import TrainConfig
from scfm.train.trainer import build_trainer, quiet_lightning

PREDICTED_AT_ONCE = 128  # perturbations a forward pass


@dataclass(frozen=True, kw_only=True)
class PerturbationConfig:
    """How a head is trained.

    Attributes
    ----------
    patience
        Validations without a better one after which training stops.
    batch_size
        Pseudo-pairs an optimiser step.
    cells_per_profile
        Cells a pair's control and perturbed profile are each the mean of. GEARS has 1. In shallow
        data a cell's log1p(cp10k) is mostly 0 or about 4: on single cells the squared error is
        all noise, and GEARS' fourth power is not even least at the mean. Measured on validation
        perturbations of the THP-1 screen (200 counts a cell), error after 600 steps: single cells
        0.6 by GEARS' loss and 0.03 by squared error, where predicting no change has 0.005 to
        0.016 (three splits, untrained embeddings).
    """

    head: PerturbationSizes = field(default_factory=PerturbationSizes)
    objective: PerturbationObjective = field(default_factory=PerturbationObjective)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, warmup_steps=20))
    steps: int = 1000
    batch_size: int = 32
    cells_per_profile: int = 64
    validate_every: int = 10
    patience: int = 10
    validation_share: float = 0.25
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        for name in (
            *("steps", "batch_size", "cells_per_profile"),
            *("validate_every", "patience"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be in (0, 1), got {self.validation_share}")


@dataclass(frozen=True)
class FittedHead:
    """A trained head, and how it came about.

    ``curve`` is (step, validation error); the head is that of ``best_step``. Step 0 is the head as
    it begins, which predicts no change.
    """

    head: PerturbationHead
    curve: list[tuple[int, float]]
    best_step: int


def fit_head(
    cells: PerturbedCells,
    split: PerturbationSplit,
    embeddings: Float[np.ndarray, "vocabulary d"],
    vocab: GeneVocab,
    config: PerturbationConfig,
    *,
    seed: int = 0,
) -> FittedHead:
    """Train one head. The held-out perturbations and control cells are not touched.

    Raises DivergedError where the validation error is no longer a number.
    """
    head = new_head(cells, split, embeddings, vocab, config.head, seed=seed)
    module = PerturbationModule(head, cells, split, config, seed)
    keep = KeepBest(config.validate_every, config.patience)
    train = TrainConfig(
        steps=config.steps,
        validate_every=config.validate_every,
        accelerator=config.accelerator,  # pyright: ignore[reportArgumentType]  # checked by Lightning
    )
    with quiet_lightning(), torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout
        trainer = build_trainer(train, config.optim, LoggingConfig(), [], [keep])
        trainer.fit(module, DataLoader(_Batches(module), batch_size=None))
    head.load_state_dict(keep.state)
    return FittedHead(head.cpu().eval(), keep.curve, keep.best_step)


def new_head(
    cells: PerturbedCells,
    split: PerturbationSplit,
    embeddings: Float[np.ndarray, "vocabulary d"],
    vocab: GeneVocab,
    sizes: PerturbationSizes,
    *,
    seed: int,
) -> PerturbationHead:
    """A head that knows the training control cells and has learned nothing."""
    controls = cells.dense(split.training_controls)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PerturbationHead(
            sizes, vocab, n_genes=len(cells.genes), d_embedding=embeddings.shape[1]
        )
    return head.know(
        torch.from_numpy(cells.genes.astype(np.int64)),
        torch.from_numpy(np.asarray(embeddings, dtype=np.float32)),
        torch.from_numpy(controls.mean(0).astype(np.float32)),
        coexpression_graph(torch.from_numpy(correlations(controls)), sizes),
    )


def correlations(expression: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, "gene gene"]:
    """Pearson's r between genes over cells; 0 where a gene does not vary."""
    centred = expression - expression.mean(0, dtype=np.float64)
    norm = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(norm > 1e-12, norm, np.inf)
    return (unit.T @ unit).astype(np.float32)


class PerturbationModule(L.LightningModule):
    """Pseudo-pairs -> loss; validation perturbations -> error of their mean profile."""

    def __init__(
        self,
        head: PerturbationHead,
        cells: PerturbedCells,
        split: PerturbationSplit,
        config: PerturbationConfig,
        seed: int,
    ):
        super().__init__()
        self.head, self.cells, self.split = head, cells, split
        self.config, self.seed = config, seed
        self.positions = cells.all_targets
        self.acts_on = marks(cells.targets, self.positions)
        self._perturbed: PerturbedGenes | None = None
        self.measured = {name: cells.mean(cells.cells_of(name)) for name in split.validation}
        self.starts = {name: start_of(cells, split, name) for name in split.validation}

    @property
    def perturbed(self) -> PerturbedGenes:
        """The perturbed genes, whose embeddings do not change in training."""
        if self._perturbed is None:
            positions = torch.tensor(self.positions, device=self.device)
            self._perturbed = self.head.perturbed_genes(positions)
        return self._perturbed

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        acts_on = self.acts_on.to(self.device)[batch["perturbation"]]
        return perturbation_loss(
            self.head(batch["control"], acts_on, self.perturbed),
            batch["perturbed"],
            self.head.control_mean[None],
            batch["perturbation"],
            self.config.objective,
        )

    def validation_error(self) -> float:
        """Mean squared error of the validation perturbations' mean profiles."""
        self.head.eval()
        errors = [
            np.mean((start + self._change(name, start) - self.measured[name]) ** 2)
            for name, start in self.starts.items()
        ]
        self.head.train()
        return float(np.mean(errors))

    def _change(self, name: str, start: Float[np.ndarray, " gene"]) -> Float[np.ndarray, " gene"]:
        return predicted_change(self.head, start, self.cells.targets_of([name]))[0]

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build_optimizer(self, self.config.optim, self.config.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Batches(IterableDataset):
    """The pseudo-pairs of a run, a batch an item."""

    def __init__(self, module: PerturbationModule):
        self.cells, self.split = module.cells, module.split
        self.config, self.seed = module.config, module.seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size = {
            "n_pairs": self.config.batch_size,
            "n_cells": self.config.cells_per_profile,
            "steps": self.config.steps,
        }
        for control, perturbed in pseudo_pairs(self.cells, self.split, **size, seed=self.seed):
            yield {
                "control": torch.from_numpy(self.cells.group_means(control)),
                "perturbed": torch.from_numpy(self.cells.group_means(perturbed)),
                "perturbation": torch.from_numpy(self.cells.perturbation[perturbed[:, 0]]),
            }


class KeepBest(L.Callback):
    """The weights of the lowest validation error; stops when it falls no more.

    The head is small: its best weights stay in memory.
    """

    def __init__(self, every: int, patience: int):
        self.every, self.patience = every, patience
        self.curve: list[tuple[int, float]] = []
        self.best, self.best_step = math.inf, 0
        self.state: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._look(trainer, pl_module)
            since = sum(step > self.best_step for step, _ in self.curve)
            trainer.should_stop = trainer.should_stop or since >= self.patience

    def _look(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, PerturbationModule)
        error = module.validation_error()
        if not math.isfinite(error):
            raise DivergedError(
                f"The validation error is {error} at step {trainer.global_step:,}: training "
                "diverged. Start again with a lower --lr."
            )
        self.curve.append((trainer.global_step, error))
        if error < self.best:
            self.best, self.best_step = error, trainer.global_step
            state = module.head.state_dict()
            self.state = {name: value.detach().cpu().clone() for name, value in state.items()}


def predicted_profile(
    head: PerturbationHead, cells: PerturbedCells, split: PerturbationSplit, name: str
) -> Float[np.ndarray, " gene"]:
    """The mean control cell, as the head has it after the perturbation."""
    start = start_of(cells, split, name)
    return start + predicted_change(head, start, cells.targets_of([name]))[0]


def start_of(
    cells: PerturbedCells, split: PerturbationSplit, name: str
) -> Float[np.ndarray, " gene"]:
    """The mean training control cell, in the batches that the perturbation's cells are from."""
    controls = split.training_controls
    return cells.mean(controls, cells.control_weights(controls, name))


@torch.no_grad()
def predicted_change(
    head: PerturbationHead,
    control: Float[np.ndarray, " gene"],
    combinations: list[tuple[int, ...]],
) -> Float[np.ndarray, "combination gene"]:
    """What each combination of genes adds to a mean control cell."""
    device = head.control_mean.device
    positions = sorted({gene for combination in combinations for gene in combination})
    perturbed = head.perturbed_genes(torch.tensor(positions, device=device))
    start = torch.from_numpy(np.asarray(control, dtype=np.float32)).to(device)
    acts_on = marks(combinations, positions).float().to(device).split(PREDICTED_AT_ONCE)
    found = [head.change(start.expand(len(some), -1), some, perturbed) for some in acts_on]
    return torch.cat(found).cpu().numpy()


def spread(cells: Int[np.ndarray, " cell"], most: int) -> Int[np.ndarray, " chosen"]:
    """At most so many of the cells, evenly spread."""
    if len(cells) <= most:
        return cells
    return cells[np.linspace(0, len(cells) - 1, most).round().astype(np.int64)]


def provenance_of(
    cells: PerturbedCells,
    split: PerturbationSplit,
    fitted: FittedHead,
    config: PerturbationConfig,
    seed: int,
) -> dict[str, Any]:
    """What made a head: enough to make it again."""
    return {
        "perturbations": {
            "training": list(split.training),
            "validation": list(split.validation),
            "held_out": list(split.held_out),
            "left_out_cells": dict(cells.left_out),
        },
        "training_controls": len(split.training_controls),
        "settings": asdict(config),
        "seed": seed,
        "best_step": fitted.best_step,
        "validation_curve": [list(point) for point in fitted.curve],
    }
