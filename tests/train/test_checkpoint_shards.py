"""Shards saved before the first update: nothing of what comes after is changed."""

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from scfm.train.checkpoint_io import ShardingStrategy


@pytest.fixture
def group_of_one(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_saving_before_the_first_update_changes_none(group_of_one):
    """Under fsdp, for the run that goes on and for one that reads the checkpoint."""

    def sharded() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        module = fully_shard(nn.Linear(4, 3), mesh=init_device_mesh("cpu", (1,)))
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)

    straight, saved, loaded = (sharded() for _ in range(3))
    strategy = ShardingStrategy(1, 1)
    strategy.model = saved[0]
    state = strategy.optimizer_state(saved[1])
    assert not saved[1].state
    assert {float(of_weight["step"]) for of_weight in state["state"].values()} == {0.0}
    set_optimizer_state_dict(*loaded, optim_state_dict=state)
    cells = torch.linspace(-1, 1, 8).reshape(2, 4)
    for _ in range(2):
        for module, optimizer in (straight, saved, loaded):
            module(cells).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for module, _ in (saved, loaded):
        for ours, theirs in zip(module.parameters(), straight[0].parameters(), strict=True):
            assert torch.equal(ours.to_local(), theirs.to_local())
