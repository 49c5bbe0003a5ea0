"""States of sentences, and what was said after the prompts -> the loss of saying it.

in   states (n_tokens, d), the words and bins of packed sentences, which of them were to be said,
     and two heads: logits of all words, values of some
out  a scalar, and its parts

At each place from the prompt's last word on, every word not yet said is wanted, and its value.
Source: scMulan, Bian et al. 2024, doi:10.1101/2024.01.25.577152; its target builder was
not released: what it may have done is an option here.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

EndTarget = Literal["last", "always"]
TypeTarget = Literal["set", "next"]
MOST_AT_ONCE = 2**23  # logits: 32 MB, and a few times that for their gradient


class Heads(NamedTuple):
    """What is asked of a model's states."""

    words: Callable[[Tensor], Tensor]  # (n, d) -> logits of all words
    values: Callable[[Tensor, Tensor], Tensor]  # (n, d), ids of k words -> (n, k)


class SentenceLosses(NamedTuple):
    """The loss's two parts; of each said word its value's squared error, and its cell."""

    words: Float[Tensor, ""]
    values: Float[Tensor, ""]
    squared_error: Float[Tensor, " target"]
    cell_of: Int[Tensor, " target"]


class Said(NamedTuple):
    """What a cell is to say: words, their bins, the place of the prompt's last word; and whether
    it is only ever the next word that is wanted."""

    words: Tensor
    bins: Tensor
    start: int
    in_turn: bool


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
    *,
    end_target: EndTarget = "last",
    type_target: TypeTarget = "set",
    end_id: int = 0,
    is_annotation: Bool[Tensor, " cell"] | None = None,
    word_weight: Float[Tensor, " word"] | None = None,
    most_at_once: int = MOST_AT_ONCE,
) -> SentenceLosses:
    """V times the mean binary cross-entropy of the words wanted; squared errors of their values.

    As released the loss is the first and 200 times the second. In float32.

    Parameters
    ----------
    is_target
        The words to be said, a cell's last ones; ``bins`` counts where it is True.
    end_target
        Where the end word is wanted: at the "last" place alone, or "always", like any other word
        that is not yet said.
    type_target
        What an annotation wants at each place: the "set" of words not yet said, or just the "next"
        one, which teaches that the coarse type comes first.
    is_annotation
        To which cells ``type_target`` applies; None: to none.
    word_weight
        Of each word of the vocabulary in the cross-entropy; None: 1.

    Both parts are means over a cell's places, and pairs of place and word, and then over cells, so
    that the loss of a global batch is the plain mean of its parts' (`mean_squared_error`). A cell
    without a word to say adds zero. Logits are made and dropped ``most_at_once`` at a time, and
    made again in the backward pass, so that memory does not grow with words times vocabulary.
    """
    counts, starts = _targets(is_target, offsets)
    in_turn = [False] * len(counts)
    if is_annotation is not None and type_target == "next":
        in_turn = is_annotation.tolist()
    said, target_bins = (x[is_target].split(counts) for x in (words, bins.float()))
    cells = [Said(*cell) for cell in zip(said, target_bins, starts, in_turn, strict=True)]
    wanted = partial(_wanted, ends_always=end_target == "always", end_id=end_id)
    measure = partial(_measure, heads=heads, word_weight=word_weight)
    n_words = heads.words(states[:0]).shape[1]
    chunks = list(_chunks(counts, max(1, most_at_once // n_words)))

    sums = states.new_zeros(3, len(counts), dtype=torch.float32)
    errors = []
    for chunk in chunks:
        found, error = _chunk_sums(states, chunk, cells, wanted, measure, again=len(chunks) > 1)
        owners = torch.tensor([piece.cell for piece in chunk], device=states.device)
        sums = sums.index_add(1, owners, found)
        errors.append(error.detach())
    n_places = torch.tensor(counts, device=states.device)
    by_word = (sums[0] / n_places.clamp(min=1)).mean()
    by_value = (sums[1] / sums[2].clamp(min=1)).mean()
    return SentenceLosses(
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


def _chunk_sums(
    states: Float[Tensor, "token d"],
    chunk: list[Piece],
    cells: list[Said],
    wanted: Callable[[Said, Piece], Tensor],
    measure: Callable[..., tuple[Tensor, Tensor]],
    *,
    again: bool,
) -> tuple[Float[Tensor, "3 piece"], Float[Tensor, " place"]]:
    """`_measure` of some places; ``again``: made anew in the backward pass."""
    own = [cells[piece.cell] for piece in chunk]
    pairs = list(zip(own, chunk, strict=True))
    masks = [wanted(cell, piece) for cell, piece in pairs]
    rows = [states[cell.start + piece.first : cell.start + piece.last] for cell, piece in pairs]
    measured = partial(measure, own=own, masks=masks, pieces=chunk)
    if again and torch.is_grad_enabled():
        return checkpoint(measured, torch.cat(rows), use_reentrant=False)
    return measured(torch.cat(rows))


def _wanted(
    cell: Said, piece: Piece, *, ends_always: bool, end_id: int
) -> Bool[Tensor, "place said"]:
    """Which of a cell's words are wanted at each place: Y, of its own words alone."""
    said = cell.words
    number = torch.arange(len(said), device=said.device)
    place = number[piece.first : piece.last, None]
    is_left, is_next, is_end = number >= place, number == place, said == end_id
    if cell.in_turn:
        is_left = is_left & (is_next | is_end)
    if not ends_always:
        is_left = is_left & (is_next | ~is_end)
    return is_left


def _measure(
    rows: Float[Tensor, "place d"],
    *,
    heads: Heads,
    word_weight: Float[Tensor, " word"] | None,
    own: list[Said],
    masks: list[Tensor],
    pieces: list[Piece],
) -> tuple[Float[Tensor, "3 piece"], Float[Tensor, " place"]]:
    """Of each piece the words' loss, the values', and how many values it sums.

    Beside them the squared error of each place's next word. A word that is not wanted costs
    softplus(x), a wanted one softplus(x) - x: so all cost softplus(x), less the wanted ones' x.
    """
    logits = heads.words(rows).float()
    unwanted = F.softplus(logits)
    if word_weight is not None:
        logits, unwanted = logits * word_weight, unwanted * word_weight
    lengths = [piece.last - piece.first for piece in pieces]
    unwanted = unwanted.sum(1).split(lengths)
    sums, errors = [], []
    for all_cost, at, state, cell, mask, piece in zip(
        unwanted, logits.split(lengths), rows.split(lengths), own, masks, pieces, strict=True
    ):
        squared = (heads.values(state, cell.words).float() - cell.bins).square()
        by_word = all_cost.sum() - torch.where(mask, at[:, cell.words], 0.0).sum()
        by_value = torch.where(mask, squared, 0.0).sum()
        sums.append(torch.stack([by_word, by_value, mask.sum().float()]))
        errors.append(squared.diagonal(piece.first))
    return torch.stack(sums, dim=1), torch.cat(errors)
