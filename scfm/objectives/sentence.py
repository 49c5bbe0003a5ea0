"""States of sentences, and what was said after the prompts -> the loss of saying it.

in   states (n_tokens, d), the words and bins of packed sentences, which of them were to be said,
     and two heads: logits of all words, values of some
out  a scalar, and its parts

At each place from the prompt's last word on, every word not yet said is wanted, and its value.
Source: scMulan, Bian et al. 2024, doi:10.1101/2024.01.25.577152; its target builder was
not released: what it may have done is an option here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

EndTarget = Literal["last", "always"]
TypeTarget = Literal["set", "next"]
MOST_AT_ONCE = 2**23  # logits: 32 MB, and a few times that for their gradient


@dataclass(frozen=True, kw_only=True)
class SentenceObjective:
    """What a sentence's loss is made of.

    Attributes
    ----------
    value_weight
        Of the values' squared error beside the words' loss; beta, 200 as released.
    end_target
        Where the end word is wanted: at the "last" place alone, or "always", like any other word
        that is not yet said.
    type_target
        What an annotation wants at each place: the "set" of type words not yet said, or just the
        "next" one, which teaches that the coarse type comes first.
    """

    value_weight: float = 200.0
    end_target: EndTarget = "last"
    type_target: TypeTarget = "set"

    def __post_init__(self) -> None:
        if not 0 <= self.value_weight < float("inf"):
            raise ValueError(f"objective.value_weight must be at least 0, got {self.value_weight}")
        for name, known in (("end_target", EndTarget), ("type_target", TypeTarget)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"objective.{name} is '{getattr(self, name)}'; known are "
                    f"{', '.join(get_args(known))}"
                )


class Heads(NamedTuple):
    """What is asked of a model's states."""

    words: Callable[[Tensor], Tensor]  # (n, d) -> logits of all words
    values: Callable[[Tensor, Tensor], Tensor]  # (n, d), ids of k words -> (n, k)


class SentenceLosses(NamedTuple):
    """The loss and its parts; of each said word its value's squared error, and its cell."""

    loss: Float[Tensor, ""]
    words: Float[Tensor, ""]
    values: Float[Tensor, ""]
    squared_error: Float[Tensor, " target"]
    cell_of: Int[Tensor, " target"]


class Piece(NamedTuple):
    """Some of the places of one cell: those from which its words ``first`` to ``last`` are said."""

    cell: int
    first: int
    last: int


