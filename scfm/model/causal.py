"""Transformer blocks over packed sentences: each word looks at those said before it in its cell.

in   (n_tokens, d) and where each cell's tokens lie; or one word a cell, and a cache of those before
out  the same shape

GPT-2's block: LayerNorm before each sublayer, GELU by tanh. No positions: the order of words
matters through what each may look at alone. Source: Radford et al. 2019 (GPT-2).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from scfm.model.attention import Packing, attend
from scfm.model.cache import LayerCache, WordCache
from scfm.model.config import ScmulanSizes
from scfm.model.recompute import Recompute, run_block
from scfm.model.residual import IntoResidual


class CausalBlock(nn.Module):
    """Each word looks at the earlier words of its cell and at itself, then is transformed alone."""

    def __init__(self, sizes: ScmulanSizes):
        super().__init__()
        d, bias = sizes.d_model, sizes.bias
        self.n_heads, self.backend = sizes.n_heads, sizes.attention
        self.attention_norm = nn.LayerNorm(d, bias=bias)
        self.qkv = nn.Linear(d, 3 * d, bias=bias)
        self.out = IntoResidual(d, d, bias=bias)
        self.feedforward_norm = nn.LayerNorm(d, bias=bias)
        self.expand = nn.Linear(d, 4 * d, bias=bias)
        self.contract = IntoResidual(4 * d, d, bias=bias)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Float[Tensor, "token d"], cells: Packing) -> Float[Tensor, "token d"]:
        q, k, v = self._qkv(x)
        return self._after(x, self._attend(q, k, v, cells))

    def prefill(
        self, x: Float[Tensor, "token d"], cells: Packing, cache: LayerCache
    ) -> Float[Tensor, "token d"]:
        """`forward`, whose keys and values the cache keeps."""
        q, k, v = self._qkv(x)
        cache.fill(k, v, cells)
        return self._after(x, self._attend(q, k, v, cells))

    def prefill_last(
        self, x: Float[Tensor, "token d"], cells: Packing, cache: LayerCache
    ) -> Float[Tensor, "cell d"]:
        """What `prefill` gives of each cell's last word, at the cost of the keys and values of all.

        The same as a step after all the words but one: nothing else of a last block is ever read.
        """
        q, k, v = self._qkv(x)
        cache.fill(k, v, cells)
        last = cells.offsets[1:].long() - 1
        return self._after(x[last], cache.attend(q[last], cells.offsets.diff().long()))

    def step(
        self, x: Float[Tensor, "cell d"], lengths: Int[Tensor, " cell"], cache: LayerCache
    ) -> Float[Tensor, "cell d"]:
        """One more word a cell, after ``lengths`` cached ones, which it joins."""
        q, k, v = self._qkv(x)
        cache.append(k, v, lengths)
        return self._after(x, cache.attend(q, lengths + 1))

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1)).unbind(-3)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, cells: Packing) -> Tensor:
        dropout = self.dropout.p if self.training else 0.0
        return attend(q, k, v, cells, cells, backend=self.backend, dropout=dropout, causal=True)

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.out(attended.flatten(-2)))
        hidden = F.gelu(self.expand(self.feedforward_norm(x)), approximate="tanh")
        return x + self.dropout(self.contract(hidden))


class CausalDecoder(nn.Module):
    """A stack of causal blocks and a last norm."""

    def __init__(self, sizes: ScmulanSizes):
        super().__init__()
        self.blocks = nn.ModuleList(CausalBlock(sizes) for _ in range(sizes.n_layers))
        self.norm = nn.LayerNorm(sizes.d_model, bias=sizes.bias)
        self.recompute: Recompute = "none"

    def forward(self, x: Float[Tensor, "token d"], cells: Packing) -> Float[Tensor, "token d"]:
        for block in self.blocks:
            x = run_block(block, self.recompute, x, cells)
        return self.norm(x)

    @torch.no_grad()
    def prefill(
        self, x: Float[Tensor, "token d"], cells: Packing, cache: WordCache
    ) -> Float[Tensor, "cell d"]:
        """The state of each cell's last word; the cache then holds all words."""
        blocks: list[Any] = list(self.blocks)
        for block, layer in zip(blocks[:-1], cache.layers[:-1], strict=True):
            x = block.prefill(x, cells, layer)
        x = blocks[-1].prefill_last(x, cells, cache.layers[-1])
        cache.lengths = cells.offsets.diff().long()
        return self.norm(x)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "cell d"], cache: WordCache) -> Float[Tensor, "cell d"]:
        """The states of one more word a cell, which joins the cache."""
        cache.make_room()
        blocks: list[Any] = list(self.blocks)
        for block, layer in zip(blocks, cache.layers, strict=True):
            x = block.step(x, cache.lengths, layer)
        cache.lengths = cache.lengths + 1
        return self.norm(x)
