"""What a gene put into cells' sentences, or taken out, does to a model's types and embedding.

in   a model with type words, an opened input, genes
out  of every chunk of cells and every gene: the shift of the types' probabilities and of the state

Every cell keeps the coarse word that was said of it unperturbed, so that what is compared before
and after is the same probability, and the same place in the sentence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scfm.batch import CellBatch
from scfm.data.counts import CountRows
from scfm.model.scmulan import ScmulanModel
from scfm.tasks.embedding import CHUNK_CELLS, MOST_TOKENS, batches
from scfm.tasks.type_calls import TypeLogits, call_types, probabilities
from scfm.tasks.word_annotation import SaidTypes, TypeWords, say_types
from scfm.tokens.pool import PoolMember
from scfm.tokens.prompt_edits import with_genes, with_words, without_genes

How = Literal["remove", "express"]


@dataclass(frozen=True)
class GeneEdit:
    """What is done to a cell's sentence.

    Attributes
    ----------
    how
        "remove": the gene is not said. "express": it is said with ``value``, in its place.
    value
        A value bin, 1 to the model's ``n_bins``; that of the cell's most expressed gene.
    """

    how: How
    value: int


class GeneShift(NamedTuple):
    """What one gene's edit did to some cells; zero (cosine 1) where it changed nothing.

    ``types`` are differences of probability, (cell, word) for each level; of the fine words it is
    the probability of the cell's coarse word and the fine one together.
    """

    is_changed: Bool[np.ndarray, " cell"]
    types: tuple[Float[np.ndarray, "cell _"], ...]
    has_other_type: Bool[np.ndarray, " cell"]
    distance: Float[np.ndarray, " cell"]
    cosine: Float[np.ndarray, " cell"]


class PerturbedChunk(NamedTuple):
    """Some cells: the word each was called by, and the shifts, one a gene."""

    cell_index: Int[np.ndarray, " cell"]
    called: Int[np.ndarray, " cell"]  # position among the finest words
    genes: list[GeneShift]


def perturb_cells(
    model: ScmulanModel,
    member: PoolMember,
    genes: Sequence[Sequence[int]],
    edit: GeneEdit,
    *,
    temperature: float = 1.0,
    pooling: str = "type",
    batch_size: int = 64,
) -> Iterator[PerturbedChunk]:
    """Edit each of ``genes`` (token ids that go together) in all cells of a source, in file order.

    ``pooling`` is "type" (the state at the coarse word, or the only one) or "prompt" (at <PCT>).
    """
    types, worker = TypeWords.of(model), _Worker(model, member, edit, temperature, pooling)
    model.eval()
    for rows in member.source.chunks(CHUNK_CELLS):
        for first, last in batches(rows, batch_size, MOST_TOKENS[model.device.type == "cpu"]):
            yield worker.chunk(types, rows.part(first, last), genes)


@dataclass(frozen=True)
class _Seen:
    """Cells' types and states, under a given coarse word."""

    shares: tuple[np.ndarray, ...]
    fine: np.ndarray  # the likeliest
    coarse: np.ndarray  # the likeliest, whatever the given one
    states: np.ndarray

    def of(self, chosen: np.ndarray) -> "_Seen":
        shares = tuple(level[chosen] for level in self.shares)
        return _Seen(shares, self.fine[chosen], self.coarse[chosen], self.states[chosen])


@dataclass(frozen=True)
class _Worker:
    model: ScmulanModel
    member: PoolMember
    edit: GeneEdit
    temperature: float
    pooling: str

    @torch.inference_mode()
    def chunk(
        self, types: TypeWords, rows: CountRows, genes: Sequence[Sequence[int]]
    ) -> PerturbedChunk:
        prompts = self.member.tokenizer.shown(rows)
        state, said = say_types(self.model, types, self._on_device(prompts))
        coarse = said.words, said.values
        before = self._seen(types, state, said)
        shifts = [self._shift(types, prompts, coarse, before, ids) for ids in genes]
        return PerturbedChunk(rows.cell_index, before.fine, shifts)

    def _shift(
        self,
        types: TypeWords,
        prompts: CellBatch,
        coarse: tuple[np.ndarray, np.ndarray],
        before: _Seen,
        genes: Sequence[int],
    ) -> GeneShift:
        edited, is_changed = self._edited(prompts, genes)
        n_cells = prompts.n_cells
        nothing = [np.zeros(level.shape) for level in before.shares]
        other, distance = np.zeros(n_cells, bool), np.zeros(n_cells)
        cosine = np.ones(n_cells)
        if is_changed.any():
            was = before.of(is_changed)
            now = self._after(types, edited, coarse[0][is_changed], coarse[1][is_changed])
            for zero, then, since in zip(nothing, was.shares, now.shares, strict=True):
                zero[is_changed] = since - then
            other[is_changed] = (now.fine != was.fine) | (now.coarse != was.coarse)
            distance[is_changed] = np.linalg.norm(now.states - was.states, axis=1)
            cosine[is_changed] = _cosine(now.states, was.states)
        return GeneShift(is_changed, tuple(nothing), other, distance, cosine)

    def _edited(self, prompts: CellBatch, genes: Sequence[int]) -> tuple[CellBatch, np.ndarray]:
        if self.edit.how == "remove":
            return without_genes(prompts, genes)
        tokenizer = self.member.tokenizer
        descending = tokenizer.config.prompt_order == "reversed"
        return with_genes(prompts, genes, self.edit.value, tokenizer.vocab, descending=descending)

    def _after(
        self, types: TypeWords, prompts: CellBatch, words: np.ndarray, values: np.ndarray
    ) -> _Seen:
        """The edited cells, the words said of them before the edit put behind their prompts."""
        found = self.model(self._on_device(with_words(prompts, words, values)))
        last = found.offsets[1:].long() - 1
        said = SaidTypes(words, values, found.tokens[last])
        return self._seen(types, found.tokens[last - 1], said)

    def _seen(self, types: TypeWords, prompt: Tensor, said: SaidTypes) -> _Seen:
        logits = types.logits(self.model, prompt, said)
        states = said.states if self.pooling == "type" else prompt
        shares = [probabilities(logits.levels[0], self.temperature)]
        if len(types) > 1:
            given = np.searchsorted(types.levels[0].ids, said.words)
            sure = shares[0][np.arange(len(given)), given]
            shares.append(sure[:, None] * probabilities(logits.levels[1], self.temperature))
        calls = call_types(TypeLogits(logits.levels))
        states = states.double().cpu().numpy()
        return _Seen(tuple(shares), calls.fine, calls.coarse, states)

    def _on_device(self, cells: CellBatch) -> CellBatch:
        return cells.map(lambda x: torch.from_numpy(x).to(self.model.device))


def _cosine(
    a: Float[np.ndarray, "cell d"], b: Float[np.ndarray, "cell d"]
) -> Float[np.ndarray, " cell"]:
    """Cosines of rows; the states of a LayerNorm are never zero."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
