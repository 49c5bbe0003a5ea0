"""Fine-tuning a model to say cell types: the probe first, then weights below it, as far as asked.

in   a model, a LabelledPool, a CelltypeSplit, a CelltypeConfig
out  the model with a classifier, at its least loss on the validation cells, and how it came about

The trainer, the strategies and the checkpoints are those of pretraining. The weights that are kept
are those of the best checkpoint, or the probe's, where training made nothing better.
"""

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from safetensors.numpy import load_file, save_file

from scfm.data.split import Split
from scfm.data.write import atomic_path
from scfm.errors import ConfigError
from scfm.model.base import CellModel
from scfm.model.classifier import ClassifierSpec, Features
from scfm.objectives.classification import Balance, type_balance, type_loss
from scfm.tasks.celltype_data import CelltypeSplit, LabelledPool
from scfm.tasks.celltype_features import Look, Seen, look_with
from scfm.tasks.celltype_module import (
    CelltypeModule,
    Integration,
    StopWhenNoBetter,
)
from scfm.tasks.celltype_probe import PENALTIES, Probe, fit_probe
from scfm.tasks.celltype_weights import (
    LoraSizes,
    Method,
    freeze,
    merge_adapters,
)
from scfm.tasks.classification import pool_scores
from scfm.train.checkpoint import CheckpointConfig, StepCheckpoint
from scfm.train.checkpoint_files import checkpoint_folder, checkpoints, read_manifest
from scfm.train.consolidate import whole_weights
from scfm.train.datamodule import VALIDATION_EPOCH, CellDataModule, LoaderConfig
from scfm.train.guard import FiniteGuard, GuardConfig
from scfm.train.host_batch import HostBatches
from scfm.train.loggers import CsvMetrics, LoggingConfig, LogSteps
from scfm.train.optim import OptimConfig
from scfm.train.processes import decided_by_first, rank
from scfm.train.progress import StepProgress
from scfm.train.settings import TrainConfig
from scfm.train.throughput import Throughput
from scfm.train.trainer import build_trainer, quiet_lightning

METRICS = ("loss", "val_loss", "val_macro_f1", "batch_loss", "lr", "cells_per_s", "tokens_per_s")
PROBE = "probe.safetensors"
VIEWS = 2  # that the probe has of each training cell, thinned as chance will have it


