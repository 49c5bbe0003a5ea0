"""Three real training steps in a process of their own, and what they took.

in   a PretrainRun, or in the child process a folder with run.yaml
out  peak memory above what the process had before it had a model, seconds, tokens

One process of the run is tried, on this machine, with the batch that one device of it would get.
"""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scfm.config import to_yaml
from scfm.errors import ConfigError, ScfmError
from scfm.tasks.pretrain_run import PretrainRun, absolute, load_run
from scfm.tokens.vocab import GeneVocab
from scfm.tools.plan import (
    Lengths,
    PlanRequest,
    assumed_lengths,
    cells_per_step,
    on_devices,
    step_memory,
)
from scfm.tools.plan_memory import Tokens
from scfm.tools.plan_states import count_parameters, weightless

STEPS = 3  # optimiser steps; the first is not timed
USABLE_CODE = 2  # exit code of the child for what the user can mend


def check_plan(run: PretrainRun, ask: PlanRequest) -> dict[str, Any]:
    """Run the child process; predicted and measured bytes, and operations per second.

    Raises ConfigError where the child cannot run the config on this machine.
    """
    if run.train.zero_stage is not None or run.train.strategy == "fsdp":
        raise ConfigError(
            f"--check tries one process, which has nothing to share by {run.train.strategy}. Leave "
            "out --check, or add --set train.strategy=ddp to check the other parts."
        )
    run = one_process(on_devices(run, ask.gpus), assumed_lengths(ask.genes_per_cell, run))
    with tempfile.TemporaryDirectory(prefix="scfm-plan-") as folder:
        data = ask.data
        if not data:
            genes = assumed_lengths(ask.genes_per_cell, run).genes_per_cell
            path, n_cells = Path(folder) / "cells.h5ad", STEPS * run.loader.batch_size
            columns = getattr(run.tokens, "columns", ())  # of words, in the scmulan family
            data = (str(make_cells(path, genes, n_cells, run.vocab(), columns)),)
        measured = _in_child(absolute(replace(run, data=data)), Path(folder))
    return _compared(run, measured)


def one_process(run: PretrainRun, lengths: Lengths) -> PretrainRun:
    """The part of the run that one of its processes does, for three steps."""
    processes = int(run.train.devices) * run.train.num_nodes
    loader = run.loader
    if loader.batch_tokens is None:
        loader = replace(
            loader, batch_size=max(-(-loader.batch_size // processes), run.train.accumulate)
        )
    else:
        loader = replace(
            loader,
            batch_tokens=loader.batch_tokens // processes,
            batch_size=max(1, int(cells_per_step(run, lengths) / processes)),
        )
    # the first steps alone are made: nobody is judged, nothing is balanced or held out by group
    loader = replace(loader, held_out_share=0.0, held_out_by=None, balance=None, weights={})
    train = replace(
        run.train, steps=STEPS, devices=1, num_nodes=1, strategy="auto", validate_every=STEPS
    )
    return replace(run, loader=loader, train=train)


def make_cells(
    path: Path,
    genes_per_cell: float,
    n_cells: int,
    vocab: GeneVocab,
    columns: Sequence[str] = (),
) -> Path:
    """Write made-up raw counts of a vocabulary, each cell with so many expressed genes.

    ``columns`` are obs columns to make up, of two values each.
    """
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    n_genes = min(round(genes_per_cell), vocab.n_genes)
    genes = [np.sort(rng.choice(vocab.n_genes, n_genes, replace=False)) for _ in range(n_cells)]
    counts = 1 + rng.geometric(0.3, size=n_cells * n_genes)
    matrix = sp.csr_matrix(
        (counts.astype(np.float32), np.concatenate(genes), np.arange(n_cells + 1) * n_genes),
        shape=(n_cells, vocab.n_genes),
    )
    index = pd.Index([f"cell {i}" for i in range(n_cells)])
    obs = pd.DataFrame({c: [f"{c} {i % 2}" for i in range(n_cells)] for c in columns}, index=index)
    ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(vocab.symbols))).write_h5ad(path)
    return path


def _in_child(run: PretrainRun, folder: Path) -> dict[str, Any]:
    (folder / "run.yaml").write_text(to_yaml(run))
    command = [sys.executable, "-m", "scfm.tools.plan_check", str(folder)]
    # Blocks of their own for all but small tensors: else the C library keeps freed ones for later,
    # up to 32 MB each, and the peak tells of its habits rather than of the run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ConfigError(
            f"The trial on this machine ended with code {done.returncode}: "
            f"{said[-1] if said else 'nothing was said; it may have run out of memory'}. Try fewer "
            "cells: --set loader.batch_size=..."
        )
    return json.loads((folder / "measured.json").read_text())


