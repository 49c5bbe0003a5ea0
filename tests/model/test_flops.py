"""The closed form of the operations. Oracle: torch's own counter, on real passes."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scfm.model.config import ModelSizes
from scfm.model.flops import batch_flops, flops_by_part, forward_flops
from scfm.model.pretrained import visible_offsets
from tests.toys import toy_cells, toy_model

SHAPES = [
    {},
    {"d_model": 48, "n_layers": 3, "n_heads": 3, "n_bins": 7, "n_decoder_layers": 2},
]


def lengths_of(cells):
    visible = visible_offsets(cells).diff()
    return visible.numpy(), (cells.offsets.diff() - visible).numpy()


def counted(model, cells, *, backward):
    """Operations that torch counts: forward, and of the backward pass.

    The "math" kernel writes attention as two products, which the counter knows; the fused CPU
    kernel it does not. Biases, norms and all else that is no product are not counted either.
    """
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            by_query, by_cell = model.predict_targets(cells, model(cells)).values()
        with FlopCounterMode(display=False) as back:
            if backward:
                (by_query.sum() + by_cell.sum()).backward()
    return forward.get_total_flops(), back.get_total_flops()


@pytest.mark.parametrize("lengths", [[12, 30, 1, 7], [40]])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_what_torch_counts(rng, shape, lengths):
    model = toy_model(attention="documents", **shape)
    cells = toy_cells(rng, lengths)
    assert min(lengths_of(cells)[0]) >= 3
    with torch.no_grad():
        found, _ = counted(model, cells, backward=False)
    assert forward_flops(model.config.sizes, *lengths_of(cells)) == found


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_twice_the_forward(rng, shape):
    """Of the first layer too: what it takes, single values, is no matrix product."""
    model = toy_model(attention="documents", **shape).train()
    cells = toy_cells(rng, [12, 30, 5, 7])
    forward, backward = counted(model, cells, backward=True)
    assert backward == 2 * forward
    assert batch_flops(model.config.sizes, *lengths_of(cells)) == forward + backward


def test_attention_is_within_cells():
    """Two cells cost what each costs alone: nothing grows with the square of a batch."""
    sizes = ModelSizes()
    both = forward_flops(sizes, [100, 900], [70, 500])
    assert both == forward_flops(sizes, [100], [70]) + forward_flops(sizes, [900], [500])
    longer = forward_flops(sizes, [1000], [570])
    assert longer > both


def test_parts_sum_and_a_run_does_not_overflow():
    sizes = ModelSizes(d_model=1152, n_heads=18, n_layers=22)
    visible, targets = np.full(100_000, 2048, np.int32), np.full(100_000, 1200, np.int32)
    parts = flops_by_part(sizes, visible, targets)
    assert list(parts) == ["embedding", "encoder", "decoder", "head"]
    one = flops_by_part(sizes, visible[:1], targets[:1])
    for name, value in parts.items():
        np.testing.assert_allclose(value, 1e5 * one[name], rtol=1e-12)
    assert sum(parts.values()) == forward_flops(sizes, visible, targets)
