"""Pretraining: raw counts in, a model folder out.

in   a PretrainRun and count files
out  RUN/ with config.yaml, data.json, metrics.csv, checkpoints/ and model/
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger

from scfm.config import to_mapping, to_yaml
from scfm.data.write import atomic_path, make_folder
from scfm.errors import ConfigError
from scfm.model.flops import batch_flops
from scfm.model.pretrained import ScfmModel, save_model
from scfm.tasks.pretrain_module import METRICS, PretrainModule
from scfm.tasks.pretrain_run import MACHINE_KEYS, PretrainRun, absolute, read_run
from scfm.tasks.run_data import RunData, open_data, record_data, require_same_data
from scfm.tokens.vocab import GeneVocab
from scfm.train.callbacks import build_callbacks
from scfm.train.checkpoint import checkpoints, latest_checkpoint
from scfm.train.datamodule import CellDataModule
from scfm.train.loggers import CsvMetrics, tensorboard_logger, wandb_logger
from scfm.train.trainer import build_trainer, quiet_lightning
from scfm.version import __version__


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
    with atomic_path(out / "config.yaml") as temporary:
        temporary.write_text(to_yaml(absolute(run)))
    record_data(run, out, data, vocab)
    return _fit(run, out, vocab, data, checkpoint=None)


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
    manifests = require_same_data(run, out)
    vocab = GeneVocab.load(out / "vocab.tsv")
    return _fit(run, out, vocab, open_data(run, vocab, manifests), checkpoint)


def _fit(
    run: PretrainRun, out: Path, vocab: GeneVocab, data: RunData, checkpoint: Path | None
) -> Path:
    L.seed_everything(run.seed, verbose=False)
    model = ScfmModel.from_scratch(vocab, run.model, max_genes=run.tokens.max_genes)
    model.recompute(run.train.recompute)
    if run.train.compile:
        for block in model.blocks:
            block.compile(dynamic=True)
    module = PretrainModule(model, run.objective, run.optim)
    cells = CellDataModule(
        data.pool,
        data.split,
        run.loader,
        total_steps=run.train.steps,
        accumulate=run.train.accumulate,
    )
    started = time.perf_counter()
    with quiet_lightning():
        trainer = build_trainer(
            run.train,
            run.optim,
            run.logging,
            _loggers(run, out, checkpoint),
            build_callbacks(
                out,
                run.train,
                run.checkpoints,
                run.guard,
                run.logging,
                flops=partial(batch_flops, run.model),
                resume_command=f"scfm pretrain --out {out} --resume",
            ),
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
    loggers: list[Logger] = [metrics]
    if run.logging.tensorboard:
        loggers.append(tensorboard_logger(out, at_step=step))
    if run.logging.wandb != "off":
        loggers.append(wandb_logger(out, run.logging, to_mapping(run)))
    return loggers


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
