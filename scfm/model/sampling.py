"""Logits of all words -> the next word of every cell.

in   logits (n_cells, n_words), the words that may come next, one uniform number a cell
out  probabilities; word ids

A cell's number is a pure function of (seed, cell, step), and what is chosen one of that number and
the cell's own probabilities: no other cell, and no order, has a part in it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scfm.data.mixing import GOLDEN, mix64_array
from scfm.tokens.rng import cell_keys

Repeats = Literal["never", "last"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How words are chosen.

    Attributes
    ----------
    max_words
        Words a cell says at most, the end word included.
    top_k
        Choose among that many of the likeliest words; 1 is the likeliest. None: among all.
    top_p
        Choose among the fewest words that together have this probability. None: among all.
    temperature
        Logits are divided by it.
    end_weight
        Factor on the end word's probability after all else; below 1 sentences get longer.
    repeats
        "never": no word twice, those of the prompt included. "last": the word just said may come
        again, as in the released code without a cache.
    allowed
        Of the first word said, the second, ...: the ids it may be, or None for any. Later words
        are held to the last entry.
    seed
        Of the choice.
    """

    max_words: int
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0
    end_weight: float = 1.0
    repeats: Repeats = "never"
    allowed: tuple[tuple[int, ...] | None, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ValueError(f"decoding.max_words must be at least 1, got {self.max_words}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"decoding.top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"decoding.top_p must be in (0, 1], got {self.top_p}")
        for name in ("temperature", "end_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"decoding.{name} must be positive, got {getattr(self, name)}")
        if self.repeats not in get_args(Repeats):
            known = ", ".join(get_args(Repeats))
            raise ValueError(f"decoding.repeats is '{self.repeats}'; known are {known}")
        for number, words in enumerate(self.allowed):
            if words is not None and not words:
                raise ValueError(f"decoding.allowed[{number}] is empty: no word could be said")

    def allowed_at(self, step: int) -> tuple[int, ...] | None:
        """Ids the word of this step may be; None: any."""
        return self.allowed[min(step, len(self.allowed) - 1)] if self.allowed else None


def uniform_draws(
    seed: int, cells: Int[np.ndarray, " cell"], step: int
) -> Float[np.ndarray, " cell"]:
    """One number in [0, 1) a cell, of (seed, cell, step) alone; multiples of 2^-53."""
    words = mix64_array(cell_keys(seed, step, cells) + GOLDEN)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def open_words(
    said: Bool[Tensor, "cell word"], allowed: tuple[int, ...] | None
) -> Bool[Tensor, "cell word"]:
    """What may be said: not what was, and only what is allowed."""
    if allowed is None:
        return ~said
    is_allowed = torch.zeros(said.shape[1], dtype=torch.bool, device=said.device)
    is_allowed[torch.tensor(allowed, device=said.device)] = True
    return ~said & is_allowed


def probabilities_of(
    logits: Float[Tensor, "cell word"],
    is_open: Bool[Tensor, "cell word"],
    temperature: float = 1.0,
) -> Float[Tensor, "cell word"]:
    """Softmax over the open words, in float64; all zero where none is open."""
    scaled = (logits.double() / temperature).masked_fill(~is_open, -torch.inf)
    return scaled.softmax(1).nan_to_num(0.0)


def choose(
    probabilities: Float[Tensor, "cell word"],
    draws: Float[Tensor, " cell"],
    how: Decoding,
    end_id: int,
) -> Int[Tensor, " cell"]:
    """One word a cell by inversion: the first whose cumulative probability is above the draw."""
    weights = probabilities
    if how.top_k is not None:
        weights = _top_k(weights, how.top_k)
    if how.top_p is not None:
        weights = _top_p(weights, how.top_p)
    if how.end_weight != 1:
        # as released: after the softmax of those that are left, and nothing is divided by the sum
        weights = weights.clone()
        weights[:, end_id] *= how.end_weight
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:]
    # a draw next to 1 may round to the total, above which there is no word
    wanted = torch.minimum(draws[:, None] * total, torch.nextafter(total, total.new_zeros(())))
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]


def _top_k(weights: Tensor, k: int) -> Tensor:
    least = weights.topk(min(k, weights.shape[1]), dim=1).values[:, -1:]
    return torch.where(weights >= least, weights, 0.0)


def _top_p(weights: Tensor, p: float) -> Tensor:
    ordered, place = weights.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered
    kept = torch.where(before < p * ordered.sum(1, keepdim=True), ordered, 0.0)
    return torch.zeros_like(weights).scatter(1, place, kept)
