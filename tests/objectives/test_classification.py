"""Losses of cell types: against scikit-learn, by closed forms, and however a batch is dealt."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from scfm.objectives.classification import contrastive_loss, type_balance, type_loss

TYPES = np.array([0] * 70 + [1] * 20 + [2] * 10)


@pytest.fixture
def scores(rng):
    return torch.from_numpy(rng.normal(size=(100, 3)))  # float64


@pytest.mark.parametrize("how", ["weights", "none"])
def test_loss_is_scikit_learns(scores, how):
    weights = compute_sample_weight("balanced", TYPES) if how == "weights" else None
    theirs = log_loss(TYPES, torch.softmax(scores, 1).numpy(), sample_weight=weights)
    balance = type_balance(torch.from_numpy(np.bincount(TYPES)), how)
    ours = type_loss(scores, torch.from_numpy(TYPES), balance)
    assert float(ours) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("how", ["weights", "logits", "none"])
def test_a_batch_may_be_dealt_in_any_way(scores, how):
    truth, balance = (
        torch.from_numpy(TYPES),
        type_balance(torch.from_numpy(np.bincount(TYPES)), how),
    )
    whole = type_loss(scores, truth, balance)
    parts = [slice(0, 37), slice(37, 90), slice(90, 100)]
    mean = sum(type_loss(scores[p], truth[p], balance) * len(truth[p]) for p in parts) / 100
    torch.testing.assert_close(mean, whole, rtol=1e-10, atol=0)


def test_adjusted_scores_are_least_where_shares_are_taken_out():
    """Cells that say nothing of their type: the best scores are equal, whatever the shares."""
    scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    balance = type_balance(torch.from_numpy(np.bincount(TYPES)), "logits")
    loss = type_loss(scores.expand(100, -1), torch.from_numpy(TYPES), balance)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)


def test_contrastive_loss_is_its_definition(rng):
    """Cell by cell, as the docstring has it; cells without a batch have no company."""
    vectors = rng.normal(size=(12, 5))
    types, batch = rng.integers(0, 3, 12), rng.integers(-1, 2, 12)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = []
    for i in range(12):
        company = [
            j
            for j in range(12)
            if types[j] == types[i] and batch[j] != batch[i] and min(batch[i], batch[j]) >= 0
        ]
        others = [j for j in range(12) if types[j] != types[i]]
        weight = np.exp(unit @ unit[i] / 0.5)
        total = weight[[*company, *others]].sum()
        shares = [-np.log(weight[j] / total) for j in company]
        expected.append(np.mean(shares) if shares else 0.0)
    found = contrastive_loss(*map(torch.from_numpy, (vectors, types, batch)), temperature=0.5)
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert max(expected) > 0


@pytest.mark.parametrize("n_cells", [1, 2])
def test_cells_without_company_cost_nothing_and_have_a_gradient(n_cells):
    vectors = torch.ones(n_cells, 3, requires_grad=True)
    loss = contrastive_loss(vectors, torch.arange(n_cells), torch.zeros(n_cells).long())
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(vectors.grad, torch.zeros(n_cells, 3))  # pyright: ignore
