"""Losses of binding against scikit-learn and closed forms; what is unknown plays no part."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from scfm.objectives.binding import BindingObjective, binding_loss


@pytest.fixture
def drawn(rng):
    logits = torch.from_numpy(rng.normal(0, 3, (40, 6)))
    labels = torch.from_numpy(rng.integers(-1, 2, (40, 6)).astype(np.int8))
    return logits, labels


def known(logits, labels):
    is_known = labels >= 0
    return logits[is_known].numpy().astype(np.float64), labels[is_known].numpy()


def test_bce_is_log_loss_of_what_is_known(drawn):
    scores, truth = known(*drawn)
    wanted = log_loss(truth, 1 / (1 + np.exp(-scores)))
    found = binding_loss(*drawn, BindingObjective())
    np.testing.assert_allclose(float(found), wanted, rtol=1e-6)


def test_weighted_in_closed_form(drawn):
    logits, labels = drawn
    weight = torch.tensor([1.0, 2, 3, 4, 5, 6])
    found = binding_loss(logits, labels, BindingObjective(loss="weighted"), weight)
    p = torch.sigmoid(logits)
    each = torch.where(labels == 1, -weight * p.log(), -(1 - p).log())
    wanted = each[labels >= 0].mean()
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=0)


def test_positive_weight_balances_and_is_bounded():
    weight = BindingObjective(largest_weight=10).positive_weight(
        torch.tensor([0.5, 0.2, 0.001, 0.999])
    )
    torch.testing.assert_close(weight, torch.tensor([1.0, 4.0, 10.0, 0.1]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_in_closed_form(drawn, gamma):
    logits, labels = drawn
    found = binding_loss(logits, labels, BindingObjective(loss="focal", gamma=gamma))
    p = torch.sigmoid(logits)
    of_truth = torch.where(labels == 1, p, 1 - p)
    wanted = (-((1 - of_truth) ** gamma) * of_truth.log())[labels >= 0].mean()
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-9)


def test_focal_has_a_gradient_where_it_is_certain():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    labels = torch.tensor([[1, 0]])
    binding_loss(logits, labels, BindingObjective(loss="focal", gamma=0.5)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", ["bce", "weighted", "focal"])
def test_unknown_neither_pulls_nor_pushes(drawn, loss):
    logits, labels = drawn
    labels = labels.clone()
    labels[:, 2] = -1  # a task without labels
    logits = logits.clone().requires_grad_()
    objective, weight = BindingObjective(loss=loss), torch.full((6,), 3.0)
    found = binding_loss(logits, labels, objective, weight)
    found.backward()
    assert (logits.grad[labels < 0] == 0).all()
    assert (logits.grad[labels >= 0] != 0).all()
    others = torch.where(labels < 0, torch.full_like(logits, 1e3), logits)
    torch.testing.assert_close(binding_loss(others, labels, objective, weight), found)


def test_nothing_known_is_no_loss():
    logits = torch.randn(3, 2, requires_grad=True)
    found = binding_loss(logits, torch.full((3, 2), -1), BindingObjective())
    found.backward()
    assert float(found.detach()) == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("bad", [{"largest_weight": 0.5}, {"gamma": -1.0}])
def test_impossible_objectives(bad):
    with pytest.raises(ValueError, match="at least"):
        BindingObjective(**bad)
