"""A pretraining step on one GPU: utilisation, packed against padded, and data stalls.

Prints a table, and one JSON line last. Batches are made in memory: cells of equal length for the
utilisation (model FLOPs by scfm.model.flops over the device's dense peak, scfm.train.peaks), and
of mixed lengths for packing, where "padded" gives each cell as many tokens as the longest has: the
work a padded model does, by the same kernels. At best packing is faster by 1 / fill. Data stalls
are those of a run of ``scfm pretrain`` from a store (benchmarks/corpus.py, made in --folder).

    python benchmarks/gpu.py [--presets scfm-100m scfm-400m] [--folder corpus] [--rounds 5]

Without a GPU it refuses, unless --tiny asks for a toy size on the CPU (as the tests do): then the
table says so and its figures mean nothing.
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import report, spread

from scfm.batch import CellBatch
from scfm.config import load_config
from scfm.model.flops import batch_flops
from scfm.model.pretrained import ScfmModel
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_module import PretrainModule
from scfm.tasks.pretrain_run import PretrainRun
from scfm.tokens.vocab import GeneVocab
from scfm.train.optim import build_optimizer
from scfm.train.peaks import peak_flops

TOKENS = 2_048  # of a cell, for the utilisation
CELLS = {"scfm-100m": 32, "scfm-400m": 16}  # at once
SHORTEST = 300  # tokens of the shortest cells, for packing
HIDDEN = 0.3  # of a cell's tokens are targets, half of them zeros
TINY = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.n_bins=10"]


def main() -> None:
    """Measure, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["scfm-100m", "scfm-400m"])
    parser.add_argument("--folder", type=Path, default=Path("corpus"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy size, on the CPU if need be")
    asked = parser.parse_args()
    if not torch.cuda.is_available() and not asked.tiny:
        sys.exit("There is no GPU here. --tiny runs a toy size on the CPU, as the tests do.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = [measure(preset, device, asked.rounds, asked.tiny) for preset in asked.presets]
    stalls = None if asked.tiny else data_wait(asked.presets[0], asked.folder)
    print(table(found, stalls, device))
    report(
        {"what": "a step on one device", "device": name_of(device), "presets": found}
        | {"data_wait": stalls, "torch": torch.__version__, "tiny": asked.tiny}
    )


def measure(preset: str, device: torch.device, rounds: int, tiny: bool) -> dict[str, Any]:
    """Utilisation at equal lengths, and packed against padded at mixed ones."""
    run = load_config(PretrainRun, preset, TINY if tiny else [])
    n_cells, longest = (4, 64) if tiny else (CELLS.get(preset, 16), TOKENS)
    rng = np.random.default_rng(0)
    step = training_step(run, device)
    equal = cells_of(np.full(n_cells, longest), rng, device)
    lengths = np.geomspace(longest * SHORTEST / TOKENS, longest, n_cells).astype(int)
    packed, padded = (cells_of(x, rng, device) for x in (lengths, np.full(n_cells, longest)))
    seconds: dict[str, list[float]] = {"equal": [], "packed": [], "padded": []}
    for number in range(rounds + 1):
        for name, cells in (("equal", equal), ("packed", packed), ("padded", padded)):
            took = timed(step, cells, device)
            if number:  # the first round warms up
                seconds[name].append(took)
    fill = float(lengths.sum() / (n_cells * longest))
    speed_up = float(np.median(np.array(seconds["padded"]) / np.array(seconds["packed"])))
    flops = flops_of(run, equal)
    peak = peak_of(device)
    rates = [flops / s for s in seconds["equal"]]
    return {
        "preset": preset,
        "cells": n_cells,
        "tokens_a_cell": longest,
        "tokens_per_s": spread([equal.n_tokens / s for s in seconds["equal"]]),
        "tflops": [round(r / 1e12, 3) for r in (np.median(rates), min(rates), max(rates))],
        "mfu": None if peak is None else round(float(np.median(rates)) / peak, 4),
        "speed_up_by_packing": round(speed_up, 3),
        "ideal": round(1 / fill, 3),
        "share_of_ideal": round(speed_up * fill, 3),
        "memory_gib": memory(device),
    }


def training_step(run: PretrainRun, device: torch.device) -> Callable[[CellBatch], None]:
    """Forward, backward, clip, AdamW, at the preset's precision."""
    torch.manual_seed(0)
    model = ScfmModel.from_scratch(GeneVocab.human(), run.model, max_genes=run.tokens.max_genes)
    model.recompute(run.train.recompute)
    module = PretrainModule(model, run.objective, run.optim).to(device).train()
    optimizer, _ = build_optimizer(module, run.optim, 1000)
    mixed = run.train.precision == "bf16-mixed"

    def step(cells: CellBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext():
            loss = module.losses(cells)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), run.optim.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def cells_of(lengths: np.ndarray, rng: np.random.Generator, device: torch.device) -> CellBatch:
    """Cells of so many tokens, special ones included; of these a fixed share are targets."""
    vocab, ids, values, is_target = GeneVocab.human(), [], [], []
    for length in lengths:
        n = int(length) - 3
        genes = np.sort(rng.choice(vocab.n_genes, n, replace=False)) + vocab.gene_start
        ids.append([vocab.cell_id, vocab.target_depth_id, vocab.source_depth_id, *genes])
        hidden = np.zeros(n, bool)
        hidden[rng.choice(n, int(HIDDEN * n), replace=False)] = True
        is_target.append([False] * 3 + list(hidden))
        values.append([0.0, 3.7, 3.7, *np.where(hidden, 0, rng.uniform(0.5, 6, n))])
    hidden = np.concatenate(is_target)
    n_cells = len(lengths)
    cells = CellBatch(
        gene_ids=np.concatenate(ids).astype(np.int64),
        values=np.concatenate(values).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        is_target=hidden,
        target_values=np.where(hidden, rng.uniform(0, 3, len(hidden)), 0).astype(np.float32),
        library_size=np.full(n_cells, 5000, np.float32),
        source_depth=np.full(n_cells, 3.7, np.float32),
        target_depth=np.full(n_cells, 3.7, np.float32),
        cell_index=np.arange(n_cells),
    )
    return cells.map(lambda array: torch.from_numpy(array).to(device))


def flops_of(run: PretrainRun, cells: CellBatch) -> float:
    """Model operations of a step: what recomputation adds does not count."""
    bounds = cells.offsets.cpu().numpy()
    before = np.concatenate([[0], np.cumsum(cells.is_target.cpu().numpy())])[bounds]
    targets = np.diff(before)
    return batch_flops(run.model, np.diff(bounds) - targets, targets)


def peak_of(device: torch.device) -> float | None:
    """FLOP/s of bfloat16 products; None for what is not in the table."""
    return (
        peak_flops(torch.cuda.get_device_name(device), "bf16-mixed")
        if device.type == "cuda"
        else None
    )


def timed(step: Callable[[CellBatch], None], cells: CellBatch, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    step(cells)
    wait()
    return time.perf_counter() - start


def memory(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def data_wait(preset: str, folder: Path) -> float:
    """Share of a run's time spent waiting for batches from a store, after its first steps."""
    from train import make_store

    run = load_config(
        PretrainRun,
        preset,
        [
            *("train.steps=40", "train.validate_every=40", "logging.every_n_steps=10"),
            *("loader.batch_size=64", "loader.held_out_share=0", "loader.prefetch=2"),
        ],
    )
    with tempfile.TemporaryDirectory() as out:
        pretrain(replace(run, data=(str(make_store(folder)),)), Path(out) / "run")
        with (Path(out) / "run" / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["data_wait"]][1:]
    return round(float(np.mean([float(row["data_wait"]) for row in rows])), 4)


def table(found: list[dict[str, Any]], stalls: float | None, device: torch.device) -> str:
    """For a person."""
    head = f"{name_of(device)}\n{'preset':<12}{'tokens/s':>12}{'TFLOP/s':>10}{'MFU':>8}"
    lines = [head + f"{'packed/padded':>15}{'of ideal':>10}{'GiB':>8}"]
    for row in found:
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = "-" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        lines.append(
            f"{row['preset']:<12}{row['tokens_per_s'][0]:>12,}{row['tflops'][0]:>10.1f}{mfu:>8}"
            f"{row['speed_up_by_packing']:>14.2f}x{row['share_of_ideal']:>10.2f}{memory:>8}"
        )
    lines.append("data stalls: not measured" if stalls is None else f"data stalls: {stalls:.2%}")
    return "\n".join(lines)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (toy size)"


if __name__ == "__main__":
    main()
