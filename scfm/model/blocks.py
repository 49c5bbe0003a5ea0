"""Transformer blocks over packed tokens: pre-norm, RMSNorm, gated feed-forward, QK-norm, no biases.

in   (n_tokens, d) and where each cell's tokens lie
out  the same shape
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from scfm.model.attention import Packing, attend
from scfm.model.residual import IntoResidual


class SwiGLU(nn.Module):
    """``(silu(x W) * x V) U``. Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, d: int, d_hidden: int):
        super().__init__()
        self.gate_and_up = nn.Linear(d, 2 * d_hidden, bias=False)
        self.out = IntoResidual(d_hidden, d, bias=False)

    def forward(self, x: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Attention(nn.Module):
    """Multi-head attention of one packed array on another, or on itself.

    Queries and keys are normalised a head (QK-norm: Dehghani et al. 2023, arXiv:2302.05442), so
    that logits stay bounded in half precision.
    """

    def __init__(self, d: int, n_heads: int, backend: str):
        super().__init__()
        self.n_heads, self.backend = n_heads, backend
        self.q = nn.Linear(d, d, bias=False)
        self.kv = nn.Linear(d, 2 * d, bias=False)
        self.q_norm = nn.RMSNorm(d // n_heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(d // n_heads, eps=1e-6)
        self.out = IntoResidual(d, d, bias=False)

    def forward(
        self,
        x: Float[Tensor, "query d"],
        context: Float[Tensor, "key d"],
        queries: Packing,
        keys: Packing,
    ) -> Float[Tensor, "query d"]:
        q = self.q(x).unflatten(-1, (self.n_heads, -1))
        k, v = self.kv(context).unflatten(-1, (2, self.n_heads, -1)).unbind(-3)
        # The norms may come back in float32 under autocast; the kernels want one precision.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return self.out(attend(q, k, v, queries, keys, backend=self.backend).flatten(-2))


class SelfBlock(nn.Module):
    """Each token looks at its own cell, then is transformed alone."""

    def __init__(self, d: int, n_heads: int, d_hidden: int, dropout: float, backend: str):
        super().__init__()
        self.attention_norm = nn.RMSNorm(d, eps=1e-6)
        self.attention = Attention(d, n_heads, backend)
        self.feedforward_norm = nn.RMSNorm(d, eps=1e-6)
        self.feedforward = SwiGLU(d, d_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "token d"], cells: Packing) -> Float[Tensor, "token d"]:
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, normed, cells, cells))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class CrossBlock(nn.Module):
    """Each query looks at its cell's encoded tokens, never at other queries."""

    def __init__(self, d: int, n_heads: int, d_hidden: int, dropout: float, backend: str):
        super().__init__()
        self.query_norm = nn.RMSNorm(d, eps=1e-6)
        self.attention = Attention(d, n_heads, backend)
        self.feedforward_norm = nn.RMSNorm(d, eps=1e-6)
        self.feedforward = SwiGLU(d, d_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "query d"],
        context: Float[Tensor, "key d"],
        queries: Packing,
        keys: Packing,
    ) -> Float[Tensor, "query d"]:
        x = x + self.dropout(self.attention(self.query_norm(x), context, queries, keys))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
