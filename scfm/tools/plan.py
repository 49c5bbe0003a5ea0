"""A run's config, how many cells, what machines -> what the run will take, before it is begun.

in   PretrainRun, PlanRequest
out  Plan: parameters, memory a device, tokens, operations, hours, sizes on disk, and a verdict

Every formula and assumption stands in docs/planning.md; ``scfm plan --check`` measures.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from scfm.errors import ConfigError
from scfm.model.base import CellModel
from scfm.tasks.pretrain_run import PretrainRun, ScfoundationRun, ScmulanRun
from scfm.tools import plan_memory_scfoundation, plan_memory_scmulan
from scfm.tools.devices import GIB, Device, find_device
from scfm.tools.plan_lengths import Lengths, assumed_lengths, most_tokens, sample_lengths
from scfm.tools.plan_memory import (
    Arithmetic,
    Segment,
    Tokens,
    batch_bytes,
    most_in_pass,
    segments,
)
from scfm.tools.plan_states import (
    Parameters,
    checkpoint_bytes,
    count_parameters,
    states,
    weightless,
)

# In half precision a CPU's kernels are made anew for every length of a cell and kept: 2 MB each at
# first, and no more than this (docs/planning.md).
CPU_KERNELS_GIB = 0.7
USABLE = 0.92  # of a device's memory: the rest goes to the allocator's rounding
RUNTIME_GIB = {"cuda": 0.7, "cpu": 0.6}  # CUDA's context and libraries; an interpreter with torch
# Measured by benchmarks/loader.py: a store of cells with 1,805 expressed genes, obs included.
STORE_BYTES_A_GENE = 1409 / 1805


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is to be planned for.

    Attributes
    ----------
    cells
        Cells there are to train on.
    gpus
        Processes in all, one a device; None: as the config says.
    memory_gib, genes_per_cell
        None: the device's; of the data, or plan_lengths.GENES_PER_CELL.
    mfu
        Share of the device's peak that is reached: an assumption.
    data
        A store or file whose cells are sampled for their lengths.
    """

    cells: float
    gpus: int | None = None
    device: str = "h100"
    memory_gib: float | None = None
    genes_per_cell: float | None = None
    mfu: float = 0.4
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (
            ("cells", self.cells),
            ("gpus", self.gpus),
            ("genes-per-cell", self.genes_per_cell),
        ):
            if value is not None and not 1 <= value < math.inf:
                raise ConfigError(f"--{name} must be at least 1, got {value:g}.")
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise ConfigError(f"--memory must be above 0 (GiB), got {self.memory_gib:g}.")
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu is a share of the peak in (0, 1], got {self.mfu:g}.")


