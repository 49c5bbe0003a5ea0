"""Steps whose loss or gradient is not a number: found, their cells named, kept from doing harm.

in   a trainer's events
out  RUN/nonfinite.json; DivergedError, or a step that was not taken

Every loss and gradient norm stays on the device until a step is logged or a checkpoint is to be
written, or for 100 steps; then one look tells of all of them, over all processes. Skipping cannot
wait: it looks at every step.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from scfm.data.write import atomic_path
from scfm.errors import ConfigError, DivergedError, ScfmError, ScfmWarning
from scfm.tokens.pool import CellPool
from scfm.train.host_batch import HostBatches
from scfm.train.loggers import is_logged, log_row
from scfm.train.processes import AnotherSaysWhy

FILE = "nonfinite.json"
LOOK_EVERY = 100  # steps at most: what is kept of each until the next look stays bounded


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a step goes wrong."""

    on_nonfinite: Literal["stop", "skip"] = "stop"  # a step whose loss or gradient is not finite
    max_skipped: int = 10  # steps; more stop the run
    spike_sigmas: float = 6.0  # a loss so far above the running mean is logged as a spike

    def __post_init__(self) -> None:
        if self.max_skipped < 0:
            raise ValueError(f"guard.max_skipped must be at least 0, got {self.max_skipped}")
        if not self.spike_sigmas > 0:
            raise ValueError(f"guard.spike_sigmas must be positive, got {self.spike_sigmas}")


@dataclass(frozen=True)
class Seen:
    """What must be finite of the step being made: a micro-batch's loss, or the gradient's norm.

    ``cells`` are the micro-batch's, None for a gradient.
    """

    step: int
    value: Tensor
    cells: list[int] | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(float(self.value))


