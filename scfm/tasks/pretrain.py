"""Pretraining: raw counts in, a model folder out.

in   a PretrainRun and count files
out  RUN/ with config.yaml, data.json, metrics.csv, checkpoints/ and model/

The task is to guess the raw-depth value of hidden genes of a cell that may have been thinned: once
by asking the cell's other genes (query decoder), once from the cell's one state.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from scfm.batch import CellBatch
from scfm.config import load_config, to_mapping, to_yaml
from scfm.data.fingerprint import sha256
from scfm.data.gene_reading import VocabularyGenes
from scfm.data.leakage import Leakage, find_leaks, holds_whole_counts, keyed
from scfm.data.read import CountsSource, open_counts
from scfm.data.soma_address import absolute_address, is_address
from scfm.data.split import Split, split_cells, split_groups
from scfm.data.store import Store, is_store
from scfm.data.write import atomic_path, make_folder
from scfm.errors import ConfigError, InputError, MissingFileError, ScfmWarning
from scfm.model.attention import Packing
from scfm.model.config import ModelSizes
from scfm.model.pretrained import ScfmModel, save_model
from scfm.objectives.regression import mean_squared_error
from scfm.tokens.collate import TokenConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import CellPool
from scfm.tokens.vocab import GeneVocab
from scfm.train.checkpoint import checkpoints, latest_checkpoint
from scfm.train.datamodule import CellDataModule, LoaderConfig, MicroBatch
from scfm.train.loggers import CsvMetrics, LoggingConfig, wandb_logger
from scfm.train.optim import OptimConfig, build_optimizer
from scfm.train.trainer import TrainerConfig, build_trainer, quiet_lightning
from scfm.version import __version__

LOSSES = ("loss", "loss_query", "loss_cell")
logger = logging.getLogger(__name__)
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
    """Opened training data: the pool, who trains and who is held out, and copies across the two.

    ``leakage`` is None where cells were held out at random, or hold expected counts.
    """

    pool: CellPool
    split: Split
    leakage: Leakage | None


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
    manifests = _require_same_data(run, out)
    vocab = GeneVocab.load(out / "vocab.tsv")
    return _fit(run, out, vocab, open_data(run, vocab, manifests), checkpoint)


def open_data(
    run: PretrainRun, vocab: GeneVocab, manifests: Mapping[str, int] | None = None
) -> RunData:
    """Open files and stores, match their genes, refuse what cannot be used, split the cells.

    ``manifests`` are numbers of the stores' earlier manifests to read, by path.
    """
    manifests = manifests or {}
    members = [
        open_input(path, vocab, run.input, run.tokens, manifest=manifests.get(path))[0]
        for path in run.data
    ]
    pool, loader = CellPool(members, seed=run.seed), run.loader
    amounts = (loader.held_out_share, loader.max_held_out, run.seed)
    if loader.held_out_by is None:
        split = split_cells(pool.n_cells, *amounts)
    else:
        codes, names = pool.column(loader.held_out_by)
        split = split_groups(codes, names, *amounts, by=loader.held_out_by)
    if not split.is_training.any():
        raise InputError("No cells are left to train on; lower loader.held_out_share.")
    return RunData(pool, split, _leakage(pool, split, vocab))


def _leakage(pool: CellPool, split: Split, vocab: GeneVocab) -> Leakage | None:
    """Copies of held-out cells among the training cells, said aloud where there are any.

    Only looked for where groups are held out: it reads files a second time.
    """
    if split.by is None or not split.is_held_out.any():
        return None
    if split.n_without_group:
        rank_zero_warn(
            f"{split.n_without_group:,} cells have no value in '{split.by}'. They train, though "
            "some may be of a group that is held out.",
            category=ScfmWarning,
        )
    if not all(map(holds_whole_counts, pool.sources)):
        return None
    vocabulary = VocabularyGenes(vocab.symbols, vocab.ensembl_ids)
    sources = [
        keyed(source, "mouse" if member.reports[0].species == "mouse" else "human", vocabulary)
        for source, member in zip(pool.sources, pool.members, strict=True)
    ]
    leakage = find_leaks(sources, split.is_training, split.is_held_out)
    if leakage.exact or leakage.near:
        rank_zero_warn(
            f"{leakage}, though no '{split.by}' is on both sides: the validation loss will be too "
            "low. See held_out in data.json; scfm prepare drops exact copies.",
            category=ScfmWarning,
        )
    return leakage


def read_run(out: Path, overrides: Sequence[str] = ()) -> PretrainRun:
    """The settings a run was started with."""
    path = out / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{out} is no run folder: it has no config.yaml. Check --out.")
    return load_config(PretrainRun, str(path), overrides)


def _write_run_files(run: PretrainRun, out: Path, data: RunData, vocab: GeneVocab) -> None:
    with atomic_path(out / "config.yaml") as temporary:
        temporary.write_text(to_yaml(_absolute(run)))
    paths, split = _absolute(run).data, data.split
    opened = list(zip(paths, data.pool.members, strict=True))
    found = {
        "files": [
            [path, member.source.fingerprint()]
            for path, member in opened
            if isinstance(member.source, CountsSource)
        ],
        "stores": [
            {
                "path": path,
                "manifest": member.source.manifest.sequence,
                "manifest_sha256": member.source.manifest.hash,
            }
            for path, member in opened
            if isinstance(member.source, Store)
        ],
        "n_cells": data.pool.n_cells,
        "n_training": int(split.is_training.sum()),
        "n_held_out": int(split.is_held_out.sum()),
        "held_out": {
            "by": split.by,
            "n_judged": len(split.judged),
            "groups": split.groups_held_out,
            "n_groups_training": len(split.groups_training),
            "n_cells_without_group": split.n_without_group,
            "copies_in_training": asdict(data.leakage) if data.leakage else None,
        },
        "genes": {r.name: r.to_dict() for member in data.pool.members for r in member.reports},
    }
    with atomic_path(out / "vocab.tsv") as temporary:
        vocab.save(temporary)
    with atomic_path(out / "data.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")


def _absolute(run: PretrainRun) -> PretrainRun:
    """File paths made absolute, so that a resume finds them from anywhere."""
    return replace(run, data=tuple(map(_absolute_path, run.data)))


def _absolute_path(path: str) -> str:
    if is_address(path):
        return absolute_address(path)
    return path if "://" in path else str(Path(path).absolute())


def _require_same_data(run: PretrainRun, out: Path) -> dict[str, int]:
    """Refuse data that is not what the run was started with.

    Returns, for each store that was changed since, the number of the manifest to read: a store that
    was only added to still has it.
    """
    recorded = json.loads((out / "data.json").read_text())
    for path, wanted in recorded["files"]:
        if _fingerprint(path, run.input) != wanted:
            raise InputError(
                f"{path} has changed since this run was started, so its cells are no longer those "
                "the checkpoint has seen. Restore the file, or start a new run with another --out."
            )
    return {store["path"]: _manifest_of(store) for store in recorded.get("stores", [])}


def _fingerprint(path: str, config: InputConfig) -> str:
    """What identifies the data now: a file's sha256, or what a database says of the cells named."""
    if is_address(path):
        with open_counts(path, layer=config.layer, backed=True) as source:
            return source.fingerprint()
    if not Path(path).exists():
        raise _gone(path)
    return sha256(Path(path))


