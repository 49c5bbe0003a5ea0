"""Prompts -> the words that complete them.

in   a model that says words, packed prompts of any lengths, how words are chosen
out  Completions: words with values and probabilities, packed

A prompt is gone through once, and then each word once: keys and values of what was said are kept
(scfm.model.cache). Cells are put together by length, as many as a budget of cached tokens holds; a
cell that is done leaves. What a cell says hangs on its own prompt, its number and the seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scfm.batch import CellBatch
from scfm.model.attention import Packing
from scfm.model.sampling import Decoding, choose, open_words, probabilities_of, uniform_draws
from scfm.model.voice import CachedVoice, Speaker, UncachedVoice, bounds_of

CACHE_BYTES = 2**30  # of keys and values, where the caller names no budget


@dataclass(frozen=True)
class Completions:
    """What was said, by cell in the order of the prompts; on the model's device.

    Attributes
    ----------
    words
        Ids in the order they were said; the end word too, where it was.
    values
        Bin of each gene; 0 for other words.
    probabilities
        Of each word at its step, among the words open to it: before top_k, top_p and end_weight.
    offsets
        Range of each cell in ``words``.
    has_ended
        Whether the cell's last word is the end word.
    prompt_states
        State of each prompt's last word, which the first word was chosen from.
    states
        States at the first ``keep`` words of each cell; zero where a cell says fewer, and at the
        end word, after which nothing comes.
    candidates
        For each of the first ``keep`` steps whose words are constrained: probabilities of its
        allowed words, in their order; zero for cells that were done. None for other steps.
    """

    words: Int[Tensor, " word"]
    values: Float[Tensor, " word"]
    probabilities: Float[Tensor, " word"]
    offsets: Int[Tensor, " bound"]
    has_ended: Bool[Tensor, " cell"]
    prompt_states: Float[Tensor, "cell d"]
    states: Float[Tensor, "cell kept d"]
    candidates: tuple[Float[Tensor, "cell _"] | None, ...]


@torch.no_grad()
def complete(
    model: Speaker,
    prompts: CellBatch,
    how: Decoding,
    *,
    cells: Int[np.ndarray, " cell"] | None = None,
    max_tokens: int | None = None,
    keep: int = 0,
    cache: bool = True,
) -> Completions:
    """Say up to ``how.max_words`` words after each prompt.

    ``cells`` are the numbers that draws are made by, the prompts' ``cell_index`` unless given.
    ``max_tokens`` bounds the cached tokens of the cells that go together, at least one cell; None:
    as many as 1 GiB holds. ``keep`` is how many words' states and candidates are handed back.
    Without ``cache`` all is gone through again for every word: the same words, for comparison.
    """
    assert prompts.n_cells > 0, "there must be a prompt"
    numbers = _numbers(prompts) if cells is None else np.asarray(cells)
    lengths = Packing(prompts.offsets).lengths
    assert min(lengths) > 0, "a prompt ends in a task word"
    budget = _budget(model) if max_tokens is None else max_tokens
    groups = list(_groups(lengths, how.max_words, budget))
    # one after the other: a group's cache goes with it
    said = [
        _Group(model, prompts, group, numbers[group], how, keep, cache).run() for group in groups
    ]
    return _in_order(said, np.concatenate(groups))


@torch.no_grad()
def next_probabilities(
    model: Any,
    prompts: CellBatch,
    allowed: tuple[int, ...] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "cell allowed"]:
    """Probabilities of the word after each prompt among the allowed ones, in their order.

    Words of the prompt have 0; so has every word where no allowed one is left.
    """
    logits = model.word_logits(model(prompts).cell)
    said = _said(prompts.gene_ids, Packing(prompts.offsets), logits.shape[1])
    found = probabilities_of(logits, open_words(said, allowed), temperature)
    return (found if allowed is None else found[:, list(allowed)]).float()


def _numbers(prompts: CellBatch) -> np.ndarray:
    return torch.as_tensor(prompts.cell_index).cpu().numpy().astype(np.int64)


def _budget(model: Speaker) -> int:
    """Tokens whose keys and values fill CACHE_BYTES."""
    blocks: list[Any] = list(model.decoder.blocks)
    weight = blocks[0].qkv.weight
    return max(1, CACHE_BYTES // (2 * len(blocks) * weight.shape[1] * weight.element_size()))


def _groups(lengths: list[int], max_words: int, max_tokens: int) -> Iterator[np.ndarray]:
    """Cell numbers, of like length together; a group's longest counts for each of its cells."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        last = first + 1
        while (
            last < len(order)
            and (lengths[order[last]] + max_words) * (last + 1 - first) <= max_tokens
        ):
            last += 1
        yield order[first:last]
        first = last


def _said(words: Tensor, cells: Packing, n_words: int) -> Bool[Tensor, "cell word"]:
    said = torch.zeros(len(cells.lengths), n_words, dtype=torch.bool, device=words.device)
    said[cells.cell_of, words] = True
    return said


