"""Attention over all genes at a cost linear in them: the Performer's (FAVOR+).

in   (cell, position, d), and which positions are asked for
out  the positions asked for, (query, d)

``exp(q k)`` is the mean over random ``w`` of ``exp(w q - |q|^2/2) exp(w k - |k|^2/2)``. So keys and
values are summed once, into a matrix of features by width, and every query reads that matrix.
Sources: Choromanski et al. 2021, arXiv:2009.14794; as in scFoundation (Hao et al. 2024,
doi:10.1038/s41592-024-02305-7) with a constant added to every feature.

Memory: features are the largest thing by far (266 a head and position, of a head 64 wide). They are
made for some positions at a time, and made again in the backward pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scfm.model.config import ScfoundationSizes, Stabiliser
from scfm.model.recompute import Recompute, run_block
from scfm.model.residual import IntoResidual

EPSILON = 1e-4  # added to every feature, as released
# Numbers made at a time, by whether it is on a CPU, where what fits its cache is fastest.
MOST_AT_ONCE = {True: 2**22, False: 2**26}


def draw_features(
    n_features: int, d_head: int, generator: torch.Generator | None = None
) -> Float[Tensor, "feature d"]:
    """Random directions, orthogonal in blocks of ``d_head``, with lengths of Gaussian vectors.

    Orthogonal ones estimate the kernel with less variance (ibid., section 2.4). Drawn in float64
    on the CPU, so that every machine draws the same.
    """
    n_blocks = -(-n_features // d_head)
    options: Any = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    q, r = torch.linalg.qr(torch.randn(n_blocks, d_head, d_head, **options))
    # Signs by R's diagonal: uniform over rotations (Mezzadri 2007, arXiv:math-ph/0609050) and
    # the same from every LAPACK.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    directions = q.transpose(1, 2).flatten(0, 1)[:n_features]
    lengths = torch.randn(n_features, d_head, **options).norm(dim=1, keepdim=True)
    return (lengths * directions).float()


class KeySums(NamedTuple):
    """Keys and values of one cell, summed: all that its queries need to know.

    ``features`` is the sum over positions of ``exp(feature - largest)`` times the value and 1;
    ``plain`` that of the value and 1 alone, for the constant in every feature.
    """

    features: Float[Tensor, "head feature d_and_1"]
    plain: Float[Tensor, "head d_and_1"]
    largest: Float[Tensor, ""]

    def read_at(self, largest: Float[Tensor, ""]) -> Float[Tensor, "head feature d_and_1"]:
        """The sum of features with another largest exponent subtracted."""
        return self.features * (self.largest - largest).exp() + EPSILON * self.plain[:, None]


def sum_keys(
    k: Float[Tensor, "position head d"],
    v: Float[Tensor, "position head d"],
    directions: Float[Tensor, "feature d"],
) -> KeySums:
    """One cell's keys and values, some positions at a time."""
    rows = _rows_at_once(k.shape[1] * len(directions), k)
    parts = [
        KeySums(*_made_again(_sum_some, *some, directions))
        for some in zip(k.split(rows), v.split(rows), strict=True)
    ]
    largest = torch.stack([part.largest for part in parts]).amax()
    features = torch.stack([part.features * (part.largest - largest).exp() for part in parts])
    plain = torch.stack([part.plain for part in parts])
    return KeySums(features.sum(0), plain.sum(0), largest)


