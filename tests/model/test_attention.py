"""Attention: against a dense masked softmax, and the backends against each other."""

import math

import pytest
import torch

from scfm.errors import ConfigError
from scfm.model.attention import Packing, attend, varlen_attn

LENGTHS = ([5, 1, 17, 3], [9, 2, 30, 4])  # queries and keys of four cells


def dense_attention(q, k, v, query_lengths, key_lengths, causal=False):
    """The definition, in float64, with every other cell masked out, and where causal the future."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    cells = [
        torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n))
        for n in (query_lengths, key_lengths)
    ]
    logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    logits = logits.masked_fill(cells[0][:, None] != cells[1][None, :], -torch.inf)
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
    return (torch.softmax(logits, dim=-1) @ v).transpose(0, 1)


def packed(lengths, device="cpu"):
    return Packing(torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32))


def random_inputs(query_lengths, key_lengths, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    sizes = sum(query_lengths), sum(key_lengths), sum(key_lengths)
    return [torch.randn(n, 2, 8, generator=generator).to(device, dtype) for n in sizes]


@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_equals_dense_softmax(backend):
    q, k, v = random_inputs(*LENGTHS)
    found = attend(q, k, v, packed(LENGTHS[0]), packed(LENGTHS[1]), backend=backend)
    torch.testing.assert_close(
        found.double(), dense_attention(q, k, v, *LENGTHS), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_gradients_equal_dense_softmax(backend):
    inputs = [x.double().requires_grad_() for x in random_inputs(*LENGTHS)]
    weights = torch.randn(
        sum(LENGTHS[0]), 2, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    found = attend(*inputs, packed(LENGTHS[0]), packed(LENGTHS[1]), backend=backend)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((dense_attention(*inputs, *LENGTHS) * weights).sum(), inputs)
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_cell_without_queries_changes_nothing(backend):
    with_empty, without = ([4, 0, 3], [6, 2, 5]), ([4, 3], [6, 5])
    q, k, v = random_inputs(*with_empty)
    found = attend(q, k, v, packed(with_empty[0]), packed(with_empty[1]), backend=backend)
    kept = torch.cat([torch.arange(6), torch.arange(8, 13)])
    alone = attend(q, k[kept], v[kept], packed(without[0]), packed(without[1]), backend=backend)
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_causal_equals_dense_softmax_and_so_do_its_gradients(backend):
    lengths = LENGTHS[0]
    inputs = [x.double().requires_grad_() for x in random_inputs(lengths, lengths)]
    cells = packed(lengths)
    found = attend(*inputs, cells, cells, backend=backend, causal=True)
    wanted = dense_attention(*inputs, lengths, lengths, causal=True)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    weights = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (found, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_causal_attention_never_looks_ahead(backend):
    """What comes later may be anything."""
    q, k, v = random_inputs([6], [6])
    cells = packed([6])
    before = attend(q, k, v, cells, cells, backend=backend, causal=True)
    k[4:], v[4:] = 1e4, -1e4
    after = attend(q, k, v, cells, cells, backend=backend, causal=True)
    torch.testing.assert_close(after[:4], before[:4])


def test_unknown_backend_is_refused():
    q, k, v = random_inputs([2], [2])
    with pytest.raises(ConfigError, match="documents, padded, varlen"):
        attend(q, k, v, packed([2]), packed([2]), backend="flash")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["documents", "padded", "varlen", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_cuda_equals_cpu(backend, dtype, causal):
    if backend == "varlen" and (dtype is torch.float32 or varlen_attn is None):
        pytest.skip("the varlen kernel is half precision only, torch >= 2.10")
    lengths = (LENGTHS[0], LENGTHS[0]) if causal else LENGTHS
    q, k, v = random_inputs(*lengths, dtype=dtype)
    on_cpu = dense_attention(q, k, v, *lengths, causal)
    queries = packed(lengths[0], "cuda")
    found = attend(
        *(x.cuda() for x in (q, k, v)),
        queries,
        queries if causal else packed(lengths[1], "cuda"),
        backend=backend,
        causal=causal,
    )
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found.double().cpu(), on_cpu, rtol=tolerance, atol=tolerance)
