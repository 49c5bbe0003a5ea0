"""How long a run is, how exactly it computes, and on what machines.

in   the ``train`` section of a run
out  TrainConfig
"""

from dataclasses import dataclass, replace
from typing import Literal

from scfm.train.processes import is_one_of_several, local_world_size, world_size

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
Strategy = Literal["auto", "ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how exactly, on what."""

    steps: int = 1000  # optimiser steps
    precision: Precision = "32-true"
    accumulate: int = 1  # micro-batches an optimiser step
    validate_every: int = 100  # optimiser steps
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = 1  # processes on each node
    num_nodes: int = 1
    strategy: Strategy = "auto"  # auto: none for one process, ddp for several
    offload: Literal["none", "optimizer", "parameters"] = "none"  # out of device memory (DeepSpeed)
    offload_to: str = "cpu"  # or a folder on an NVMe drive
    deepspeed: str | None = None  # JSON of machine settings for DeepSpeed, see launch/deepspeed
    recompute: Literal["none", "selective", "full"] = "none"  # activations, in the backward pass
    compile: bool = False  # torch.compile of the blocks

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "num_nodes", "validate_every", "devices"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"train.{name} must be at least 1, got {value}")
        if self.offload == "none":
            return
        # optimiser states can leave the device from stage 1 on, parameters where they are sharded
        stages = (1, 2, 3) if self.offload == "optimizer" else (3,)
        if self.zero_stage not in stages:
            able = ", ".join(f"deepspeed_{stage}" for stage in stages)
            raise ValueError(
                f"train.offload={self.offload} needs train.strategy={able}, got {self.strategy}"
            )

    @property
    def zero_stage(self) -> int | None:
        """The ZeRO stage of a DeepSpeed strategy; None for all others."""
        name, _, stage = self.strategy.partition("_")
        return int(stage) if name == "deepspeed" else None


def as_started(train: TrainConfig) -> TrainConfig:
    """On as many processes as there are: torchrun's numbers, where it started this one."""
    if not is_one_of_several():
        return train
    devices = local_world_size()
    return replace(train, devices=devices, num_nodes=world_size() // devices)
