"""Weights in shards, before training begins (FSDP2).

in   a module whose weights are whole and equal on all processes, and its blocks
out  the same module, each process holding its shard
"""

from collections.abc import Iterable

import lightning.pytorch as L
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method


def shard(module: L.LightningModule, blocks: Iterable[nn.Module], entry: str) -> None:
    """Each block's weights are gathered when it runs, all others when ``entry`` does.

    ``entry`` is the method with which training enters the module, since it is not ``forward``.
    """
    mesh = module.device_mesh
    assert mesh is not None
    data_parallel: DeviceMesh = mesh["data_parallel"]
    for block in blocks:
        fully_shard(block, mesh=data_parallel)
    fully_shard(module, mesh=data_parallel)
    register_fsdp_forward_method(module, entry)


def is_sharded(module: nn.Module) -> bool:
    """Whether ``shard`` has been applied."""
    return isinstance(module, FSDPModule)
