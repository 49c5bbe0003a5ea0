"""A run of seconds for the tests of what goes on around training."""

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from scfm.tasks.pretrain_run import PretrainRun
from scfm.train.checkpoint import CheckpointConfig
from scfm.train.datamodule import LoaderConfig
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig
from tests.toys import SIZES, toy_counts, toy_vocab


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
