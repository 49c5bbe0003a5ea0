"""How each strategy writes its part of a checkpoint, and reads it back safely.

in   Lightning's checkpoint: plain values, weights and optimiser states
out  files in a folder, the slow part left to be done beside training

auto, ddp    the first process copies all to memory; writing it is left for later
fsdp         every process copies its shards; torch.distributed.checkpoint writes them later
deepspeed_N  DeepSpeed writes its own files, at once

What is left is for ``take_rest`` to fetch after ``trainer.save_checkpoint``.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from scfm.train.checkpoint_pickles import require_plain

STATE = "state.pt"  # all of it, of strategies where the first process holds all
PLAIN_STATE = "meta.pt"  # all but weights and optimiser states; Lightning's name for it
DEEPSPEED_TAG = "checkpoint"  # the folder DeepSpeed writes to; Lightning's name for it

Rest = Callable[[], None]


def nothing_left() -> None:
    """The rest of a checkpoint that is written already."""


class StateFileIO(TorchCheckpointIO):
    """One file with everything, for the strategies whose first process holds everything."""

    rest: Rest = staticmethod(nothing_left)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Copy to memory what training will change; the writing is left in ``rest``."""
        snapshot = apply_to_collection(checkpoint, Tensor, _copy_to_cpu)
        self.rest = partial(torch.save, snapshot, Path(path) / STATE)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """All of it, in CPU memory. Tensors and plain values only: nothing else is loaded."""
        return load_state(Path(path))


def load_state(path: Path) -> dict[str, Any]:
    """Lightning's checkpoint of a run under auto or ddp; tensors are read when they are used."""
    require_plain(path)
    return torch.load(path / STATE, map_location="cpu", weights_only=True, mmap=True)


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


class ShardingStrategy(ModelParallelStrategy):
    """FSDP2 that copies its shards to memory and leaves writing them in ``rest``."""

    rest: Rest = staticmethod(nothing_left)
    writers: Any = None  # a group of their own: training goes on beside it

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """As Lightning collects it; an optimiser that has made no step yet is left so.

        torch has such a one make a step of zero gradients, to give its states their shapes. That
        counts: Adam's later steps would be other ones, here and after a resume.
        """
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # out of Lightning's wrapper
        is_fresh = not optimizer.state
        found = super().optimizer_state(optimizer)
        if is_fresh:
            for state in found["state"].values():
                state["step"].zero_()  # moments of nothing are zero
            optimizer.state.clear()
        return found

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Every process's shards, by torch.distributed.checkpoint."""
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        if self.writers is None:
            self.writers = dist.new_group(backend="gloo")
        path = Path(filepath)
        plain = dict(checkpoint)
        shards = {"state_dict": plain.pop("state_dict")}
        for index, state in enumerate(plain.pop("optimizer_states", [])):
            shards[f"optimizer_{index}"] = state
        saving = async_save(
            shards, storage_writer=FileSystemWriter(path), process_group=self.writers
        )
        plain = copy.deepcopy(plain) if self.is_global_zero else None
        self.rest = partial(_finish_shards, saving, plain, path)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As Lightning does, after a look at what the files would run."""
        require_plain(Path(checkpoint_path))
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def _finish_shards(saving: Any, plain: dict[str, Any] | None, path: Path) -> None:
    saving.result()
    if plain is not None:
        torch.save(plain, path / PLAIN_STATE)


class SafeDeepSpeed:
    """Before Lightning's DeepSpeedStrategy: looks at the files first, and mends what is read."""

    config: Any
    optimizers: Any
    is_global_zero: bool

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """DeepSpeed's files, at once, without the scripts it puts beside them."""
        super().save_checkpoint(checkpoint, filepath, storage_options)  # pyright: ignore
        if self.is_global_zero:
            for script in Path(filepath).glob("*.py"):
                script.unlink()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of this number of processes, or one made universal."""
        require_plain(Path(checkpoint_path))
        optimizer = self.optimizers[0]
        groups = optimizer.param_groups
        before = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]
        found = super().load_checkpoint(checkpoint_path, weights_only)  # pyright: ignore
        # From a universal checkpoint ZeRO-3 gives every group the settings of the first: weight
        # decay would come upon what is spared. They are the run's, and do not change in it.
        for group, settings in zip(groups, before, strict=True):
            group.update(settings)
        # And one tensor that counts the steps of all: each would add one to it in every step.
        for state in optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()
        return found


def read_universal(strategy: Strategy | str) -> None:
    """Have DeepSpeed expect a checkpoint that is ready for any number of processes."""
    assert isinstance(strategy, SafeDeepSpeed)
    strategy.config["checkpoint"] = {"load_universal": True}


def take_rest(strategy: Strategy) -> Rest:
    """What is left to do in this process for the checkpoint just saved; may run in a thread."""
    holder = strategy if hasattr(strategy, "rest") else strategy.checkpoint_io
    rest = getattr(holder, "rest", nothing_left)
    if rest is not nothing_left:
        holder.rest = nothing_left  # pyright: ignore[reportAttributeAccessIssue]
    return rest
