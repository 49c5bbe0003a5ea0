"""Training a model of TF binding, stopped by chromosomes that it does not train on.

in   a model, RegionExamples, a RegionSplit, BindingTraining
out  the model at its best validation AUPR, and the curve

Two stages where there are augmentations: with them until the AUPR rises no more, then some steps
on windows as they are.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.loggers import Logger

from scfm.config import to_mapping
from scfm.data.region_examples import RegionExamples
from scfm.data.region_sampling import (
    ExampleTable,
    balanced_order,
    look_at,
    part_examples,
)
from scfm.data.region_split import TRAINING, VALIDATION, RegionSplit, require_apart
from scfm.data.write import make_folder
from scfm.errors import ConfigError
from scfm.model.dna import BindingModel
from scfm.tasks.tfbinding_data import RegionDataModule
from scfm.tasks.tfbinding_module import METRICS, BindingModule, KeepBestAupr, predict_logits
from scfm.tasks.tfbinding_run import BindingTraining, check
from scfm.train.checkpoint import StepCheckpoint, latest_checkpoint
from scfm.train.checkpoint_files import checkpoints, step_of
from scfm.train.loggers import CsvMetrics, LogSteps, tensorboard_logger, wandb_logger
from scfm.train.progress import StepProgress
from scfm.train.stopping import StopOnRequest
from scfm.train.trainer import build_trainer, quiet_lightning

__all__ = ["FittedBinding", "fit_binding", "predict_logits"]

SECOND = "fine_tuning"  # the second stage's folder in the run's


@dataclass(frozen=True)
class FittedBinding:
    """A trained model, and how it came about.

    ``curves`` are (step, validation AUPR), one a stage; ``best`` is (stage, step) of the weights
    that are kept. ``n_training`` are examples, background included; ``n_bound`` those bound.
    """

    model: BindingModel
    curves: list[list[tuple[int, float]]]
    best: tuple[int, int]
    validation_aupr: float
    n_training: int
    n_bound: int


def fit_binding(
    model: BindingModel,
    examples: RegionExamples,
    split: RegionSplit,
    config: BindingTraining,
    *,
    out: Path | None = None,
    resume: bool = False,
) -> FittedBinding:
    """Train a model. Test chromosomes and held-out groups are not touched.

    ``out`` is a folder for metrics.csv and checkpoints; without one nothing is written. ``resume``
    goes on from the newest checkpoint there. A model that knows nothing yet begins at each TF's
    prevalence.

    Raises ConfigError, InputError for windows of two parts that overlap, DivergedError,
    Interrupted.
    """
    check(config)
    require_same_tasks(model, examples)
    reach = max(0, examples.length - int((examples.end - examples.start).min())) // 2
    parts = split.part_of(examples.chrom, examples.start, examples.end)
    require_apart(examples.chrom, examples.start, examples.end, parts, reach=reach)
    training = part_examples(examples, split, TRAINING)
    judged = part_examples(examples, split, VALIDATION)
    table = look_at(examples, training)
    if not model.provenance:
        model.expect(torch.from_numpy(table.prevalence).float())
    stage = _Stage(model, examples, training, spread(judged, config.stopping.most_windows), table)
    first = stage.run(config, out, number=0, resume=resume)
    kept, curves, best = first, [first.curve], (0, first.best_step)
    if config.fine_tuning.steps:
        model.load_state_dict(first.state)
        folder = out / SECOND if out else None
        second = stage.run(config.second_stage, folder, number=1, resume=resume)
        curves.append(second.curve)
        if second.best > first.best:
            kept, best = second, (1, second.best_step)
    model.load_state_dict(kept.state)
    n_bound = int((table.kind[training] == 0).sum())
    return FittedBinding(model.cpu().eval(), curves, best, kept.best, len(training), n_bound)


def require_same_tasks(model: BindingModel, examples: RegionExamples) -> None:
    """A model's logits are of its own tasks, in their order."""
    if tuple(model.tasks) != tuple(examples.tasks):
        raise ConfigError(
            f"The model knows {len(model.tasks)} tasks ({', '.join(model.tasks[:3])}, ...), the "
            f"data has {len(examples.tasks)} ({', '.join(examples.tasks[:3])}, ...). Train one on "
            "this data, or take data of the model's tasks."
        )
    if len(examples.tracks) != model.config.n_tracks or examples.length != model.config.length:
        raise ConfigError(
            f"The model reads {model.config.n_tracks} tracks in windows of {model.config.length:,} "
            f"bases, the data has {len(examples.tracks)} in {examples.length:,}."
        )


