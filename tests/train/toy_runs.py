"""A run of seconds for the tests of what goes on around training, stopped and compared."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from scfm.model.families import load_model
from scfm.tasks.pretrain_run import PretrainRun
from scfm.train.checkpoint import CheckpointConfig
from scfm.train.datamodule import LoaderConfig
from scfm.train.loggers import read_metrics
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig
from scfm.train.throughput import Throughput
from tests.toys import SIZES, toy_counts, toy_vocab

TIMED = {"cells_per_s", "tokens_per_s", "mfu", "data_wait", "memory_peak"}  # by the clock


def toy_run(folder: Path, rng: np.random.Generator, depth: float = 1.0) -> PretrainRun:
    """Fifty cells, eight a step, six steps, each logged; validated and saved at the last.

    ``depth`` multiplies the counts of each second cell.
    """
    vocab = toy_vocab()
    counts = toy_counts(rng, 50, vocab.n_genes).toarray()
    counts[::2] = np.rint(depth * counts[::2])
    adata = anndata.AnnData(
        counts.astype(np.float32),
        var=pd.DataFrame(index=list(vocab.symbols)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(50)]),
    )
    adata.write_h5ad(folder / "cells.h5ad")
    run = PretrainRun(
        data=(str(folder / "cells.h5ad"),),
        model=replace(SIZES, n_layers=1, d_model=16),
        loader=LoaderConfig(batch_size=8, held_out_share=0.2),
        optim=OptimConfig(warmup_steps=2),
        train=TrainConfig(steps=6, validate_every=6, accelerator="cpu"),
        checkpoints=CheckpointConfig(every_n_steps=6),
    )
    return replace(run, logging=replace(run.logging, every_n_steps=1))


def changed(run: PretrainRun, **sections: dict) -> PretrainRun:
    """The run with keys of its sections set: ``changed(run, train={"steps": 3})``."""
    new = {name: replace(getattr(run, name), **keys) for name, keys in sections.items()}
    return replace(run, **new)


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something while ``step`` ends."""
    original = Throughput.on_train_batch_end

    def hook(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == step:
            act()

    monkeypatch.setattr(Throughput, "on_train_batch_end", hook)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send the process a Ctrl-C while ``step`` ends."""
    after_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT))


def numbers(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock decides."""
    rows = read_metrics(run / "metrics.csv")
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def assert_same_model(one: Path, other: Path) -> None:
    """Weights equal to the last bit."""
    ours, theirs = (load_model(path).state_dict() for path in (one, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_same_end(one: Path, other: Path) -> None:
    """Runs with equal weights and equal numbers on the way."""
    assert_same_model(one, other)
    assert numbers(one) == numbers(other)