class _Group:
    """Cells that go through the model together."""

    def __init__(
        self,
        model: Speaker,
        prompts: CellBatch,
        group: np.ndarray,
        numbers: np.ndarray,
        how: Decoding,
        keep: int,
        cache: bool,
    ):
        self.model, self.how, self.keep, self.numbers = model, how, keep, numbers
        ids, values, self.cells = _chosen(prompts, group)
        voice = CachedVoice if cache else UncachedVoice
        self.voice = voice(model, ids, values, self.cells, how.max_words)
        self.prompt = ids
        self.steps: list[tuple[Tensor, ...]] = []  # cell, word, value, probability
        self.candidates: list[Tensor | None] = []

    def run(self) -> Completions:
        state = prompt_states = self.voice.state
        live = torch.arange(len(state), device=state.device)
        states = state.new_zeros(len(state), self.keep, state.shape[1])
        last = self.prompt[self.cells.offsets[1:].long() - 1]
        said: Tensor | None = None
        for step in range(self.how.max_words):
            logits = self.model.word_logits(state)
            if said is None:
                said = self._prompt_words(logits.shape[1], last)
            probabilities = self._probabilities(logits, said, last, step)
            self._keep_candidates(probabilities, live, step, len(prompt_states))
            words = self._choose(probabilities, live, step)
            values = self.model.values_of(state, words)
            has_word = probabilities.any(1)
            found = probabilities.gather(1, words[:, None])[:, 0].float()
            self.steps.append(tuple(x[has_word] for x in (live, words, values, found)))
            is_last = step + 1 == self.how.max_words
            goes_on = has_word & (words != self.model.end_id)
            if (is_last and step >= self.keep) or not goes_on.any():
                break
            said = said.scatter(1, last[:, None], True)[goes_on]
            live, last = live[goes_on], words[goes_on]
            if not goes_on.all():
                self.voice.leave_out(~goes_on)
            state = self.voice.say(last, values[goes_on])
            if step < self.keep:
                states[live, step] = state
        return self._packed(prompt_states, states)

    def _prompt_words(self, n_words: int, last: Tensor) -> Tensor:
        """All words of the prompt; the last only where it was there before, or may not return."""
        is_before = torch.ones_like(self.prompt, dtype=torch.bool)
        is_before[self.cells.offsets[1:].long() - 1] = False
        said = torch.zeros(len(last), n_words, dtype=torch.bool, device=last.device)
        said[self.cells.cell_of[is_before], self.prompt[is_before]] = True
        return said

    def _probabilities(self, logits: Tensor, said: Tensor, last: Tensor, step: int) -> Tensor:
        if self.how.repeats == "never":
            said = said.scatter(1, last[:, None], True)
        is_open = open_words(said, self.how.allowed_at(step))
        return probabilities_of(logits, is_open, self.how.temperature)

    def _keep_candidates(
        self, probabilities: Tensor, live: Tensor, step: int, n_cells: int
    ) -> None:
        if step >= self.keep:
            return
        allowed = self.how.allowed_at(step)
        if allowed is None:
            self.candidates.append(None)
            return
        found = probabilities.new_zeros(n_cells, len(allowed), dtype=torch.float32)
        found[live] = probabilities[:, list(allowed)].float()
        self.candidates.append(found)

    def _choose(self, probabilities: Tensor, live: Tensor, step: int) -> Tensor:
        draws = uniform_draws(self.how.seed, self.numbers[live.cpu().numpy()], step)
        at = torch.from_numpy(draws).to(probabilities.device)
        words = choose(probabilities, at, self.how, self.model.end_id)
        return words.clamp(max=probabilities.shape[1] - 1)  # past the end where no word is open

    def _packed(self, prompt_states: Tensor, states: Tensor) -> Completions:
        cell, words, values, found = (
            torch.cat([step[part] for step in self.steps]) for part in range(4)
        )
        order = cell.argsort(stable=True)
        n_cells = len(prompt_states)
        counts = torch.bincount(cell, minlength=n_cells)
        has_ended = torch.zeros(n_cells, dtype=torch.bool, device=cell.device)
        has_ended[cell[words == self.model.end_id]] = True
        return Completions(
            *(x[order] for x in (words, values, found)),
            offsets=bounds_of(counts),
            has_ended=has_ended,
            prompt_states=prompt_states,
            states=states,
            candidates=tuple(self.candidates),
        )


def _chosen(prompts: CellBatch, group: np.ndarray) -> tuple[Tensor, Tensor, Packing]:
    """The prompts of a group: ids, values, and where each lies."""
    lengths = Packing(prompts.offsets).lengths
    ids, values = prompts.gene_ids.split(lengths), prompts.values.split(lengths)
    counts = torch.tensor([lengths[i] for i in group], device=prompts.gene_ids.device)
    return (
        torch.cat([ids[i] for i in group]),
        torch.cat([values[i] for i in group]),
        Packing(bounds_of(counts)),
    )


def _in_order(parts: list[Completions], cells: np.ndarray) -> Completions:
    """The groups' answers, in the order of the prompts."""
    place = torch.from_numpy(np.argsort(cells)).to(parts[0].words.device)
    counts = torch.cat([part.offsets.diff().long() for part in parts])
    words, values, found = (
        torch.cat([getattr(part, name) for part in parts]).split(counts.tolist())
        for name in ("words", "values", "probabilities")
    )
    by_cell = place.tolist()
    n_kept = max(len(part.candidates) for part in parts)
    return Completions(
        *(torch.cat([x[i] for i in by_cell]) for x in (words, values, found)),
        offsets=bounds_of(counts[place]),
        has_ended=torch.cat([part.has_ended for part in parts])[place],
        prompt_states=torch.cat([part.prompt_states for part in parts])[place],
        states=torch.cat([part.states for part in parts])[place],
        candidates=tuple(_candidates(parts, step, place) for step in range(n_kept)),
    )


def _candidates(parts: list[Completions], step: int, place: Tensor) -> Tensor | None:
    """A step's candidates; a group that was done before has none, and so zeros."""
    there = [part.candidates[step] for part in parts if step < len(part.candidates)]
    if there[0] is None:
        return None
    width = there[0].shape[1]
    found = [
        part.candidates[step]
        if step < len(part.candidates)
        else there[0].new_zeros(len(part.has_ended), width)
        for part in parts
    ]
    return torch.cat([one for one in found if one is not None])[place]
