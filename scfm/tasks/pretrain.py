"""Pretraining: raw counts in, a model folder out.

in   a PretrainRun and count files
out  RUN/ with config.yaml, data.json, metrics.csv, checkpoints/ and model/
"""

import json
import time
import warnings
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
from scfm.errors import ConfigError, ScfmWarning
from scfm.model.flops import batch_flops
from scfm.model.pretrained import ScfmModel, save_model
from scfm.tasks.pretrain_module import METRICS, PretrainModule
from scfm.tasks.pretrain_run import (
    PretrainRun,
    absolute,
    moved,
    on_these_processes,
    read_run,
)
from scfm.tasks.run_data import RunData, open_data, record_data, require_same_data
from scfm.tokens.vocab import GeneVocab
from scfm.train.callbacks import build_callbacks
from scfm.train.checkpoint import checkpoints, latest_checkpoint
from scfm.train.datamodule import CellDataModule
from scfm.train.loggers import CsvMetrics, tensorboard_logger, wandb_logger
from scfm.train.processes import decided_by_first, rank
from scfm.train.trainer import build_trainer, quiet_lightning
from scfm.version import __version__


def pretrain(run: PretrainRun, out: Path, *, vocab: GeneVocab | None = None) -> Path:
    """Train from scratch in a new run folder; returns the folder of the exported model.

    Raises ConfigError where ``out`` already holds a run, InputError for unusable data, and
    Interrupted, with a checkpoint written, when stopped by Ctrl-C, SIGTERM or SIGUSR1.
    """
    if decided_by_first(lambda: bool(checkpoints(out)) or _is_finished(out)):
        raise ConfigError(
            f"{out} already holds a run. Go on with it: scfm pretrain --out {out} --resume; or "
            "give another --out."
        )
    if not run.data:
        raise ConfigError("No data to train on. Name count files: --data cells.h5ad")
    make_folder(out)
    vocab = vocab or GeneVocab.human()
    data = open_data(run, vocab)
    if rank() == 0:
        _record(run, out, data, vocab)
    return _fit(on_these_processes(run), out, vocab, data, checkpoint=None)


def resume(out: Path, overrides: Sequence[str] = (), *, asked: PretrainRun | None = None) -> Path:
    """Go on with a run from its newest whole checkpoint, on the data it was started with.

    It may move to another machine or number of processes (``MACHINE_KEYS``): by ``overrides`` of
    its own config, or by ``asked``, the whole run as a start has it. Then it begins where there is
    no run yet. One without a checkpoint begins again, as recorded; a finished one stays as it is.
    Each is said with a ScfmWarning. Raises ConfigError for a change of any other key, and where
    ``out`` is no run and nothing is asked; InputError where the data is gone or has changed.
    """
    if asked and not decided_by_first(lambda: (out / "config.yaml").exists()):
        warnings.warn(f"{out} holds no run yet: it begins.", ScfmWarning, stacklevel=2)
        return pretrain(asked, out)
    run = on_these_processes(moved(out, asked or read_run(out, overrides)))
    if decided_by_first(lambda: _is_finished(out)):
        warnings.warn(f"The run in {out} is finished already.", ScfmWarning, stacklevel=2)
        return out / "model"
    found, manifests = decided_by_first(
        lambda: (_newest_checkpoint(out), require_same_data(run, out))
    )
    vocab = GeneVocab.load(out / "vocab.tsv")
    data = open_data(run, vocab, manifests)
    return _fit(run, out, vocab, data, Path(found) if found else None)


def _is_finished(out: Path) -> bool:
    return (out / "model").exists()


def _newest_checkpoint(out: Path) -> str | None:
    if checkpoints(out):
        return str(latest_checkpoint(out))
    warnings.warn(
        f"{out} has no checkpoint yet: the run begins again at step 0.", ScfmWarning, stacklevel=2
    )
    return None


def _record(run: PretrainRun, out: Path, data: RunData, vocab: GeneVocab) -> None:
    """What the run is made of; config.yaml last, since with it the folder is a run."""
    record_data(run, out, data, vocab)
    resolved = run if run.train.devices == "auto" else on_these_processes(run)
    with atomic_path(out / "config.yaml") as temporary:
        temporary.write_text(to_yaml(absolute(resolved)))


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