def spread(number: Int[np.ndarray, " example"], most: int) -> Int[np.ndarray, " chosen"]:
    """At most so many of them, evenly spread."""
    if len(number) <= most:
        return number
    return number[np.linspace(0, len(number) - 1, most).round().astype(np.int64)]


@dataclass(frozen=True)
class _Stage:
    """What both stages have in common."""

    model: BindingModel
    examples: RegionExamples
    training: Int[np.ndarray, " example"]
    judged: Int[np.ndarray, " judged"]
    table: ExampleTable

    def run(
        self, config: BindingTraining, out: Path | None, *, number: int, resume: bool
    ) -> KeepBestAupr:
        """Train until the last step, or until the AUPR rises no more."""
        # the same seed would show the second stage the windows of the first in the same order
        config = replace(config, seed=(config.seed + 0x57A6E * number) % 2**32)
        order = balanced_order(
            self.table,
            self.training,
            seed=config.seed,
            background_ratio=config.loader.background_ratio,
        )
        data = RegionDataModule(
            self.examples,
            order,
            batch_size=config.loader.batch_size,
            accumulate=config.train.accumulate,
            total_steps=config.train.steps,
            prefetch=config.loader.prefetch,
        )
        keep = KeepBestAupr(self.examples, self.judged, config)
        module = BindingModule(self.model, config, self.table.prevalence)
        checkpoint = _newest(out) if out and resume else None
        self.model.train()  # one that was loaded predicts
        with quiet_lightning(), torch.random.fork_rng():
            torch.manual_seed(config.seed)
            trainer = build_trainer(
                config.train,
                config.optim,
                config.logging,
                _loggers(config, out, checkpoint),
                [LogSteps(), keep, _progress(config), *_saving(config, out)],
            )
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return keep


def _progress(config: BindingTraining) -> L.Callback:
    return StepProgress(config.train.steps, config.logging.every_n_steps, "tfbinding")


def _saving(config: BindingTraining, out: Path | None) -> list[L.Callback]:
    if out is None:
        return []
    run = out.parent if out.name == SECOND else out
    command = f"scfm finetune tfbinding --out {run} --resume"
    saving = StepCheckpoint(out, config.checkpoints, config.train, command)
    return [saving, StopOnRequest(saving, command)]


def _newest(out: Path) -> Path | None:
    return latest_checkpoint(out) if checkpoints(out) else None


def _loggers(config: BindingTraining, out: Path | None, checkpoint: Path | None) -> list[Logger]:
    if out is None:
        return []
    step = step_of(checkpoint) if checkpoint else 0
    metrics = CsvMetrics(make_folder(out) / "metrics.csv", METRICS)
    metrics.start(at_step=step)
    loggers: list[Logger] = [metrics]
    if config.logging.tensorboard:
        loggers.append(tensorboard_logger(out, at_step=step))
    if config.logging.wandb != "off":
        loggers.append(wandb_logger(out, config.logging, to_mapping(config)))
    return loggers


def provenance_of(fitted: FittedBinding, split: RegionSplit, config: Any) -> dict[str, Any]:
    """What made a model: enough to make it again."""
    return {
        "settings": to_mapping(config),
        "split": to_mapping(split),
        "validation_curves": [[list(point) for point in curve] for curve in fitted.curves],
        "best": {"stage": fitted.best[0], "step": fitted.best[1]},
        "validation_aupr": fitted.validation_aupr,
        "n_training_examples": fitted.n_training,
        "n_bound_examples": fitted.n_bound,
        "torch": torch.__version__,
    }
