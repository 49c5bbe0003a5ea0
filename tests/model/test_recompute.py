"""Recomputed activations: the same numbers in less memory."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.toys import toy_cells, toy_model


def step(how: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a step, and bytes kept between its forward and backward pass."""
    torch.manual_seed(0)
    model, cells = toy_model(), toy_cells(np.random.default_rng(0), [40, 25, 48])
    model.recompute(how)  # pyright: ignore
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        by_query, by_cell = model.predict_targets(cells, model(cells)).values()
    (by_query.square().sum() + by_cell.square().sum()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return gradients, sum(size for at, size in kept.items() if at not in weights)


@pytest.mark.parametrize("how", ["selective", "full"])
def test_equal_gradients_from_fewer_bytes(how):
    wanted, all_bytes = step("none")
    found, fewer_bytes = step(how)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert fewer_bytes < 0.8 * all_bytes


def operations(how: str) -> int:
    """Of the matrix products of a step, those made again included."""
    model, cells = toy_model(), toy_cells(np.random.default_rng(0), [40, 25, 48])
    model.recompute(how)  # pyright: ignore
    with FlopCounterMode(display=False) as counter:
        by_query, by_cell = model.predict_targets(cells, model(cells)).values()
        (by_query.sum() + by_cell.sum()).backward()
    return counter.get_total_flops()


def test_selective_makes_no_matrix_product_again():
    assert operations("none") == operations("selective") < operations("full")


def test_nothing_is_recomputed_without_gradients():
    model, cells = toy_model(), toy_cells(np.random.default_rng(0), [40, 25, 48])
    model.recompute("full")
    with torch.no_grad():
        states = model(cells)
    assert not states.tokens.requires_grad