def _manifest_of(store: Mapping[str, Any]) -> int:
    path, number = store["path"], store["manifest"]
    if not is_store(path):
        raise _gone(path)
    try:
        found = Store(path, manifest=number).manifest.hash
    except MissingFileError as error:
        raise InputError(
            f"{path} has changed since this run was started, and the manifest it then had "
            f"(number {number}) is gone. Restore the store, or start a new run with another --out."
        ) from error
    if found != store["manifest_sha256"]:
        raise InputError(
            f"{path} is another store than this run was started with: its manifest {number} hashes "
            f"to {found[:12]}..., then it was {store['manifest_sha256'][:12]}... Restore the "
            "store, or start a new run with another --out."
        )
    if (newest := Store(path).manifest.sequence) != number:
        logger.info("%s has manifest %s by now; going on with %s", path, newest, number)
    return number


def _gone(path: str) -> InputError:
    return InputError(
        f"{path}, which this run was started with, is gone. Put it back, or start a new run with "
        "another --out."
    )


def _fit(
    run: PretrainRun, out: Path, vocab: GeneVocab, data: RunData, checkpoint: Path | None
) -> Path:
    L.seed_everything(run.seed, verbose=False)
    model = ScfmModel.from_scratch(vocab, run.model, max_genes=run.tokens.max_genes)
    module = PretrainModule(model, run.objective, run.optim)
    cells = CellDataModule(
        data.pool,
        data.split,
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
            "stores": [[Path(s["path"]).name, s["manifest_sha256"]] for s in data["stores"]],
            "n_cells": data["n_cells"],
            "n_held_out": data["n_held_out"],
        },
        "torch": torch.__version__,
    }
