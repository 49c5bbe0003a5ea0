"""Linear attention against the same written densely, softmax attention, and its own pieces."""

import pytest
import torch

from scfm.model import performer
from scfm.model.config import ScfoundationSizes
from scfm.model.performer import (
    Chosen,
    LinearAttention,
    PerformerBlock,
    draw_features,
    read_keys,
    stabilised,
    sum_keys,
)
from tests.parity.plain_scfoundation import dense_performer

SIZES = ScfoundationSizes(
    **{"d_model": 8, "n_layers": 1, "n_heads": 1, "n_bins": 3},
    **{"d_decoder": 12, "n_decoder_layers": 1, "n_decoder_heads": 3, "d_head": 8},
)


def keys_of_unlike_cells(n_cells=3, n=29, heads=3, d=8):
    """Queries, keys, values (cell, position, head, d); the last cell's keys are six times larger
    than others."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, n_cells, n, heads, d)
    k[-1] *= 6
    return q, k, v, draw_features(int(d * 2.1), d)


def attention(q, k, v, directions, stabiliser):
    sums = stabilised([sum_keys(*cell, directions) for cell in zip(k, v, strict=True)], stabiliser)
    return torch.stack([read_keys(own, s, directions) for own, s in zip(q, sums, strict=True)])


def dense(q, k, v, directions):
    by_head = (x.transpose(1, 2) for x in (q, k, v))
    return dense_performer(*by_head, directions).transpose(1, 2)


def test_global_stabiliser_is_the_dense_formula_over_the_batch():
    q, k, v, directions = keys_of_unlike_cells()
    ours = attention(q, k, v, directions, "global")
    torch.testing.assert_close(ours, dense(q, k, v, directions), rtol=1e-5, atol=2e-6)


def test_per_sample_stabiliser_is_the_dense_formula_cell_by_cell():
    q, k, v, directions = keys_of_unlike_cells()
    ours = attention(q, k, v, directions, "per_sample")
    alone = [dense(*(x[i : i + 1] for x in (q, k, v)), directions) for i in range(3)]
    torch.testing.assert_close(ours, torch.cat(alone), rtol=1e-5, atol=2e-6)


def test_batch_mates_matter_with_the_global_stabiliser_alone():
    q, k, v, directions = keys_of_unlike_cells()
    first = [x[:1] for x in (q, k, v)]
    for stabiliser, differs in (("per_sample", False), ("global", True)):
        found = attention(q, k, v, directions, stabiliser)[:1]
        gap = (found - attention(*first, directions, stabiliser)).abs().max()
        assert (gap > 0.05) == differs
        assert differs or gap == 0


@pytest.mark.parametrize("stabiliser", ["per_sample", "global"])
def test_pieces_and_gradients_are_the_whole(monkeypatch, stabiliser):
    """A few positions at a time, made again in the backward pass: the dense formula's gradients."""
    monkeypatch.setitem(performer.MOST_AT_ONCE, True, 5 * 3 * 16)
    q, k, v, directions = keys_of_unlike_cells()
    found = {}
    for side in ("ours", "dense"):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        if side == "ours":
            out = attention(*inputs, directions, stabiliser)
        elif stabiliser == "global":
            out = dense(*inputs, directions)
        else:
            out = torch.cat([dense(*(x[i : i + 1] for x in inputs), directions) for i in range(3)])
        out.mul(torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found[side] = [out, *(x.grad for x in inputs)]
    for ours, theirs in zip(found["ours"], found["dense"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_approaches_softmax_attention_with_more_features(monkeypatch):
    """But for the constant in every feature, which the original added."""
    monkeypatch.setattr(performer, "EPSILON", 0.0)
    torch.manual_seed(1)
    q, k, v = 0.7 * torch.randn(3, 40, 1, 8)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v))
    ).transpose(0, 1)
    gaps = []
    for n_features in (16, 256, 8192):
        directions = draw_features(n_features, 8)
        found = read_keys(q, (s := sum_keys(k, v, directions)).read_at(s.largest), directions)
        gaps.append(float((found - wanted).abs().mean()))
    assert gaps[2] < 0.5 * gaps[1] < 0.5 * gaps[0]
    assert gaps[2] < 0.02


def test_features_are_orthogonal_and_as_long_as_gaussian_vectors():
    directions = draw_features(20_000, 16, torch.Generator().manual_seed(0)).double()
    block = directions[:16]
    lengths = block.norm(dim=1)
    torch.testing.assert_close(block @ block.T, torch.diag(lengths**2), rtol=0, atol=1e-5)
    squares = directions.square().sum(1)  # chi-squared with 16 degrees of freedom
    assert abs(float(squares.mean()) - 16) < 0.2
    assert abs(float(squares.var()) - 32) < 2
    # uniform over directions: no coordinate is preferred, no sign
    assert directions.mean(0).abs().max() < 0.05
    assert (directions.square().mean(0) - 1).abs().max() < 0.06


def test_a_draw_is_its_generator_s():
    one, same = (draw_features(9, 4, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, draw_features(9, 4, torch.Generator().manual_seed(6)))


def toy_block(seed=0):
    torch.manual_seed(seed)
    block = PerformerBlock(SIZES)
    block.attention.redraw()
    return block


@torch.no_grad()
def test_chosen_positions_are_those_of_all():
    block, x = toy_block(), torch.randn(2, 21, 12)
    at = torch.tensor([3, 0, 20, 21 + 5])
    found = block(x, Chosen(at, [3, 1]))
    torch.testing.assert_close(found, block(x).flatten(0, 1)[at], rtol=1e-5, atol=1e-6)


def test_features_are_not_kept_for_the_backward_pass():
    """The largest thing kept is as wide as keys and values, not as their features."""
    attention, x = LinearAttention(SIZES), torch.randn(1, 600, 12)
    attention.redraw()
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    )
    with hooks:
        attention(x[0], x, [600]).sum()
    assert max(kept) < 600 * 3 * SIZES.features
    assert max(kept) <= 600 * 2 * 3 * 8


def test_half_precision_computes_features_in_full():
    """bfloat16 rounds queries and keys; nothing between them and the answer."""
    attention, x = LinearAttention(SIZES), torch.randn(1, 50, 12)
    attention.redraw()
    wanted = attention(x[0], x, [50])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(x[0], x, [50])
        sums = attention._sums(x[0])
    assert found.dtype == torch.bfloat16
    assert sums.features.dtype == sums.plain.dtype == torch.float32
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.02)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())