@dataclass(frozen=True, kw_only=True)
class CelltypeConfig:
    """How a model is fine-tuned to say cell types.

    Attributes
    ----------
    method
        "probe": a linear layer on the frozen model. "partial": the last blocks too. "lora":
        low-rank additions to all blocks. "full": everything that the answer hangs on.
    features
        What the linear layer reads (`scfm.model.classifier.ClassifierSpec`).
    pooling
        Which of the model's vectors; None: its default, of scMulan "prompt".
    balance
        What is done about rare types (`scfm.objectives.classification`).
    thin_probability, thin_min_counts
        How often a training cell of so many molecules is shown thinned: the next study's cells are
        sequenced to other depths.
    judged_share, validation_share
        Of the labelled cells: held out to be judged; held out to stop the training, to choose the
        probe's penalty and to set the calibration.
    max_validation
        Cells that are looked at each time, at most.
    probe_cells
        Training cells that the probe is fitted to, at most.
    patience
        Validations without a better one after which training stops.
    integrate, integrate_weight
        Whether, and how strongly, cells of one type from different batches are brought together
        (`scfm.objectives.classification.contrastive_loss`).
    """

    method: Method = "lora"
    features: Features = "both"
    pooling: str | None = None
    balance: Balance = "weights"
    last_blocks: int = 1
    lora: LoraSizes = field(default_factory=LoraSizes)
    penalties: tuple[float, ...] = PENALTIES
    thin_probability: float = 0.5
    thin_min_counts: int = 500
    judged_share: float = 0.15
    validation_share: float = 0.15
    max_validation: int = 5_000
    probe_cells: int = 20_000
    patience: int = 5
    integrate: Integration = "none"
    integrate_weight: float = 1.0
    seed: int = 0
    batch_size: int = 32
    batch_tokens: int | None = None
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, warmup_steps=20))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=500, validate_every=50))
    guard: GuardConfig = field(default_factory=GuardConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        for name in ("last_blocks", "patience", "batch_size", "max_validation", "probe_cells"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.judged_share < 0.9 or not 0 < self.validation_share < 0.9:
            raise ValueError(
                "judged_share must be in [0, 0.9) and validation_share in (0, 0.9), got "
                f"{self.judged_share} and {self.validation_share}"
            )
        if self.judged_share + self.validation_share > 0.9:
            raise ValueError("judged_share and validation_share leave too few cells to learn from")
        if not 0 <= self.thin_probability <= 1 or self.thin_min_counts < 1:
            raise ValueError("thin_probability must be in [0, 1], thin_min_counts at least 1")
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be one or more positive numbers: {self.penalties}")
        if not self.integrate_weight > 0:
            raise ValueError(f"integrate_weight must be positive, got {self.integrate_weight}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 4294967295, got {self.seed}")
        if self.features == "genes" and self.method != "probe":
            raise ValueError(
                "features=genes reads no encoder, so there is nothing below it to change: take "
                "method probe, or features both"
            )
        if self.integrate != "none" and self.method == "probe":
            raise ValueError(
                "integrate changes the cell's vector, and a probe leaves it as it is: take method "
                "partial, lora or full"
            )

    @property
    def loader(self) -> LoaderConfig:
        return LoaderConfig(batch_size=self.batch_size, batch_tokens=self.batch_tokens)


@dataclass(frozen=True)
class FittedClassifier:
    """A fine-tuned model, and how it came about.

    ``curve`` is (step, loss of the validation cells); step 0 is the probe, and the model is that of
    ``best_step``. ``probe_scores`` are the probe's of the judged cells.
    """

    model: CellModel
    probe: Probe
    probe_scores: np.ndarray = field(repr=False)
    curve: list[tuple[int, float]]
    best_step: int


def fit_classifier(
    model: CellModel,
    pool: LabelledPool,
    split: CelltypeSplit,
    config: CelltypeConfig,
    out: Path,
    *,
    label_key: str = "",
    terms: dict[str, str] | None = None,
    look: Look | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FittedClassifier | None:
    """Fine-tune; ``model`` itself is changed. ``out`` gets metrics.csv, and checkpoints meanwhile.

    ``look`` knows what the model as it comes makes of cells, where that was found before.

    Of several processes the first returns what was found, the others None.
    """
    spec = ClassifierSpec(
        labels=pool.labels,
        pooling=classifier_pooling(model, config.pooling),
        features=config.features,
        label_key=label_key,
        terms={label: term for label, term in (terms or {}).items() if label in pool.labels},
    )
    split = _bounded(split, config)
    look = look or look_with(model, pool, spec.pooling, spec.features, on_progress)
    probe = _probe(pool, split, config, out, look)
    if probe is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model.add_classifier(spec).know(probe.tensors())
    began = validation_loss(model, pool, split, config)
    by_probe = pool_scores(model, pool, split.judged) if rank() == 0 else np.empty(0)
    if config.method == "probe":
        found = FittedClassifier(model.eval(), probe, by_probe, [(0, began)], 0)
        return found if rank() == 0 else None
    start = copy.deepcopy(model) if rank() == 0 else None
    curve = _train(model, pool, split, config, out)
    if start is None:
        return None
    curve = [(0, began), *curve]
    # the probe's vectors are not integrated
    best_step = _best_step(out, began if config.integrate == "none" else math.inf)
    found = start if best_step == 0 else _at_step(start, pool, split, config, out, best_step)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return FittedClassifier(found.eval(), probe, by_probe, curve, best_step)


def classifier_pooling(model: CellModel, asked: str | None) -> str:
    """The vector asked for, or the model's first that needs no word to be said."""
    if asked == "type":
        raise ConfigError(
            "pooling 'type' needs a word to be said first, which training cannot go through; take "
            "pooling prompt or mean."
        )
    if asked is not None:
        return model.checked_pooling(asked)
    return next(pooling for pooling in model.poolings if pooling != "type")


def _bounded(split: CelltypeSplit, config: CelltypeConfig) -> CelltypeSplit:
    """Not more validation cells than are looked at."""
    cells, most = split.validation, config.max_validation
    if len(cells) <= most:
        return split
    rng = np.random.default_rng([config.seed, 0x10AD])
    return replace(split, validation=np.sort(rng.choice(cells, most, replace=False)))


def _probe(
    pool: LabelledPool, split: CelltypeSplit, config: CelltypeConfig, out: Path, look: Look
) -> Probe | None:
    """The first process fits it; the others read what it wrote, so that all begin alike.

    None in these where nothing begins: the first may be done and gone.
    """
    path = out / PROBE
    made: list[Probe] = []

    def fit() -> dict[str, Any]:
        cells = split.training
        if len(cells) > config.probe_cells:
            rng = np.random.default_rng([config.seed, 0x9203])
            cells = np.sort(rng.choice(cells, config.probe_cells, replace=False))
        views = range(VIEWS if config.thin_probability else 1)
        seen = Seen.joined([look(cells, epoch) for epoch in views])
        probe = fit_probe(
            *(seen, np.tile(pool.types[cells], len(views))),
            *(look(split.validation, VALIDATION_EPOCH), pool.types[split.validation]),
            *(len(pool.labels), config.balance, config.penalties),
        )
        made.append(probe)
        with atomic_path(path) as temporary:
            save_file({k: np.ascontiguousarray(w) for k, w in probe.weights.items()}, temporary)
        return {"inverse_penalty": probe.inverse_penalty, "losses": probe.losses}

    told = decided_by_first(fit)
    if made:
        return made[0]
    return None if config.method == "probe" else Probe(load_file(path), **told)


def validation_loss(
    model: CellModel, pool: LabelledPool, split: CelltypeSplit, config: CelltypeConfig
) -> float:
    """Of the model as it is, on the validation cells: what training makes small."""
    scores = torch.from_numpy(pool_scores(model, pool, split.validation, VALIDATION_EPOCH))
    truth = torch.from_numpy(pool.types[split.validation])
    return float(type_loss(scores, truth, balance_of(pool, split, config)))


def balance_of(pool: LabelledPool, split: CelltypeSplit, config: CelltypeConfig) -> Any:
    """How the types are balanced, by their training cells."""
    n_cells = np.bincount(pool.types[split.training], minlength=len(pool.labels))
    return type_balance(torch.from_numpy(n_cells), config.balance)


def _train(
    model: CellModel, pool: LabelledPool, split: CelltypeSplit, config: CelltypeConfig, out: Path
) -> list[tuple[int, float]]:
    """Change the weights; the validation losses on the way. Checkpoints stay in ``out``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        freeze_for(model, pool, split, config)
        module = CelltypeModule(
            model,
            balance_of(pool, split, config),
            config.optim,
            integrate_weight=0.0 if config.integrate == "none" else config.integrate_weight,
            seed=config.seed,
        )
    cells = CellDataModule(
        *(pool, split_for_loader(pool, split), config.loader),
        total_steps=config.train.steps,
        accumulate=config.train.accumulate,
    )
    metrics = CsvMetrics(out / "metrics.csv", list(METRICS))
    metrics.start(at_step=0)
    loggers: list[Logger] = [metrics]
    keep = StopWhenNoBetter(config.patience)
    with quiet_lightning():
        trainer = build_trainer(
            *(config.train, config.optim, config.logging, loggers),
            _callbacks(config, keep, out),
        )
        trainer.fit(module.train(), cells)
    return keep.curve


def _best_step(out: Path, began: float) -> int:
    """The checkpoint of least validation loss, the later of equals; 0 where none is below."""
    judged = [read_manifest(path) for path in checkpoints(out)]
    losses = [(m.val_loss, -m.step) for m in judged if m.val_loss is not None]
    best, step = min(losses, default=(began, 0))
    return -step if best < began else 0


def _callbacks(config: CelltypeConfig, keep: StopWhenNoBetter, out: Path) -> list[L.Callback]:
    batches, train = HostBatches(), config.train
    saving = CheckpointConfig(
        every_n_steps=min(train.validate_every, train.steps), keep_last=1, keep_best=1
    )
    again = "the same command"
    return [
        LogSteps(),
        batches,
        Throughput(batches, None, train.precision),
        FiniteGuard(out, batches, config.guard, train.strategy),
        StepProgress(train.steps, config.logging.every_n_steps, "finetune"),
        keep,
        StepCheckpoint(out, saving, train, again),
    ]


def freeze_for(
    model: CellModel, pool: LabelledPool, split: CelltypeSplit, config: CelltypeConfig
) -> None:
    """Leave trainable what the method says."""
    few = pool.shown(split.training[:2]).map(lambda x: torch.from_numpy(x).to(model.device))
    freeze(model, config.method, few, last_blocks=config.last_blocks, lora=config.lora)


def split_for_loader(pool: LabelledPool, split: CelltypeSplit) -> Split:
    """The split in the datamodule's terms: validation cells are what it judges."""
    is_training = np.zeros(pool.n_cells, dtype=bool)
    is_training[split.training] = True
    is_held_out = np.zeros(pool.n_cells, dtype=bool)
    is_held_out[split.validation] = is_held_out[split.judged] = True
    return Split(is_training, is_held_out & ~is_training, split.validation)


def _at_step(
    start: CellModel,
    pool: LabelledPool,
    split: CelltypeSplit,
    config: CelltypeConfig,
    out: Path,
    step: int,
) -> CellModel:
    """The model with the weights of a checkpoint, of any strategy; adapters merged."""
    if config.method == "lora":
        freeze_for(start, pool, split, config)
    weights = whole_weights(checkpoint_folder(out, step))
    own = {k.removeprefix("model."): w for k, w in weights.items() if k.startswith("model.")}
    start.load_state_dict(own)
    return merge_adapters(start) if config.method == "lora" else start.requires_grad_(True)
