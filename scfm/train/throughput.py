"""How fast a run goes, how well it uses its devices, and what it waits for.

in   a trainer's events
out  logged scalars; docs/training_numbers.md defines each

Everything is counted in host memory and read off at the steps that are logged: no other step makes
the processor wait for a device, or a process for another.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.profilers import PassThroughProfiler

from scfm.batch import CellBatch
from scfm.train.datamodule import MicroBatch
from scfm.train.host_batch import HostBatches
from scfm.train.loggers import is_logged
from scfm.train.peaks import TERA, peak_flops

Lengths = Int[np.ndarray, " cell"]
Flops = Callable[[Lengths, Lengths], float]  # of cells with so many visible tokens and targets


@dataclass
class Work:
    """One process's since the last logged step. ``of_cells`` counts operations; None: none are."""

    of_cells: Flops | None = None
    cells: int = 0
    tokens: int = 0
    flops: float = 0.0

    def add(self, batch: MicroBatch) -> None:
        if batch.n_cells == 0:  # it looks at another process's cell, which counts there
            return
        self.cells += batch.n_cells
        self.tokens += batch.n_tokens
        if self.of_cells is not None:
            # at once, since a sum over cells needs no list of them
            self.flops += self.of_cells(*token_counts(batch.cells))


class WaitClock(PassThroughProfiler):
    """Seconds that the training loop has waited for its next batch.

    Lightning calls its profiler right before and after it asks the loader; nothing else is inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self._since = 0.0, 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._since


class Throughput(L.Callback):
    """Cells and useful tokens per second, utilisation, waiting for data, and the memory peak.

    Over the steps since the last logged one and over all processes; time spent on validation is
    left out. Useful tokens are those of the packed batch: special tokens, visible genes and
    targets. There is no padding to leave out.

    Parameters
    ----------
    batches
        Has the batch in host memory; acts before this one.
    flops
        Operations of a forward and backward pass over cells. None: no utilisation is logged.
    precision
        train.precision, for the table of peaks.
    peak_tflops
        What one process's device can do at most; None: as the table has it for its name.
    """

    def __init__(
        self,
        batches: HostBatches,
        flops: Flops | None = None,
        precision: str = "32-true",
        peak_tflops: float | None = None,
    ) -> None:
        self.batches = batches
        self.flops, self.precision, self.peak_tflops = flops, precision, peak_tflops
        self.clock = WaitClock()
        self._begin()

    def _begin(self) -> None:
        self.work, self.paused = Work(self.flops), 0.0
        self.clock.seconds, self.since = 0.0, time.perf_counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.profiler = self.clock  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.work.add(self.batches.batch)
        if is_logged(trainer, batch_idx):
            wait_for(pl_module.device)
            for name, value in self._numbers(trainer, pl_module.device).items():
                pl_module.log(name, value)
            self._begin()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # what the device still has to do of the steps before belongs to them
        wait_for(pl_module.device)
        self._validating_since = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        wait_for(pl_module.device)
        self.paused += time.perf_counter() - self._validating_since

    def _numbers(self, trainer: L.Trainer, device: torch.device) -> dict[str, float]:
        seconds = time.perf_counter() - self.since - self.paused
        work, memory = self.work, memory_peak(device)
        own = [work.cells, work.tokens, work.flops, self.clock.seconds, memory or 0.0]
        of_all = over_processes(trainer, own)
        cells, tokens, flops, waited, _ = of_all.sum(axis=0).tolist()
        numbers = {
            "cells_per_s": cells / seconds,
            "tokens_per_s": tokens / seconds,
            "data_wait": waited / (seconds * trainer.world_size),
        }
        if memory is not None:
            numbers["memory_peak"] = float(of_all[:, -1].max())
        peak = self._peak(device)
        if self.flops is not None and peak is not None:
            numbers["mfu"] = flops / seconds / (peak * trainer.world_size)
        return numbers

    def _peak(self, device: torch.device) -> float | None:
        if self.peak_tflops is not None:
            return self.peak_tflops * TERA
        if device.type != "cuda":
            return None
        return peak_flops(torch.cuda.get_device_name(device), self.precision)


def token_counts(cells: CellBatch) -> tuple[Lengths, Lengths]:
    """Tokens that the encoder sees, and targets, of each cell of a batch in host memory."""
    starts = np.asarray(cells.offsets)[:-1]
    hidden, is_target = np.asarray(cells.hidden), np.asarray(cells.is_target)
    is_seen = ~hidden
    if cells.is_hidden is not None and hidden.any():  # of a sentence nothing is hidden
        # a batch with a mask of its own has zeros that only the decoder sees
        is_seen &= np.asarray(cells.values) > 0
    seen, targets = (np.add.reduceat(of, starts, dtype=np.int64) for of in (is_seen, is_target))
    return seen, targets


def over_processes(trainer: L.Trainer, values: list[float]) -> np.ndarray:
    """The values of every process, one row each; one exchange."""
    if trainer.world_size == 1:
        return np.array([values])
    own = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    return trainer.strategy.all_gather(own).cpu().numpy()


def memory_peak(device: torch.device) -> float | None:
    """GiB that this process has held at most: of a GPU's memory by tensors, else of the machine's.

    None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage, whose figure a process inherits from the one that started it
        line = next(li for li in status.read_text().splitlines() if li.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    return None


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given, so that the clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
