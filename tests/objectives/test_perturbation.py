"""GEARS' losses against sums written out by hand."""

import numpy as np
import pytest
import torch

from scfm.objectives.perturbation import (
    PerturbationObjective,
    autofocus_loss,
    direction_loss,
    perturbation_loss,
)


@pytest.fixture
def cells(rng):
    group = torch.tensor([0, 2, 0, 2, 2])
    prediction, target = (torch.tensor(rng.normal(size=(5, 7))).float() for _ in range(2))
    return prediction, target, torch.tensor(rng.normal(size=(1, 7))).float(), group


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_autofocus_is_the_papers_sum(cells, gamma):
    prediction, target, _, group = cells
    by_hand = 0.0
    for k in (0, 2):
        rows = [i for i in range(5) if group[i] == k]
        for i in rows:
            for u in range(7):
                error = float(target[i, u] - prediction[i, u])
                by_hand += abs(error) ** (2 + gamma) / 7 / len(rows) / 2
    found = autofocus_loss(prediction, target, group, gamma=gamma)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_direction_is_the_papers_sum_as_the_temperature_vanishes(cells):
    prediction, target, control, group = cells
    by_hand = 0.0
    for k in (0, 2):
        rows = [i for i in range(5) if group[i] == k]
        for i in rows:
            wanted = np.sign((target[i] - control[0]).numpy())
            found = np.sign((prediction[i] - control[0]).numpy())
            by_hand += ((wanted - found) ** 2).sum() / 7 / len(rows) / 2
    found = direction_loss(prediction, target, control, group, temperature=1e-6)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_direction_has_a_gradient_towards_the_right_sign():
    prediction = torch.tensor([[0.05, -0.05]], requires_grad=True)
    target, control = torch.tensor([[-1.0, 1.0]]), torch.zeros(1, 2)
    direction_loss(prediction, target, control, torch.zeros(1).long(), temperature=0.1).backward()
    assert prediction.grad is not None
    assert prediction.grad[0, 0] > 0 > prediction.grad[0, 1]


def test_perturbations_weigh_alike_however_many_cells():
    """One perturbation off by 1 in 99 cells, another by 2 in one: (1 + 4) / 2."""
    prediction = torch.zeros(100, 3)
    target = torch.ones(100, 3)
    target[99] = 2
    group = torch.tensor([0] * 99 + [1])
    assert float(autofocus_loss(prediction, target, group, gamma=0.0)) == pytest.approx(2.5)


def test_the_objective_puts_them_together(cells):
    prediction, target, control, group = cells
    both = PerturbationObjective(direction_weight=0.3, gamma=1.0, temperature=0.2)
    expected = autofocus_loss(prediction, target, group, gamma=1.0) + 0.3 * direction_loss(
        prediction, target, control, group, temperature=0.2
    )
    assert float(perturbation_loss(*cells, both)) == pytest.approx(float(expected), rel=1e-6)
    mse = perturbation_loss(*cells, PerturbationObjective(loss="mse"))
    assert float(mse) == pytest.approx(
        float(autofocus_loss(prediction, target, group, gamma=0.0)), rel=1e-6
    )


@pytest.mark.parametrize(
    "wrong", [{"gamma": -1.0}, {"direction_weight": -1.0}, {"temperature": 0.0}]
)
def test_impossible_objectives_are_refused(wrong):
    with pytest.raises(ValueError, match="objective"):
        PerturbationObjective(**wrong)
