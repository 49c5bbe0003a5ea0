"""The state after each cell's last word, word by word: with what was said kept, or without.

in   a model that says words, packed prompts; then one word a cell
out  (n_cells, d), from which the next word is chosen

Two voices that say the same: the cached one goes through every word once, the other through all of
them at every step, for comparison.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from scfm.model.attention import Packing
from scfm.model.cache import WordCache
from scfm.model.causal import CausalDecoder

MOST_FULL = 7 / 8  # of the cache's cells: below that it is closed up


@runtime_checkable
class Speaker(Protocol):
    """What is asked of a model that says words."""

    decoder: CausalDecoder
    end_id: int

    def embed_words(self, words: Tensor, values: Tensor) -> Tensor: ...

    def word_logits(self, states: Tensor) -> Tensor: ...

    def values_of(self, states: Tensor, words: Tensor) -> Tensor: ...


class CachedVoice:
    """The model's states, one new word a step.

    ``rows`` are where in the cache the cells lie that go on. Those that are done leave it once they
    are an eighth of it: to close up is to copy all that is kept.
    """

    def __init__(self, model: Speaker, ids: Tensor, values: Tensor, cells: Packing, more: int):
        self.model = model
        self.cache = WordCache(len(model.decoder.blocks), cells, cells.longest + more)
        self.state = model.decoder.prefill(model.embed_words(ids, values), cells, self.cache)
        self.rows = torch.arange(len(cells.lengths), device=ids.device)

    def say(self, words: Tensor, values: Tensor) -> Tensor:
        n_rows = len(self.cache.lengths)
        if len(self.rows) == n_rows:
            return self._step(words, values)
        every, bins = words.new_zeros(n_rows), values.new_zeros(n_rows)
        every[self.rows], bins[self.rows] = words, values
        return self._step(every, bins)[self.rows]

    def _step(self, words: Tensor, values: Tensor) -> Tensor:
        return self.model.decoder.step(self.model.embed_words(words, values), self.cache)

    def leave_out(self, is_done: Tensor) -> None:
        self.rows = self.rows[~is_done]
        if len(self.rows) <= MOST_FULL * len(self.cache.lengths):
            self.cache.keep(self.rows)
            self.rows = torch.arange(len(self.rows), device=self.rows.device)


class UncachedVoice:
    """The same states, all words gone through at every step."""

    def __init__(self, model: Speaker, ids: Tensor, values: Tensor, cells: Packing, more: int):
        self.model = model
        self.tokens = list(zip(ids.split(cells.lengths), values.split(cells.lengths), strict=True))
        self.state = self._states()

    def say(self, words: Tensor, values: Tensor) -> Tensor:
        self.tokens = [
            (torch.cat([ids, words[[i]]]), torch.cat([own, values[[i]]]))
            for i, (ids, own) in enumerate(self.tokens)
        ]
        return self._states()

    def leave_out(self, is_done: Tensor) -> None:
        done = is_done.tolist()
        self.tokens = [one for one, is_out in zip(self.tokens, done, strict=True) if not is_out]

    def _states(self) -> Tensor:
        ids, values = (torch.cat(part) for part in zip(*self.tokens, strict=True))
        counts = torch.tensor([len(own) for own, _ in self.tokens], device=ids.device)
        cells = Packing(bounds_of(counts))
        states = self.model.decoder(self.model.embed_words(ids, values), cells)
        return states[cells.offsets[1:].long() - 1]


def bounds_of(counts: Tensor) -> Int[Tensor, " bound"]:
    """Where cells of these lengths lie once packed."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