def _sum_some(k: Tensor, v: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    projected, half_square = _project(k, directions)
    # Of the projection alone, as released: what is subtracted changes only how much the constant
    # in every feature weighs.
    largest = projected.amax()
    with_one = F.pad(v.float().transpose(0, 1), (0, 1), value=1.0)
    features = (projected - (half_square + largest)).exp()
    return features.transpose(1, 2) @ with_one, with_one.sum(1), largest


def read_keys(
    q: Float[Tensor, "query head d"],
    sums: Float[Tensor, "head feature d_and_1"],
    directions: Float[Tensor, "feature d"],
) -> Float[Tensor, "query head d"]:
    """What one cell's queries find, some of them at a time."""
    rows = _rows_at_once(q.shape[1] * len(directions), q)
    return torch.cat([_made_again(_read_some, some, sums, directions) for some in q.split(rows)])


def _read_some(q: Tensor, sums: Tensor, directions: Tensor) -> Tensor:
    projected, half_square = _project(q, directions)
    largest = projected.amax(-1, keepdim=True)
    found = ((projected - (half_square + largest)).exp() + EPSILON) @ sums
    # The last column is the sum of weights: at least EPSILON**2 a feature and position, never 0.
    return (found[..., :-1] / found[..., -1:]).transpose(0, 1)


def _project(x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """``w x`` (head, position, feature) and ``|x|^2 / 2`` (head, position, 1), in float32."""
    x = x.float().transpose(0, 1) * x.shape[-1] ** -0.25
    return x @ directions.t(), x.square().sum(-1, keepdim=True) / 2


def _rows_at_once(width: int, x: Tensor) -> int:
    return max(1, MOST_AT_ONCE[x.device.type == "cpu"] // width)


def _made_again(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)``, of which only the inputs are kept for the backward pass."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class LinearAttention(nn.Module):
    """Some positions of every cell look at all positions of their own."""

    directions: Float[Tensor, "feature d"]

    def __init__(self, sizes: ScfoundationSizes):
        super().__init__()
        d, inner = sizes.d_decoder, sizes.n_decoder_heads * sizes.d_head
        self.n_heads = sizes.n_decoder_heads
        self.stabiliser: Stabiliser = sizes.stabiliser
        self.q = nn.Linear(d, inner)
        self.kv = nn.Linear(d, 2 * inner)
        self.out = IntoResidual(inner, d)
        self.register_buffer("directions", torch.empty(sizes.features, sizes.d_head))

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """New random features, in place."""
        n_features, d_head = self.directions.shape
        self.directions.copy_(draw_features(n_features, d_head, generator))

    def forward(
        self,
        asking: Float[Tensor, "query d"],
        context: Float[Tensor, "cell position d"],
        lengths: list[int],
    ) -> Float[Tensor, "query d"]:
        sums = [self._sums(cell) for cell in context]
        found = [
            self._find(own, of_cell)
            for own, of_cell in zip(
                asking.split(lengths), stabilised(sums, self.stabiliser), strict=True
            )
        ]
        return self.out(torch.cat(found))

    def _sums(self, context: Float[Tensor, "position d"]) -> KeySums:
        k, v = self.kv(context).unflatten(-1, (2, self.n_heads, -1)).unbind(-3)
        with torch.autocast(k.device.type, enabled=False):
            return sum_keys(k, v, self.directions.float())

    def _find(
        self, asking: Float[Tensor, "query d"], sums: Float[Tensor, "head feature d_and_1"]
    ) -> Float[Tensor, "query inner"]:
        q = self.q(asking).unflatten(-1, (self.n_heads, -1))
        with torch.autocast(q.device.type, enabled=False):
            return read_keys(q, sums, self.directions.float()).flatten(-2).to(q.dtype)


def stabilised(
    sums: list[KeySums], stabiliser: Stabiliser
) -> list[Float[Tensor, "head feature d_and_1"]]:
    """Each cell's sums, its own largest exponent subtracted or that of all cells."""
    if stabiliser == "per_sample":
        return [own.read_at(own.largest) for own in sums]
    largest = torch.stack([own.largest for own in sums]).amax()
    return [own.read_at(largest) for own in sums]


class FeedForward(nn.Module):
    """``gelu(x W) U``, some rows at a time: its inside is the widest thing after the features."""

    def __init__(self, d: int):
        super().__init__()
        self.expand = nn.Linear(d, 4 * d)
        self.out = IntoResidual(4 * d, d)

    def forward(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        rows = _rows_at_once(self.expand.out_features, x)
        return torch.cat([self.out(F.gelu(self.expand(some))) for some in x.split(rows)])


class Chosen(NamedTuple):
    """Positions of a batch, cell by cell: row numbers into (cell x position), and how many each."""

    at: Int[Tensor, " query"]
    lengths: list[int]


class PerformerBlock(nn.Module):
    """Linear attention and a feed-forward, each normed before; of all positions, or of some."""

    def __init__(self, sizes: ScfoundationSizes):
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.d_decoder)
        self.attention = LinearAttention(sizes)
        self.feedforward_norm = nn.LayerNorm(sizes.d_decoder)
        self.feedforward = FeedForward(sizes.d_decoder)

    def forward(
        self, x: Float[Tensor, "cell position d"], chosen: Chosen | None = None
    ) -> Float[Tensor, "*shape d"]:
        context, rows = self.attention_norm(x), x.flatten(0, 1)
        if chosen is None:
            y = rows + self.attention(context.flatten(0, 1), context, [x.shape[1]] * len(x))
        else:
            asking = context.flatten(0, 1)[chosen.at]
            y = rows[chosen.at] + self.attention(asking, context, chosen.lengths)
        y = y + self.feedforward(self.feedforward_norm(y))
        return y.view_as(x) if chosen is None else y


class PerformerDecoder(nn.Module):
    """A stack of Performer blocks over all positions, and two last norms, as released.

    Only the positions asked for go through the last block's queries and feed-forward: no other
    position's state after it is of use to anyone.
    """

    def __init__(self, sizes: ScfoundationSizes):
        super().__init__()
        self.blocks = nn.ModuleList(PerformerBlock(sizes) for _ in range(sizes.n_decoder_layers))
        self.norm = nn.LayerNorm(sizes.d_decoder)
        self.value_norm = nn.LayerNorm(sizes.d_decoder)
        self.recompute: Recompute = "none"

    def forward(
        self, x: Float[Tensor, "cell position d"], chosen: Chosen
    ) -> Float[Tensor, "query d"]:
        for block in self.blocks[:-1]:
            x = run_block(block, self.recompute, x, None)
        found = run_block(self.blocks[-1], self.recompute, x, chosen)
        return self.value_norm(self.norm(found))

    def redraw(self, seeds: list[int]) -> None:
        """New random features, layer by layer."""
        for block, seed in zip(self.blocks, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            block.attention.redraw(generator)  # pyright: ignore
