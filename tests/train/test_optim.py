"""The optimiser's groups and schedule against their closed forms."""

import itertools
import math

import pytest
import torch

from scfm.train.optim import OptimConfig, build_optimizer, lr_share, parameter_groups
from tests.toys import toy_model


def test_schedule_at_its_corners():
    share = [lr_share(step, 10, 110, 0.1) for step in range(111)]
    assert share[0] == pytest.approx(1 / 11)
    assert share[10] == pytest.approx(1.0)
    assert share[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert share[110] == pytest.approx(0.1)
    assert all(a < b for a, b in itertools.pairwise(share[:11]))
    assert all(a > b for a, b in itertools.pairwise(share[10:]))


def test_schedule_is_torchs_cosine_after_warm_up():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.05)
    for step in range(100):
        assert lr_share(step, 0, 100, 0.05) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_only_matrices_decay():
    model = toy_model()
    decayed, spared = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    spared_names = {names[id(p)] for p in spared["params"]}
    assert decayed_names | spared_names == set(names.values())
    assert not decayed_names & spared_names
    assert "embedding.gene.weight" in spared_names
    assert all("norm" not in n and "bias" not in n for n in decayed_names)
    assert spared["weight_decay"] == 0.0


def test_warm_up_never_eats_a_short_run():
    optimizer, schedule = build_optimizer(toy_model(), OptimConfig(warmup_steps=1000), 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert math.isclose(max(rates), OptimConfig().lr)


def test_a_group_of_no_weights_is_left_out():
    """DeepSpeed drops it: the schedule's rates would no longer go by the groups."""
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    (group,) = parameter_groups(layer, 0.1)
    assert (group["params"], group["weight_decay"]) == ([layer.weight], 0.1)