@dataclass(frozen=True)
class Plan:
    """What a run will take. Bytes, seconds and counts; see docs/planning.md.

    ``memory`` is one device's, by part; ``try_next`` are the settings of the first way found to
    make a run fit that does not.
    """

    settings: dict[str, Any]
    parameters: dict[str, int]
    memory: dict[str, float]
    memory_limit: float
    fits: bool
    try_next: tuple[str, ...]
    work: dict[str, float]
    disk: dict[str, float]
    assumptions: tuple[str, ...] = field(default=())

    @property
    def memory_total(self) -> float:
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the total."""
        return {**vars(self), "memory_total": self.memory_total}


def make_plan(run: PretrainRun, ask: PlanRequest) -> Plan:
    """The plan of a run. Raises ConfigError for what cannot be, InputError for unusable data."""
    device, model = find_device(ask.device), weightless(run)
    parameters = count_parameters(model)
    run = on_devices(run, ask.gpus)
    lengths = (
        sample_lengths(replace(run, data=ask.data))
        if ask.data
        else assumed_lengths(ask.genes_per_cell, run)
    )
    limit = (ask.memory_gib or device.memory_gib) * GIB
    memory = memory_by_part(run, parameters, lengths, device)
    fits = sum(memory.values()) <= USABLE * limit
    return Plan(
        settings=_settings(run, ask, lengths),
        parameters={**parameters.by_part, "total": parameters.total},
        memory=memory,
        memory_limit=limit,
        fits=fits,
        try_next=() if fits else _next_to_try(run, parameters, lengths, device, USABLE * limit),
        work=_work(run, ask, lengths, device, model),
        disk={
            "store": ask.cells * lengths.genes_per_cell * STORE_BYTES_A_GENE,
            "checkpoint": checkpoint_bytes(parameters, run.train),
            "model": parameters.total * 4.0,
        },
        assumptions=_assumptions(run, ask, lengths, device),
    )


def on_devices(run: PretrainRun, processes: int | None) -> PretrainRun:
    """The run on so many processes, told to its config; one is meant by devices=auto.

    Raises ConfigError for processes that do not divide over the config's machines.
    """
    nodes = run.train.num_nodes
    if processes is not None:
        if processes % nodes:
            raise ConfigError(
                f"--gpus {processes}, in all, do not divide over train.num_nodes={nodes} machines. "
                f"Name a multiple of {nodes}, or --set train.num_nodes=1."
            )
        train = replace(run.train, devices=processes // nodes)
    else:
        devices = 1 if run.train.devices == "auto" else run.train.devices
        train = replace(run.train, devices=devices)
    if train.strategy == "auto" and _processes(train) > 1:
        train = replace(train, strategy="ddp")
    return replace(run, train=train)


def _processes(train: Any) -> int:
    return train.devices * train.num_nodes


def cells_per_step(run: PretrainRun, lengths: Lengths) -> float:
    """Cells of an optimiser step, over all processes and accumulation."""
    if run.loader.batch_tokens is None:
        return float(run.loader.batch_size)
    return max(1.0, run.loader.batch_tokens / most_tokens(run, lengths.genes_per_cell))


def micro_batch(run: PretrainRun, lengths: Lengths) -> Tokens:
    """The largest share of one process in one micro-batch, of cells of mean length."""
    parts = _processes(run.train) * run.train.accumulate
    cells = math.ceil(cells_per_step(run, lengths) / parts)
    visible, targets = lengths.mean
    return Tokens(cells, cells * visible, cells * targets)


def memory_by_part(
    run: PretrainRun, p: Parameters, lengths: Lengths, device: Device
) -> dict[str, float]:
    """Bytes on one device at the worst moment of a step."""
    found = step_memory(run, p, micro_batch(run, lengths), device.kind)
    in_half = run.train.precision.startswith("bf16")
    kernels = CPU_KERNELS_GIB if device.kind == "cpu" and in_half else 0.0
    return {**found, "runtime": (RUNTIME_GIB[device.kind] + kernels) * GIB}


def step_memory(run: PretrainRun, p: Parameters, n: Tokens, kind: str) -> dict[str, float]:
    """The same for these tokens, without what a process takes before it has a model."""
    train = run.train
    how = Arithmetic.of(train.precision, kind, run.model.attention)
    parts = _segments(run, how, n)
    stay = states(p, train, _processes(train), kind, bucket=_bucket(run))
    copies = 2.0 * p.cast if how.is_mixed else 0.0
    kept = sum(part.kept for part in parts) + copies
    forward, backward = most_in_pass(
        parts,
        gradients=stay.gradients,
        new_gradients=stay.new_gradients,
        table=float(p.largest * how.weights),
    )
    # More than states and activations: at the worst moment of the passes, or when the optimiser
    # steps and the activations are gone.
    passes = max(forward, backward) + copies - stay.gradients - kept
    workspace = max(passes, stay.optimiser_step - kept, 0.0)
    waiting = (run.loader.prefetch if kind == "cpu" else 0) + 1
    return {
        "weights": stay.weights,
        "gradients": stay.gradients,
        "optimiser": stay.optimiser,
        "activations": kept,
        "workspace": workspace + stay.gathered,
        "batches": batch_bytes(n, waiting),
    }


def _segments(run: PretrainRun, how: Arithmetic, n: Tokens) -> list[Segment]:
    if isinstance(run, ScfoundationRun):
        n_positions = len(run.vocab()) - 1  # all but [PAD]
        return plan_memory_scfoundation.segments(
            run.model, how, n, run.train.recompute, n_positions
        )
    if isinstance(run, ScmulanRun):
        return plan_memory_scmulan.segments(
            run.model, how, n, run.train.recompute, len(run.vocab())
        )
    return segments(run.model, how, n, run.train.recompute)


def _bucket(run: PretrainRun) -> int | None:
    if run.train.deepspeed is None:
        return None
    from scfm.train.strategy import deepspeed_settings

    found = deepspeed_settings(run.train)["zero_optimization"].get("reduce_bucket_size")
    return None if found is None else int(found)


def _next_to_try(
    run: PretrainRun, p: Parameters, lengths: Lengths, device: Device, limit: float
) -> tuple[str, ...]:
    """Settings of the first way that fits, the cheapest in time first; nothing where none does."""
    for changes in _ways(run, int(cells_per_step(run, lengths))):
        tried = replace(run, train=replace(run.train, **changes))
        if sum(memory_by_part(tried, p, lengths, device).values()) <= limit:
            before = vars(run.train)
            return tuple(f"train.{k}={v}" for k, v in changes.items() if before[k] != v)
    return ()


def _ways(run: PretrainRun, cells: int) -> Iterator[dict[str, Any]]:
    train, processes = run.train, _processes(run.train)
    more = [train.accumulate * 2**k for k in range(16)]
    more = [k for k in more if k == train.accumulate or k * processes <= cells]
    recomputes = ("none", "selective", "full")
    recomputes = recomputes[recomputes.index(train.recompute) :]
    strategies: list[dict[str, Any]] = [{}]
    if processes > 1 and train.zero_stage is None:
        strategies.append({"strategy": "fsdp"})
    if train.offload == "none":
        strategies.append({"strategy": "deepspeed_2", "offload": "optimizer"})
        strategies.append({"strategy": "deepspeed_3", "offload": "parameters"})
    for strategy in strategies:
        for recompute in recomputes:
            for accumulate in more:
                yield {**strategy, "recompute": recompute, "accumulate": accumulate}


def _work(
    run: PretrainRun, ask: PlanRequest, lengths: Lengths, device: Device, model: CellModel
) -> dict[str, float]:
    cells = cells_per_step(run, lengths)
    flops = model.batch_flops(lengths.visible, lengths.targets) / len(lengths.visible) * cells
    peak, tera = device.peak_flops(run.train.precision), run.logging.peak_tflops
    if tera is not None:
        peak = tera * 1e12
    processes, steps = _processes(run.train), run.train.steps
    # one machine has one CPU, however many processes share it
    devices = 1 if device.kind == "cpu" else processes
    speed = None if peak is None else peak * ask.mfu * devices
    seconds = math.nan if speed is None else flops / speed
    return {
        "steps": steps,
        "cells_per_step": cells,
        "cells_per_device": micro_batch(run, lengths).cells,
        "tokens_per_step": cells * sum(lengths.mean),
        "tokens": cells * sum(lengths.mean) * steps,
        "epochs": cells * steps / ask.cells,
        "flops_per_step": flops,
        "flops": flops * steps,
        "step_seconds": seconds,
        "hours": seconds * steps / 3600,
    }


def _settings(run: PretrainRun, ask: PlanRequest, lengths: Lengths) -> dict[str, Any]:
    train = run.train
    return {
        "device": ask.device,
        "processes": _processes(train),
        "strategy": train.strategy if _processes(train) > 1 or train.zero_stage else "one process",
        "offload": train.offload,
        "precision": train.precision,
        "recompute": train.recompute,
        "accumulate": train.accumulate,
        "cells": ask.cells,
        "genes_per_cell": lengths.genes_per_cell,
    }


def _assumptions(
    run: PretrainRun, ask: PlanRequest, lengths: Lengths, device: Device
) -> tuple[str, ...]:
    peak, tera = device.peak_flops(run.train.precision), run.logging.peak_tflops
    if tera is not None:
        said = f"{tera:,.4g} TFLOP/s (logging.peak_tflops)"
    elif peak is None:
        said = "a peak that is not known: set logging.peak_tflops"
    else:
        said = f"{peak / 1e12:,.4g} TFLOP/s of {ask.device}"
    rough = ", all of this machine's cores, roughly" if device.kind == "cpu" else ""
    return (
        f"cells: {lengths.source}",
        f"speed: {ask.mfu:.0%} of {said}{rough}",
        f"store: {STORE_BYTES_A_GENE:.2f} bytes an expressed gene, as measured at 1,805 a cell",
    )