def sentence_losses(
    states: Float[Tensor, "token d"],
    words: Int[Tensor, " token"],
    bins: Float[Tensor, " token"],
    is_target: Bool[Tensor, " token"],
    offsets: Int[Tensor, " bound"],
    heads: Heads,
    objective: SentenceObjective,
    *,
    end_id: int = 0,
    is_annotation: Bool[Tensor, " cell"] | None = None,
    most_at_once: int = MOST_AT_ONCE,
) -> SentenceLosses:
    """V times the mean binary cross-entropy of the words wanted, plus weighted squared errors.

    ``is_target`` are the words to be said, a cell's last ones; ``bins`` counts where it is True.
    ``is_annotation`` says to which cells ``type_target`` applies; None: to none. In float32.

    Both parts are means over a cell's places, and pairs of place and word, and then over cells, so
    that the loss of a global batch is the plain mean of its parts' (`mean_squared_error`). A cell
    without a word to say adds zero. Logits are made and dropped ``most_at_once`` at a time, and
    made again in the backward pass, so that memory does not grow with words times vocabulary.
    """
    counts, starts = _targets(is_target, offsets)
    said = words[is_target].split(counts)
    wanted = partial(_wanted, objective=objective, end_id=end_id)
    in_turn = [False] * len(counts) if is_annotation is None else is_annotation.tolist()
    n_words = heads.words(states[:0]).shape[1]
    chunks = list(_chunks(counts, max(1, most_at_once // n_words)))
    again = torch.is_grad_enabled() and len(chunks) > 1
    target_bins = bins[is_target].float().split(counts)

    sums = states.new_zeros(3, len(counts), dtype=torch.float32)
    errors = []
    for chunk in chunks:
        own = [(said[p.cell], target_bins[p.cell]) for p in chunk]
        masks = [wanted(w, p, in_turn[p.cell]) for (w, _), p in zip(own, chunk, strict=True)]
        places = [states[starts[p.cell] + p.first : starts[p.cell] + p.last] for p in chunk]
        measure = partial(_measure, heads=heads, own=own, masks=masks, pieces=chunk)
        rows = torch.cat(places)
        found, error = checkpoint(measure, rows, use_reentrant=False) if again else measure(rows)
        cells = torch.tensor([p.cell for p in chunk], device=states.device)
        sums = sums.index_add(1, cells, found)
        errors.append(error.detach())
    n_places = torch.tensor(counts, device=states.device)
    by_word = (sums[0] / n_places.clamp(min=1)).mean()
    by_value = (sums[1] / sums[2].clamp(min=1)).mean()
    return SentenceLosses(
        by_word + objective.value_weight * by_value,
        by_word,
        by_value,
        torch.cat([*errors, sums.new_zeros(0)]),
        torch.arange(len(counts), device=states.device).repeat_interleave(n_places),
    )


def _targets(is_target: Tensor, offsets: Tensor) -> tuple[list[int], list[int]]:
    """How many words each cell is to say, and the place of its prompt's last word."""
    before = torch.cat([is_target.new_zeros(1, dtype=torch.int64), is_target.cumsum(0)])
    counts = before[offsets.long()].diff()
    starts = offsets[1:].long() - counts - 1
    counts, starts = torch.stack([counts, starts]).tolist()
    return counts, starts


def _chunks(counts: list[int], most_rows: int) -> Iterator[list[Piece]]:
    """Places of all cells in order, at most ``most_rows`` together."""
    chunk: list[Piece] = []
    room = most_rows
    for cell, count in enumerate(counts):
        first = 0
        while first < count:
            last = min(count, first + room)
            chunk.append(Piece(cell, first, last))
            room -= last - first
            first = last
            if room == 0:
                yield chunk
                chunk, room = [], most_rows
    if chunk:
        yield chunk


def _wanted(
    said: Int[Tensor, " said"],
    piece: Piece,
    in_turn: bool,
    *,
    objective: SentenceObjective,
    end_id: int,
) -> Bool[Tensor, "place said"]:
    """Which of a cell's words are wanted at each place: Y, of its own words alone."""
    number = torch.arange(len(said), device=said.device)
    place = number[piece.first : piece.last, None]
    is_left, is_next, is_end = number >= place, number == place, said == end_id
    if in_turn and objective.type_target == "next":
        is_left = is_left & (is_next | is_end)
    if objective.end_target == "last":
        is_left = is_left & (is_next | ~is_end)
    return is_left


def _measure(
    rows: Float[Tensor, "place d"],
    *,
    heads: Heads,
    own: list[tuple[Tensor, Tensor]],
    masks: list[Tensor],
    pieces: list[Piece],
) -> tuple[Float[Tensor, "3 piece"], Float[Tensor, " place"]]:
    """Of each piece the words' loss, the values', and how many values it sums.

    Beside them the squared error of each place's next word. A word that is not wanted costs
    softplus(x), a wanted one softplus(x) - x: so all cost softplus(x), less the wanted ones' x.
    """
    logits = heads.words(rows).float()
    lengths = [piece.last - piece.first for piece in pieces]
    unwanted = F.softplus(logits).sum(1).split(lengths)
    sums, errors = [], []
    for all_cost, at, state, (said, bins), mask, piece in zip(
        unwanted, logits.split(lengths), rows.split(lengths), own, masks, pieces, strict=True
    ):
        squared = (heads.values(state, said).float() - bins).square()
        by_word = all_cost.sum() - torch.where(mask, at[:, said], 0.0).sum()
        by_value = torch.where(mask, squared, 0.0).sum()
        sums.append(torch.stack([by_word, by_value, mask.sum().float()]))
        errors.append(squared.diagonal(piece.first))
    return torch.stack(sums, dim=1), torch.cat(errors)
