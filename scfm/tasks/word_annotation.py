"""Cells of any source -> what a model that knows words says of their types, as a stream.

in   a model with type words and an opened input
out  WordedCells, a chunk at a time; memory does not grow with the file
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scfm.batch import CellBatch
from scfm.data.counts import CountRows
from scfm.errors import ConfigError, ModelError
from scfm.model.base import CellModel
from scfm.model.generate import complete
from scfm.model.sampling import Decoding
from scfm.model.scmulan import ScmulanModel
from scfm.tasks.doubts import Doubts
from scfm.tasks.embedding import CHUNK_CELLS, MOST_TOKENS, batches
from scfm.tasks.type_calls import TypeLogits
from scfm.tokens.pool import PoolMember
from scfm.tokens.sentence_config import NO_WORD
from scfm.tokens.target_depth import parse_target_depth
from scfm.tokens.words import Words

POOLINGS = ("type", "prompt")  # the embeddings that annotation has at hand


@dataclass(frozen=True)
class TypeLevel:
    """The words of one type position: their obs column, token ids and texts."""

    column: str
    ids: Int[np.ndarray, " word"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class TypeWords:
    """How a model says a cell's type: one word, or a coarse and a fine one.

    Attributes
    ----------
    levels
        The words of each position, in the order of their ids.
    end_id
        The end word: after a coarse word that is the finest too, nothing more is said.
    """

    levels: tuple[TypeLevel, ...]
    end_id: int

    @classmethod
    def of(cls, model: CellModel) -> "TypeWords":
        """Raises ConfigError for a model that does not know type words."""
        if not isinstance(model, ScmulanModel) or not model.types:
            what = f"This model (family {model.config.model_type}) knows no words for cell types"
            if isinstance(model, ScmulanModel):
                what = "This model was trained without type words (tokens.types is empty)"
            raise ConfigError(
                f"{what}, so it needs labelled cells to go by: reference=..., label_key=... "
                "(scfm annotate IN --model MODEL --reference REF.h5ad --label COLUMN --out OUT)."
            )
        if len(model.types) > 2:
            raise ConfigError(
                f"This model says {len(model.types)} type words; scfm annotates by one, or "
                "by a coarse and a fine one. Ask for the words themselves with scfm.tl.generate."
            )
        assert model.vocab is not None, "models are loaded or built with a vocabulary"
        words = Words(model.vocab, model.types)
        levels = tuple(
            TypeLevel(
                column,
                np.array(words.type_ids(column), dtype=np.int64),
                tuple(words.text_of(i) for i in words.type_ids(column)),
            )
            for column in model.types
        )
        return cls(levels, words.end_id)

    def __len__(self) -> int:
        return len(self.levels)

    def names_type(self, level: int) -> Bool[np.ndarray, " word"]:
        """Which words of a level name a type; "Unclassified", a word of the release, does not."""
        silent = {text.casefold() for text in NO_WORD}
        return np.array([name.casefold() not in silent for name in self.levels[level].names])

    def logits(
        self, model: ScmulanModel, prompt: Float[Tensor, "cell d"], said: "SaidTypes | None" = None
    ) -> TypeLogits:
        """Scores of the words of each position, from the states at <PCT> and at the coarse word."""
        first = _scores(model, prompt, self.levels[0].ids)
        if len(self) == 1:
            return TypeLogits((first,))
        assert said is not None, "the fine words' scores are those after a coarse word"
        coarse = np.searchsorted(self.levels[0].ids, said.words)
        return TypeLogits((first, self._after(model, said)), coarse)

    def _after(self, model: ScmulanModel, said: "SaidTypes") -> Float[np.ndarray, "cell word"]:
        """The fine words' scores; a coarse word said before has the end word's, as it ends there.

        A word is said once: that the fine type is the coarse one is said by saying no more.
        """
        fine = self.levels[1].ids
        scores = _scores(model, said.states, np.append(fine, self.end_id))
        place = np.searchsorted(fine, said.words)
        is_fine = fine[np.minimum(place, len(fine) - 1)] == said.words
        cells = np.flatnonzero(is_fine)
        scores[cells, place[cells]] = scores[cells, -1]
        return scores[:, :-1]


class SaidTypes(NamedTuple):
    """The coarse word of each cell, the value it was said with, and the state at it."""

    words: Int[np.ndarray, " cell"]
    values: Float[np.ndarray, " cell"]
    states: Float[Tensor, "cell d"]


class WordedCells(NamedTuple):
    """Some cells: the scores of type words, an embedding, log10 of the counts, and genes named."""

    cell_index: Int[np.ndarray, " cell"]
    logits: TypeLogits
    embedding: Float[np.ndarray, "cell d"]
    depth: Float[np.ndarray, " cell"]
    n_genes: Int[np.ndarray, " cell"]


def annotate_cells(
    model: CellModel, member: PoolMember, *, pooling: str = "type", batch_size: int = 64
) -> Iterator[WordedCells]:
    """Ask the model for the types of all cells of a source, in file order.

    ``pooling`` is "type" (the state at the first type word) or "prompt" (the state at <PCT>).
    A cell's result does not depend on ``batch_size`` beyond rounding. Warns once of each kind of
    doubtful cell. Raises ConfigError for a model without type words, ModelError for one whose
    scores are not finite.
    """
    types = TypeWords.of(model)
    assert isinstance(model, ScmulanModel)
    doubts = Doubts(model, member, parse_target_depth("source"))
    model.eval()
    for rows in member.source.chunks(CHUNK_CELLS):
        doubts.see_rows(rows)
        found = [
            _annotate_rows(model, types, member, rows.part(first, last), pooling)
            for first, last in batches(rows, batch_size, MOST_TOKENS[model.device.type == "cpu"])
        ]
        cells = _joined(found)
        if not np.isfinite(cells.embedding).all():
            raise ModelError("The model's states are NaN or infinite. Take another model.")
        doubts.see(cells.cell_index, cells.depth, cells.n_genes)
        yield cells
    doubts.say()


def say_types(
    model: ScmulanModel, types: TypeWords, prompts: CellBatch
) -> tuple[Float[Tensor, "cell d"], SaidTypes]:
    """Let every cell say its first type word: the states at <PCT>, and what was said.

    The likeliest, constrained to the words of its position.
    """
    how = Decoding(max_words=1, top_k=1, allowed=(tuple(types.levels[0].ids.tolist()),))
    done = complete(model, prompts, how, keep=1)
    words, values = done.words.cpu().numpy(), done.values.cpu().numpy()
    return done.prompt_states, SaidTypes(words, values, done.states[:, 0])


def _annotate_rows(
    model: ScmulanModel, types: TypeWords, member: PoolMember, rows: CountRows, pooling: str
) -> WordedCells:
    prompts = member.tokenizer.shown(rows)
    with torch.inference_mode():
        shown = prompts.map(lambda x: torch.from_numpy(x).to(model.device))
        prompt, said = say_types(model, types, shown)
        logits = types.logits(model, prompt, said)
    embedding = said.states if pooling == "type" else prompt
    return WordedCells(
        rows.cell_index,
        logits,
        embedding.float().cpu().numpy(),
        prompts.source_depth,
        np.diff(prompts.offsets) - 1,
    )


def _scores(
    model: ScmulanModel, states: Float[Tensor, "cell d"], ids: Int[np.ndarray, " word"]
) -> Float[np.ndarray, "cell word"]:
    """Logits of some words."""
    scores = model.word_logits(states)[:, torch.from_numpy(ids).to(states.device)]
    return scores.float().cpu().numpy()


def _joined(parts: list[WordedCells]) -> WordedCells:
    index, logits, *arrays = zip(*parts, strict=True)
    return WordedCells(
        np.concatenate(index), TypeLogits.joined(logits), *map(np.concatenate, arrays)
    )