class FiniteGuard(L.Callback):
    """Stops at, or skips, steps whose loss or gradient is not finite; weights are saved finite.

    Raises ConfigError where skipping is asked of a strategy that cannot.
    """

    def __init__(self, run: Path, batches: HostBatches, config: GuardConfig, strategy: str):
        require_can_skip(config, strategy)
        self.file, self.batches, self.config = run / FILE, batches, config
        self.can_skip = can_skip(strategy)
        self.skips = config.on_nonfinite == "skip"
        self.n_skipped = 0
        self.seen: list[Seen] = []  # since the last look

    def state_dict(self) -> dict[str, Any]:
        return {"n_skipped": self.n_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_skipped = state_dict["n_skipped"]

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        step = trainer.global_step + 1
        self.seen.append(Seen(step, loss.detach().float(), self.batches.cells))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        norm = own_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        if norm is not None:
            self.seen.append(Seen(trainer.global_step + 1, norm))
        if self.skips and not self._all_finite(trainer):
            self._skip(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.skips:
            if is_logged(trainer, batch_idx):
                log_row(trainer, {"skipped": self.n_skipped})
        elif looks(trainer, batch_idx) and not self._all_finite(trainer):
            self._stop(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Here rather than where one is due: nobody can save without passing by.
        if not self._all_finite(trainer):
            self._stop(trainer)
        norm = own_norm(list(pl_module.parameters()), order=math.inf)
        self.seen = [] if norm is None else [Seen(trainer.global_step, norm)]
        if not self._all_finite(trainer):
            self._stop(trainer, "weights")

    def _all_finite(self, trainer: L.Trainer) -> bool:
        """One look at all that was seen since the last one; forgets it where it is well."""
        device = trainer.strategy.root_device
        n_bad = torch.zeros((), device=device)
        if self.seen:
            values = torch.stack([seen.value.to(device) for seen in self.seen])
            n_bad = (~values.isfinite()).sum().float()
        if trainer.world_size > 1:
            n_bad = trainer.strategy.reduce(n_bad, reduce_op="sum")
        if float(n_bad):
            return False
        self.seen = []
        return True

    def _stop(self, trainer: L.Trainer, what: str | None = None) -> None:
        step, found = self._record(trainer, "stopped", what)
        # an update that spoils weights by finite gradients would spoil them again
        by_skipping = self.can_skip and found != "weights"
        skip = "go on with --resume --set guard.on_nonfinite=skip, or " if by_skipping else ""
        raise _error(trainer)(
            f"The {found} of step {step:,} is not finite: the run diverged, or a cell is broken. "
            f"The step's cells are named in {self.file}. The last checkpoint is kept: {skip}start "
            "a new run with a lower --set optim.lr=..."
        )

    def _skip(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take no step: an optimiser passes over weights without a gradient, moments and all."""
        for parameter in pl_module.parameters():
            parameter.grad = None
        self.n_skipped += 1
        step, found = self._record(trainer, "skipped")
        pl_module.log("gradient_norm", math.nan)
        if self.n_skipped > self.config.max_skipped:
            raise _error(trainer)(
                f"The {found} of step {step:,} is not finite, and {self.config.max_skipped:,} "
                f"steps were skipped before (guard.max_skipped). Their cells are named in "
                f"{self.file}. The last checkpoint is kept: start a new run with a lower --set "
                "optim.lr=..., or go on with --resume and a higher --set guard.max_skipped=..."
            )
        rank_zero_warn(
            f"Step {step:,} is skipped: its {found} is not finite. {self.n_skipped:,} of at most "
            f"{self.config.max_skipped:,} steps; their cells are named in {self.file}.",
            category=ScfmWarning,
        )
        self.seen = []

    def _record(self, trainer: L.Trainer, action: str, what: str | None = None) -> tuple[int, str]:
        """Write down the first step that went wrong; returns it and what of it was not finite."""
        bad = min((s.step for s in self.seen if not s.is_finite), default=math.inf)
        step = int(min(from_all(trainer, bad)))
        of_step = [seen for seen in self.seen if seen.step == step]
        losses = [(seen.cells, seen.is_finite) for seen in of_step if seen.cells is not None]
        by_process = from_all(trainer, losses)
        if what is None:
            is_finite = all(is_finite for losses in by_process for _, is_finite in losses)
            what = "gradient" if is_finite else "loss"
        if trainer.is_global_zero:
            entry = {"step": step, "action": action, "not_finite": what}
            self._write(entry | {"micro_batches": self._micro_batches(by_process)})
        # a process that ends first would have the others killed
        trainer.strategy.barrier()
        return step, what

    def _micro_batches(
        self, by_process: list[list[tuple[list[int], bool]]]
    ) -> list[dict[str, Any]]:
        assert self.batches.datamodule is not None
        pool = self.batches.datamodule.pool
        return [
            {
                "process": process,
                "micro_batch": number,
                "loss_is_finite": is_finite,
                "cells": named_cells(pool, cells),
            }
            for process, losses in enumerate(by_process)
            for number, (cells, is_finite) in enumerate(losses)
        ]

    def _write(self, entry: dict[str, Any]) -> None:
        # Steps from here on were made before the run was resumed from an earlier one.
        entries = [e for e in read_nonfinite(self.file) if e["step"] < entry["step"]]
        with atomic_path(self.file) as temporary:
            temporary.write_text(json.dumps([*entries, entry], indent=1) + "\n")


def can_skip(strategy: str) -> bool:
    """Whether a train.strategy lets a step be skipped: DeepSpeed keeps gradients to itself."""
    return not strategy.startswith("deepspeed")


def require_can_skip(config: GuardConfig, strategy: str) -> None:
    """Raise ConfigError where skipping is asked of a train.strategy that cannot."""
    if config.on_nonfinite == "skip" and not can_skip(strategy):
        raise ConfigError(
            "guard.on_nonfinite=skip does not work with deepspeed, which keeps gradients to "
            "itself; use --set guard.on_nonfinite=stop, or begin with train.strategy=fsdp."
        )


def looks(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the last of a step that is logged, or of a hundredth one."""
    is_last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    is_due = is_last and trainer.global_step % LOOK_EVERY == 0
    return is_due or is_logged(trainer, batch_idx)


def read_nonfinite(file: Path) -> list[dict[str, Any]]:
    """What RUN/nonfinite.json tells, a step each; nothing where there is no file."""
    return json.loads(file.read_text()) if file.exists() else []


def own_norm(tensors: list[Tensor], order: float = 2.0) -> Tensor | None:
    """The norm of this process's shards; None of none. Not finite where one of them is not."""
    shards = [shard.detach() for shard in map(_own_shard, tensors) if shard.numel()]
    return torch.nn.utils.get_total_norm(shards, order).float() if shards else None


def _own_shard(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return getattr(tensor, "ds_tensor", tensor)  # under DeepSpeed 3 the tensor itself is empty


def from_all(trainer: L.Trainer, value: Any) -> list[Any]:
    """A plain value of every process, in their order."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def _error(trainer: L.Trainer) -> type[ScfmError]:
    """All processes stop; the first one says why."""
    return DivergedError if trainer.is_global_zero else AnotherSaysWhy


def named_cells(pool: CellPool, cells: list[int]) -> list[dict[str, Any]]:
    """Each cell's number in the run, the file or store it is from, and its row there."""
    owners = np.searchsorted(pool.first, cells, side="right") - 1
    return [
        {"cell": cell, "source": pool.sources[owner].name, "row": int(cell - pool.first[owner])}
        for cell, owner in zip(cells, owners, strict=True)
    ]
