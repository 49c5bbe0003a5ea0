"""The loss against a plain loop, and the property it was chosen for."""

import numpy as np
import torch

from scfm.objectives.regression import mean_squared_error


def test_equals_a_plain_loop(rng):
    counts = [3, 1, 5]
    cell_of = torch.tensor(np.repeat(np.arange(3), counts))
    prediction, target = (torch.tensor(rng.normal(size=9), dtype=torch.float32) for _ in "ab")
    by_cell = [
        np.mean((prediction[cell_of == c].numpy() - target[cell_of == c].numpy()) ** 2)
        for c in range(3)
    ]
    found = mean_squared_error(prediction, target, cell_of, 3)
    torch.testing.assert_close(found, torch.tensor(np.mean(by_cell), dtype=torch.float32))


def test_batch_is_the_mean_of_its_halves(rng):
    """Whoever the cells are dealt to; the mean over targets would not have it."""
    cell_of = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3])
    prediction, target = (torch.tensor(rng.normal(size=8), dtype=torch.float32) for _ in "ab")
    whole = mean_squared_error(prediction, target, cell_of, 4)
    halves = [
        mean_squared_error(prediction[:5], target[:5], cell_of[:5], 2),
        mean_squared_error(prediction[5:], target[5:], cell_of[5:] - 2, 2),
    ]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_cell_without_targets_adds_zero():
    found = mean_squared_error(
        torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([1]), n_cells=2
    )
    assert found.item() == 2.0


def test_half_precision_is_judged_in_float32():
    found = mean_squared_error(
        torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.001]), torch.tensor([0]), 1
    )
    assert found.dtype == torch.float32
    assert found.item() > 0
