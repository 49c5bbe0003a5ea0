"""The parts that models of TF binding are put together from.

in   one-hot DNA, accessibility along a window, features (window, channel, position)
out  features

Every activation, softmax included, is a module of its own and used once: attribution by DeepLIFT
replaces them one by one, and one that is used twice gets the wrong rule.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

Features = Float[Tensor, "window _ _"]


class Exponential(nn.Module):
    """exp(x). Attribution libraries are to be told of it: it is none of torch's."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.exp(x)


def same_conv(
    d_in: int, d_out: int, kernel: int, *, dilation: int = 1, bias: bool = True
) -> nn.Conv1d:
    """A convolution that keeps the length; ``kernel`` is odd."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv1d(d_in, d_out, kernel, padding=padding, dilation=dilation, bias=bias)


class DnaTower(nn.Module):
    """Convolution without bias, norm, activation, max pool.

    The norm before an exponential is what keeps it finite. Under autocast that layer stays in
    float32: exp overflows half precision at 11.1, and rounds to 3 digits in bfloat16.
    """

    def __init__(self, filters: int, kernel: int, activation: str, pool: int, dropout: float):
        super().__init__()
        self.conv = same_conv(4, filters, kernel, bias=False)
        self.norm = nn.BatchNorm1d(filters)
        self.is_exponential = activation == "exponential"
        self.activation = Exponential() if self.is_exponential else nn.ReLU()
        self.pool = nn.MaxPool1d(pool)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Float[Tensor, "window 4 base"]) -> Features:
        return self.dropout(self.pool(self.activated(sequence)))

    def activated(
        self, sequence: Float[Tensor, "window 4 base"]
    ) -> Float[Tensor, "window filter base"]:
        """Filter activities at every base."""
        if not self.is_exponential:
            return self.activation(self.norm(self.conv(sequence)))
        with torch.autocast(sequence.device.type, enabled=False):
            x = self.norm(self.conv(sequence))
            # weights, and so x, may be bfloat16 themselves, under bf16-true
            return self.activation(x.float()).to(x.dtype)


class TrackTower(nn.Module):
    """Accessibility, as far as the first pool. Averaged there: how much, not only how high."""

    def __init__(self, n_tracks: int, filters: int, kernel: int, pool: int):
        super().__init__()
        self.conv = same_conv(n_tracks, filters, kernel, bias=False)
        self.norm = nn.BatchNorm1d(filters)
        self.activation = nn.ReLU()
        self.pool = nn.AvgPool1d(pool)

    def forward(self, signal: Float[Tensor, "window track base"]) -> Features:
        return self.pool(self.activation(self.norm(self.conv(signal))))


class ConvLayer(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, d_in: int, d_out: int, kernel: int):
        super().__init__()
        self.conv = same_conv(d_in, d_out, kernel, bias=False)
        self.norm = nn.BatchNorm1d(d_out)
        self.activation = nn.ReLU()

    def forward(self, x: Features) -> Features:
        return self.activation(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """A dilated convolution and one of width 1, beside the identity."""

    def __init__(self, d_model: int, kernel: int, dilation: int, dropout: float):
        super().__init__()
        self.conv = same_conv(d_model, d_model, kernel, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(d_model)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Conv1d(d_model, d_model, 1, bias=False)
        self.mix_norm = nn.BatchNorm1d(d_model)
        self.out = nn.ReLU()

    def forward(self, x: Features) -> Features:
        change = self.dropout(self.activation(self.norm(self.conv(x))))
        return self.out(x + self.mix_norm(self.mix(change)))


class Film(nn.Module):
    """Features scaled and shifted by a cell's embedding, channel by channel; at first not at all.

    Source: Perez et al. 2018, arXiv:1709.07871. The last layer begins at zero.
    """

    def __init__(self, d_cell: int, d_model: int):
        super().__init__()
        self.hidden = nn.Linear(d_cell, d_model)
        self.activation = nn.ReLU()
        self.out = nn.Linear(d_model, 2 * d_model)
        self.begin_at_zero()

    def begin_at_zero(self) -> None:
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Features, cell: Float[Tensor, "window d"]) -> Features:
        scale, shift = self.out(self.activation(self.hidden(cell)))[..., None].chunk(2, 1)
        return x * (1 + scale) + shift


class PositionMixer(nn.Module):
    """Attention among the positions of a window, all to all, beside the identity."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.weights = nn.Softmax(dim=-1)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Features) -> Features:
        n, d_model, length = x.shape
        qkv = self.qkv(self.norm(x.transpose(1, 2)))
        heads = qkv.view(n, length, 3, self.n_heads, d_model // self.n_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attention = self.weights(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        mixed = (attention @ v).transpose(1, 2).reshape(n, length, d_model)
        return x + self.dropout(self.out(mixed)).transpose(1, 2)


class WeightedMean(nn.Module):
    """The mean over positions by learned weights."""

    def __init__(self, d_model: int):
        super().__init__()
        self.score = nn.Conv1d(d_model, 1, 1)
        self.weights = nn.Softmax(dim=-1)

    def forward(self, x: Features) -> Float[Tensor, "window channel"]:
        return (x * self.weights(self.score(x))).sum(-1)


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, x: Features) -> Float[Tensor, "window channel"]:
        return x.mean(-1)


def pooling(name: str, d_model: int, n_positions: int) -> tuple[nn.Module, int]:
    """Positions to one vector, and its width."""
    if name == "flatten":
        return nn.Flatten(), d_model * n_positions
    if name == "attention":
        return WeightedMean(d_model), d_model
    if name == "max":
        return nn.Sequential(nn.MaxPool1d(n_positions), nn.Flatten()), d_model
    return Mean(), d_model


class TaskEmbeddings(nn.Module):
    """Logits as dot products of a window's vector with an embedding a TF.

    What TFs have in common is in the query; a TF of few peaks has only ``d_task`` numbers to learn.
    """

    def __init__(self, d_in: int, d_task: int, n_tasks: int):
        super().__init__()
        self.query = nn.Linear(d_in, d_task, bias=False)
        self.tasks = nn.Parameter(torch.randn(n_tasks, d_task) * d_task**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_tasks))

    def forward(self, x: Float[Tensor, "window d"]) -> Float[Tensor, "window task"]:
        return nn.functional.linear(self.query(x), self.tasks, self.bias)
