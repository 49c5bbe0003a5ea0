"""Attention over packed cells: the one place that knows the backends.

in   queries (n_q, heads, d), keys and values (n_k, heads, d), and where each cell's begin
out  (n_q, heads, d): every query attends to all keys of its own cell and to nothing else; where
     causal, to those up to its own place

Three backends, equal to float tolerance (tests/model/test_attention.py):

documents  scaled_dot_product_attention cell by cell: no padding, no mask, never a matrix larger
           than one cell's. The fastest on a CPU by a factor of two and more.
padded     one padded call per length bucket, for CUDA where no variable-length kernel is at hand
varlen     torch's flash variable-length kernel: CUDA, half precision, torch >= 2.10
"""

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from scfm.errors import ConfigError

try:  # absent before torch 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


class Packing:
    """Where the cells lie in a packed array. Lengths leave the device once, if at all."""

    def __init__(self, offsets: Int[Tensor, " bound"]):
        self.offsets = offsets

    @cached_property
    def lengths(self) -> list[int]:
        return self.offsets.diff().tolist()

    @cached_property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def cell_of(self) -> Int[Tensor, " token"]:
        """Cell number of every token."""
        counts = self.offsets.diff().long()
        cells = torch.arange(len(counts), device=counts.device)
        return cells.repeat_interleave(counts, output_size=sum(self.lengths))

    @cached_property
    def place(self) -> Int[Tensor, " token"]:
        """Number of every token within its cell, from 0."""
        first = self.offsets[:-1].long()[self.cell_of]
        return torch.arange(len(first), device=first.device) - first


def attend(
    q: Float[Tensor, "query head d"],
    k: Float[Tensor, "key head d"],
    v: Float[Tensor, "key head d"],
    queries: Packing,
    keys: Packing,
    *,
    backend: str = "auto",
    dropout: float = 0.0,
    causal: bool = False,
) -> Float[Tensor, "query head d"]:
    """Softmax(q k / sqrt(d)) v within each cell. Raises ConfigError for an unknown backend.

    ``dropout`` is the share of attention weights set to zero. Where ``causal``, queries and keys
    are the same tokens in one order, and no token looks at a later one of its cell.
    """
    assert not causal or queries is keys, "causal attention is of a sequence on itself"
    if backend == "auto":
        backend = choose_backend(q, dropout)
    if backend not in BACKENDS:
        raise ConfigError(
            f"model.attention is '{backend}'; known are auto, {', '.join(sorted(BACKENDS))}."
        )
    return BACKENDS[backend](q, k, v, queries, keys, dropout, causal)


def choose_backend(q: Tensor, dropout: float = 0.0) -> str:
    """The fastest backend that exists for this tensor's device and precision."""
    if q.device.type == "cpu":
        return "documents"
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    if varlen_attn is not None and q.is_cuda and is_half and not dropout:
        return "varlen"
    return "padded"


def _documents(
    q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float, causal: bool
) -> Tensor:
    # split, not slices: the gradient of n slices is n tensors of full size, that of a split one.
    parts = zip(q.split(queries.lengths), k.split(keys.lengths), v.split(keys.lengths), strict=True)
    return torch.cat([_one_cell(*part, dropout, causal) for part in parts])


def _one_cell(q: Tensor, k: Tensor, v: Tensor, dropout: float, causal: bool) -> Tensor:
    if len(q) == 0:
        return q
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
    return found.squeeze(0).transpose(0, 1)


def _padded(
    q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float, causal: bool
) -> Tensor:
    out = torch.empty_like(q)
    for cells in _buckets(queries.lengths, keys.lengths):
        chosen = torch.tensor(cells, device=q.device)
        q_at, q_real = _padded_index(queries, chosen, max(queries.lengths[c] for c in cells))
        k_at, k_real = _padded_index(keys, chosen, max(keys.lengths[c] for c in cells))
        found = F.scaled_dot_product_attention(
            q[q_at].transpose(1, 2),
            k[k_at].transpose(1, 2),
            v[k_at].transpose(1, 2),
            # padding comes last, so that the causal mask hides it from all that is real
            attn_mask=None if causal else k_real[:, None, None, :],
            dropout_p=dropout,
            is_causal=causal,
        ).transpose(1, 2)
        out = out.index_put((q_at[q_real],), found[q_real])
    return out


def _buckets(query_lengths: list[int], key_lengths: list[int]) -> list[list[int]]:
    """Cells grouped by key length to within a quarter of a power of two: at most 25 % padding."""
    buckets: dict[int, list[int]] = {}
    for cell, (n_queries, n_keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        if n_queries:
            step = max(1, 1 << max(0, n_keys.bit_length() - 3))
            buckets.setdefault(-(-n_keys // step) * step, []).append(cell)
    return list(buckets.values())


def _padded_index(packing: Packing, cells: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Row numbers (cell, longest) into the packed array, and which of them are real."""
    start, end = packing.offsets[cells].long(), packing.offsets[cells + 1].long()
    at = start[:, None] + torch.arange(longest, device=cells.device)
    is_real = at < end[:, None]
    return torch.where(is_real, at, start[:, None]), is_real


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float, causal: bool
) -> Tensor:
    if varlen_attn is None or not q.is_cuda or dropout:
        raise ConfigError(
            "model.attention is 'varlen', which needs CUDA and torch >= 2.10, and no dropout; set "
            "it to 'auto'."
        )
    bounds = (queries.offsets, keys.offsets, queries.longest, keys.longest)
    window = (-1, 0) if causal else (-1, -1)  # how far back and ahead; -1: all
    return varlen_attn(q, k, v, *bounds, window_size=window)  # pyright: ignore[reportReturnType]  # a tensor unless auxiliary outputs are asked for


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "documents": _documents,
    "padded": _padded,
    "varlen": _varlen,
}
