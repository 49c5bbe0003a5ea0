"""Pretraining on several processes, the cost of the trainer, and the wait for data.

One JSON line on stdout. Three questions, each answered by runs of ``scfm pretrain`` as a user
starts them, read off their metrics.csv:

scaling    two processes against one at the same global batch, ddp, one thread each; beside it what
           the machine allows: two runs of half the batch side by side that share nothing
strategies fsdp and DeepSpeed against ddp, two processes, step time
data wait  share of the time in which one process waits for its next batch, from a store

and one in this process: the whole step under the trainer, its callbacks and its logging, against a
hand-written loop over the same model and the same batches (forward, backward, clip, AdamW,
schedule). Sides take turns, round by round. Processes need idle cores to say anything.

    python benchmarks/train.py [--folder corpus] [--rounds 5]
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from corpus import make_corpus
from measure import report

from scfm.config import load_config
from scfm.model.pretrained import ScfmModel
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_module import PretrainModule
from scfm.tasks.pretrain_run import PretrainRun
from scfm.tasks.run_data import open_data
from scfm.tokens.vocab import GeneVocab
from scfm.train.datamodule import CellDataModule
from scfm.train.optim import build_optimizer

N_CELLS, N_GENES = 8_000, 256  # of the corpus; expressed genes of a cell at most
STEPS, WARM_UP = 9, 3  # optimiser steps of a run, and those not counted
BATCH = 16  # cells a step, over all processes
STRATEGIES = ("ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3")


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("corpus"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", default="scfm-10m", help="of the processes")
    parser.add_argument("--small", default="scfm-3m", help="of the trainer's cost and data wait")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    asked = parser.parse_args()
    store = make_store(asked.folder)
    strategies = ["ddp", *(name for name in asked.strategies if name != "ddp")]
    sides = [("ddp", 1), *((strategy, 2) for strategy in strategies)]
    seconds: dict[tuple[str, int], list[float]] = {side: [] for side in sides}
    apart, trainer, bare, waits = [], [], [], []
    for _ in range(asked.rounds):
        for strategy, n in sides:
            seconds[strategy, n].append(step_seconds(asked.config, store, strategy, n))
        apart.append(apart_seconds(asked.config, store))
        under_trainer, wait = trainer_step(asked.small, store)
        trainer.append(under_trainer)
        waits.append(wait)
        bare.append(bare_step(asked.small, store))
    one, two = seconds["ddp", 1], seconds["ddp", 2]
    report(
        {
            "what": "pretraining steps: processes, strategies, the trainer's cost, data wait",
            "two processes against one": ratios(one, two),
            "two that share nothing against one": ratios(one, apart),
            "step time against ddp": {
                strategy: ratios(seconds[strategy, 2], two) for strategy in strategies[1:]
            },
            "seconds a step": {f"{s} x {n}": spread(seconds[s, n]) for s, n in sides},
            "trainer against bare loop": ratios(trainer, bare),
            "seconds a step of each": {"trainer": spread(trainer), "bare": spread(bare)},
            "data wait": spread(waits),
            "ratios": "median, least, most over rounds",
            "rounds": asked.rounds,
            "input": {
                "config": asked.config,
                "small": asked.small,
                "cells a step": BATCH,
                "genes a cell at most": N_GENES,
                "precision": "float32",
            },
            "torch": torch.__version__,
        }
    )


def make_store(folder: Path) -> Path:
    """The corpus as a store, made where it is not there yet."""
    store = folder / f"store_{N_CELLS}"
    if not store.exists():
        files = [str(path) for path in make_corpus(folder, N_CELLS)]
        command = [sys.executable, "-m", "scfm.cli", "prepare", *files, "--out", str(store)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return store


def settings(strategy: str, every: int, batch: int = BATCH) -> list[str]:
    return [
        *(f"train.steps={STEPS}", f"train.validate_every={STEPS}", "train.precision=32-true"),
        *("train.accelerator=cpu", f"train.strategy={strategy}", f"loader.batch_size={batch}"),
        *(f"tokens.max_genes={N_GENES}", "loader.held_out_share=0", "loader.prefetch=2"),
        *(f"logging.every_n_steps={every}", f"checkpoints.every_n_steps={10 * STEPS}"),
    ]


def apart_seconds(config: str, store: Path) -> float:
    """Time of a step of two runs at once, each with half the batch: the slower one's."""
    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(step_seconds, config, store, "ddp", 1, BATCH // 2) for _ in range(2)]
        return max(half.result() for half in halves)


def step_seconds(
    config: str, store: Path, strategy: str, n_processes: int, batch: int = BATCH
) -> float:
    """Median time of a step of a run of its own, after the first ones."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={n_processes}", "-m", "scfm.cli", "pretrain"),
            *("--config", config, "--data", str(store), "--out", str(run)),
            *(part for setting in settings(strategy, 1, batch) for part in ("--set", setting)),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr)
        rates = [float(row["cells_per_s"]) for row in rows_of(run)[WARM_UP:]]
    return batch / float(np.median(rates))


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def trainer_step(config: str, store: Path) -> tuple[float, float]:
    """Seconds a step under the trainer, and the share of them spent waiting for data."""
    run = load_config(PretrainRun, config, settings("auto", WARM_UP))
    with tempfile.TemporaryDirectory() as folder:
        pretrain(replace(run, data=(str(store),)), Path(folder) / "run")
        rows = rows_of(Path(folder) / "run")[1:]  # each of WARM_UP steps; the first warms up
    seconds = np.mean([BATCH / float(row["cells_per_s"]) for row in rows])
    return float(seconds), float(np.mean([float(row["data_wait"]) for row in rows]))


def bare_step(config: str, store: Path) -> float:
    """Seconds a step of a loop by hand, over the same batches."""
    run = load_config(PretrainRun, config, settings("auto", WARM_UP))
    run = replace(run, data=(str(store),))
    L.seed_everything(run.seed, verbose=False)
    vocab = GeneVocab.human()
    model = ScfmModel.from_scratch(vocab, run.model, max_genes=run.tokens.max_genes)
    module = PretrainModule(model, run.objective, run.optim).train()
    optimizer, schedule = build_optimizer(module, run.optim, STEPS)
    data = open_data(run, vocab)
    cells = CellDataModule(data.pool, data.split, run.loader, total_steps=STEPS, accumulate=1)
    started = 0.0
    for number, batch in enumerate(cells.train_dataloader()):
        if number == WARM_UP:
            started = time.perf_counter()
        optimizer.zero_grad()
        module.losses(batch.cells)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), run.optim.gradient_clip)
        optimizer.step()
        schedule.step()
    return (time.perf_counter() - started) / (STEPS - WARM_UP)


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def spread(found: list[Any]) -> list[float]:
    """Median, least, most."""
    return [round(float(x), 3) for x in (np.median(found), min(found), max(found))]


if __name__ == "__main__":
    main()
