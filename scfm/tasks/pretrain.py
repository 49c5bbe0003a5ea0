"""Pretraining: raw counts in, a model folder out.

in   a PretrainRun and count files
out  RUN/ with config.yaml, data.json, metrics.csv, checkpoints/ and model/

The task is to guess the raw-depth value of hidden genes of a cell that may have been thinned: once
by asking the cell's other genes (query decoder), once from the cell's one state.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger

from scfm.batch import CellBatch
from scfm.config import load_config, to_mapping, to_yaml
from scfm.data.fingerprint import sha256
from scfm.data.genes import GeneReport
from scfm.data.split import held_out_cells
from scfm.data.write import atomic_path, make_folder
from scfm.errors import ConfigError, InputError
from scfm.model.attention import Packing
from scfm.model.config import ModelSizes
from scfm.model.pretrained import ScfmModel, save_model
from scfm.objectives.regression import mean_squared_error
from scfm.tokens.collate import TokenConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import CellPool
from scfm.tokens.vocab import GeneVocab
from scfm.train.checkpoint import checkpoints, latest_checkpoint
from scfm.train.datamodule import CellDataModule, LoaderConfig
from scfm.train.loggers import CsvMetrics, LoggingConfig, wandb_logger
from scfm.train.optim import OptimConfig, build_optimizer
from scfm.train.trainer import TrainerConfig, build_trainer, quiet_lightning
from scfm.version import __version__

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


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """A whole pretraining run; one YAML file."""

    seed: int = 0  # 0 to 2**32 - 1
    data: tuple[str, ...] = ()  # count files; --data replaces them
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelSizes = field(default_factory=ModelSizes)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 4294967295, got {self.seed}")


class PretrainModule(L.LightningModule):
    """Model + objective + what is logged of them."""

    def __init__(self, model: ScfmModel, objective: ObjectiveConfig, optim: OptimConfig):
        super().__init__()
        self.model, self.objective, self.optim = model, objective, optim
        self.so_far: torch.Tensor | int = 0  # losses of the step's micro-batches, summed

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

    def training_step(self, cells: CellBatch, batch_idx: int) -> torch.Tensor:
        found = self.losses(cells)
        parts = torch.stack([found[name].detach() for name in LOSSES])
        # A step's loss is the mean over its micro-batches and processes, whose shares are equal.
        self.so_far = parts + (self.so_far if batch_idx % self._accumulate else 0)
        if (batch_idx + 1) % self._accumulate == 0:
            for name, value in zip(LOSSES, self.so_far / self._accumulate, strict=True):
                self.log(name, value, sync_dist=self.trainer.world_size > 1)
        return found["loss"]

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
            norms = [p.grad.norm() for p in self.parameters() if p.grad is not None]
            self.log("gradient_norm", torch.stack(norms).norm())
            self.log("lr", optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer, schedule = build_optimizer(
            self, self.optim, int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


@dataclass(frozen=True)
class RunData:
    """Opened training data: the pool, who trains and who is held out, what was matched."""

    pool: CellPool
    training: np.ndarray
    held_out: np.ndarray
    reports: dict[str, GeneReport]


def pretrain(run: PretrainRun, out: Path, *, vocab: GeneVocab | None = None) -> Path:
    """Train from scratch in a new run folder; returns the folder of the exported model.

    Raises ConfigError where ``out`` already holds a run, InputError for unusable data, and
    Interrupted, with a checkpoint written, when stopped by Ctrl-C or SIGTERM.
    """
    if checkpoints(out) or (out / "model").exists():
        raise ConfigError(
            f"{out} already holds a run. Go on with it: scfm pretrain --out {out} --resume; or "
            "give another --out."
        )
    if not run.data:
        raise ConfigError("No data to train on. Name count files: --data cells.h5ad")
    make_folder(out)
    vocab = vocab or GeneVocab.human()
    data = open_data(run, vocab)
    _write_run_files(run, out, data, vocab)
    return _fit(run, out, vocab, data, checkpoint=None)


# What may differ when a run goes on: where it runs, never what it computes.
MACHINE_KEYS = tuple(f"trainer.{k}" for k in ("accelerator", "devices", "num_nodes", "strategy"))


def resume(out: Path, overrides: Sequence[str] = ()) -> Path:
    """Go on with a run from its newest whole checkpoint, on the data it was started with.

    ``overrides`` may move it to another machine or number of processes (``MACHINE_KEYS``).
    Raises ConfigError for any other key, and where ``out`` is no run; InputError where the data
    is gone or has changed.
    """
    for override in overrides:
        if override.partition("=")[0] not in MACHINE_KEYS:
            raise ConfigError(
                f"--resume goes on with the run as it was configured; --set {override} would "
                f"change it. Only {', '.join(MACHINE_KEYS)} may be set."
            )
    run = read_run(out, overrides)
    checkpoint = latest_checkpoint(out)
    _require_same_data(out)
    vocab = GeneVocab.load(out / "vocab.tsv")
    return _fit(run, out, vocab, open_data(run, vocab), checkpoint)


def open_data(run: PretrainRun, vocab: GeneVocab) -> RunData:
    """Open every file, match its genes, refuse what cannot be used, draw the held-out cells."""
    opened = [open_input(path, vocab, run.input, run.tokens) for path in run.data]
    pool = CellPool([member for member, _ in opened], seed=run.seed)
    held_out = held_out_cells(
        pool.n_cells, run.loader.held_out_share, run.loader.max_held_out, run.seed
    )
    training = np.setdiff1d(np.arange(pool.n_cells), held_out)
    if len(training) == 0:
        raise InputError("No cells are left to train on; lower loader.held_out_share.")
    reports = {member.source.name: report for member, report in opened}
    return RunData(pool, training, held_out, reports)


def read_run(out: Path, overrides: Sequence[str] = ()) -> PretrainRun:
    """The settings a run was started with."""
    path = out / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{out} is no run folder: it has no config.yaml. Check --out.")
    return load_config(PretrainRun, str(path), overrides)


def _write_run_files(run: PretrainRun, out: Path, data: RunData, vocab: GeneVocab) -> None:
    with atomic_path(out / "config.yaml") as temporary:
        temporary.write_text(to_yaml(_absolute(run)))
    found = {
        "files": [[path, sha256(Path(path))] for path in _absolute(run).data],
        "n_cells": data.pool.n_cells,
        "n_held_out": len(data.held_out),
        "genes": {name: report.to_dict() for name, report in data.reports.items()},
    }
    with atomic_path(out / "vocab.tsv") as temporary:
        vocab.save(temporary)
    with atomic_path(out / "data.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")


def _absolute(run: PretrainRun) -> PretrainRun:
    """File paths made absolute, so that a resume finds them from anywhere."""
    return replace(run, data=tuple(str(Path(path).absolute()) for path in run.data))


def _require_same_data(out: Path) -> None:
    for path, wanted in json.loads((out / "data.json").read_text())["files"]:
        if not Path(path).exists():
            raise InputError(
                f"{path}, which this run was started with, is gone. Put it back, or start a new "
                "run with another --out."
            )
        if sha256(Path(path)) != wanted:
            raise InputError(
                f"{path} has changed since this run was started, so its cells are no longer those "
                "the checkpoint has seen. Restore the file, or start a new run with another --out."
            )


def _fit(
    run: PretrainRun, out: Path, vocab: GeneVocab, data: RunData, checkpoint: Path | None
) -> Path:
    L.seed_everything(run.seed, verbose=False)
    model = ScfmModel.from_scratch(vocab, run.model, max_genes=run.tokens.max_genes)
    module = PretrainModule(model, run.objective, run.optim)
    cells = CellDataModule(
        data.pool,
        data.training,
        data.held_out,
        run.loader,
        total_steps=run.trainer.steps,
        accumulate=run.trainer.accumulate,
    )
    started = time.perf_counter()
    with quiet_lightning():
        trainer = build_trainer(
            run.trainer,
            run.optim,
            run.logging,
            out,
            _loggers(run, out, checkpoint),
            resume_command=f"scfm pretrain --out {out} --resume",
        )
        trainer.fit(module, cells, ckpt_path=checkpoint, weights_only=True)
    model.provenance = _provenance(run, out, trainer, time.perf_counter() - started)
    if trainer.is_global_zero:
        save_model(model, out / "model")
    return out / "model"


def _loggers(run: PretrainRun, out: Path, checkpoint: Path | None) -> list[Logger]:
    metrics = CsvMetrics(out / "metrics.csv", METRICS)
    step = int(checkpoint.stem.split("=")[1]) if checkpoint else 0
    metrics.start(at_step=step)
    if run.logging.wandb == "off":
        return [metrics]
    return [metrics, wandb_logger(out, run.logging, to_mapping(run))]


def _provenance(run: PretrainRun, out: Path, trainer: L.Trainer, seconds: float) -> dict[str, Any]:
    data = json.loads((out / "data.json").read_text())
    return {
        "made_by": f"scfm {__version__} pretrain",
        "steps": trainer.global_step,
        "seconds_of_last_session": round(seconds, 1),
        # File names alone: where they lay is nobody's business.
        "run": to_mapping(replace(run, data=tuple(Path(path).name for path in run.data))),
        "data": {
            "files": [[Path(path).name, digest] for path, digest in data["files"]],
            "n_cells": data["n_cells"],
            "n_held_out": data["n_held_out"],
        },
        "torch": torch.__version__,
    }