def _compared(run: PretrainRun, measured: dict[str, Any]) -> dict[str, Any]:
    """Predicted for the very cells that were trained on, against measured."""
    n = Tokens(**measured.pop("largest"))
    parts = step_memory(run, count_parameters(weightless(run)), n, measured["device"])
    predicted = sum(parts.values())
    if measured["device"] == "cuda":
        predicted -= parts["batches"] * run.loader.prefetch / (run.loader.prefetch + 1)
    return {
        **measured,
        "cells": n.cells,
        "tokens": n.visible + n.targets,
        "predicted": parts,
        "predicted_bytes": predicted,
        "ratio": predicted / measured["bytes"],
        "flops_per_s": measured["flops"] / measured["seconds"],
    }


def in_words(found: dict[str, Any]) -> str:
    """The comparison as a few lines for a person."""
    from scfm.tools.plan_words import gib

    off = 100 * (found["ratio"] - 1)
    rest, each = gib(found["base"]).strip(), found["tokens"] / found["cells"]
    return "\n".join(
        [
            f"checked: {STEPS} steps of one process on {found['device_name']}, "
            f"{found['cells']:,.0f} cells of {each:,.0f} tokens at once",
            f"  predicted {gib(found['predicted_bytes']).strip()}, measured "
            f"{gib(found['bytes']).strip()} ({off:+.0f} %), beside the {rest} there were before",
            f"  {found['step_seconds']:.2f} s a step, {found['flops_per_s'] / 1e9:,.1f} GFLOP/s",
        ]
    )


def _child(folder: Path) -> None:
    """What the child process does: a tiny model first, so that all libraries are loaded, then this
    one; writes measured.json."""
    run = load_run(str(folder / "run.yaml"))
    os.chdir(folder)  # what Lightning writes of its own accord goes with the folder
    shallow = {name: 1 for name in ("n_layers", "n_decoder_layers") if hasattr(run.model, name)}
    tiny = replace(
        run,
        model=replace(run.model, d_model=2 * run.model.n_heads, **shallow),
        loader=replace(run.loader, batch_tokens=None, batch_size=run.train.accumulate),
    )
    _steps(tiny)
    base = _memory_now()
    found = _steps(run)
    (folder / "measured.json").write_text(json.dumps({**found, **_memory_since(base)}))


def _steps(run: PretrainRun) -> dict[str, Any]:
    import lightning.pytorch as L
    import torch

    from scfm.tasks.pretrain_module import PretrainModule
    from scfm.tasks.run_data import open_data
    from scfm.train.datamodule import CellDataModule
    from scfm.train.throughput import token_counts
    from scfm.train.trainer import build_trainer, quiet_lightning

    class Meter(L.Callback):
        """Lengths of the cells trained on, and when each optimiser step was done."""

        def __init__(self) -> None:
            self.lengths: list[tuple[np.ndarray, np.ndarray]] = []
            self.times: list[float] = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            cells = batch.cells.map(lambda array: array.cpu())
            self.lengths.append(token_counts(cells))
            if (batch_idx + 1) % run.train.accumulate == 0:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.times.append(time.perf_counter())

    L.seed_everything(run.seed, verbose=False)
    vocab = run.vocab()
    data = open_data(run, vocab)
    model = run.new_model(vocab)
    model.recompute(run.train.recompute)
    meter = Meter()
    cells = CellDataModule(
        data.pool, data.split, run.loader, total_steps=STEPS, accumulate=run.train.accumulate
    )
    with quiet_lightning():
        trainer = build_trainer(run.train, run.optim, run.logging, [], [meter])
        trainer.fit(PretrainModule(model, run.objective, run.optim), cells)
    timed = meter.lengths[run.train.accumulate :]
    visible, targets = max(meter.lengths, key=lambda pair: pair[0].sum())
    return {
        "device": "cuda" if trainer.strategy.root_device.type == "cuda" else "cpu",
        "device_name": _device_name(trainer.strategy.root_device),
        "largest": {
            "cells": len(visible),
            "visible": int(visible.sum()),
            "targets": int(targets.sum()),
        },
        "flops": sum(model.batch_flops(*lengths) for lengths in timed),
        "seconds": meter.times[-1] - meter.times[0],
        "step_seconds": (meter.times[-1] - meter.times[0]) / (STEPS - 1),
    }


def _device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _memory_now() -> dict[str, int]:
    """Forget the peak so far, give unused memory back, and say what is left in use."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return {"cuda": torch.cuda.memory_allocated()}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    return {"cpu": _status("VmRSS")}


def _memory_since(base: dict[str, int]) -> dict[str, int]:
    """Bytes at the peak above ``base``."""
    import torch

    if "cuda" in base:
        return {"bytes": torch.cuda.max_memory_allocated() - base["cuda"], "base": base["cuda"]}
    # Not getrusage: its maximum is inherited from the parent process.
    return {"bytes": _status("VmHWM") - base["cpu"], "base": base["cpu"]}


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, name
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    try:
        _child(Path(sys.argv[1]).absolute())
    except ScfmError as error:
        print(error, file=sys.stderr)
        sys.exit(USABLE_CODE)
