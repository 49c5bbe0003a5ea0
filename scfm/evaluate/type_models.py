"""Models as methods of an evaluation: by reference, untrained, by a head of their own, by words.

in   a CellModel and cells; what each says is worked out once for all cells
out  Methods and the Embedded or TypeProbabilities they look up in Cells

A cell's embedding hangs on no other cell, so folds cut what was embedded once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from scfm.evaluate.type_methods import Cells, Embedded, Fitted, Reference
from scfm.model.base import CellModel
from scfm.model.scmulan import ScmulanModel
from scfm.tasks.calibration import Calibration
from scfm.tasks.classification import classify_cells
from scfm.tasks.embedding import EmbeddingConfig, embed_cells
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.type_calls import TypeLogits
from scfm.tasks.type_calls import probabilities as softmax
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tasks.word_annotation import TypeWords, annotate_cells
from scfm.tokens.pool import PoolMember

UNTRAINED_NOTE = "the same architecture with random weights, before any training"


@dataclass(frozen=True)
class ByNeighbours:
    """Zero-shot: the vote of the nearest cells learned from, in a model's embedding.

    ``embedding`` names what is looked up in ``Cells.embedded``.
    """

    key: str
    name: str
    note: str
    embedding: str
    kind: Literal["model", "untrained", "baseline"] = "model"
    config: NeighbourConfig = field(default_factory=NeighbourConfig)
    own_calibration: ProbabilityCalibration | None = None

    def fit(self, reference: Reference) -> Fitted:
        seen, labels = reference.cells.embedded[self.embedding], reference.labels
        voters = NeighbourClassifier.fit(seen.vectors, labels, self.config, depth=seen.depth)
        return _Voters(voters, self.embedding)


@dataclass(frozen=True)
class _Voters:
    voters: NeighbourClassifier
    embedding: str

    def predict(self, cells: Cells) -> TypeProbabilities:
        seen = cells.embedded[self.embedding]
        return self.voters.probabilities(seen.vectors, seen.depth)


@dataclass(frozen=True)
class Given:
    """A method that learned elsewhere: its answers are in ``Cells.given`` under its key."""

    key: str
    name: str
    note: str
    own_calibration: ProbabilityCalibration | None
    kind: Literal["model", "untrained", "baseline"] = "model"

    def fit(self, reference: Reference) -> Fitted:
        return _Given(self.key)


@dataclass(frozen=True)
class _Given:
    key: str

    def predict(self, cells: Cells) -> TypeProbabilities:
        return cells.given[self.key]


def knows_words(model: CellModel) -> bool:
    """Whether a model has words for cell types."""
    return isinstance(model, ScmulanModel) and bool(model.types)


def words_of(
    model: CellModel,
    member: PoolMember,
    mapping: Mapping[str, str],
    *,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TypeProbabilities:
    """What a model that knows type words says of every cell of a source, in the judge's labels.

    ``mapping`` puts words in terms of the labels; a word it does not name stands for itself. Of a
    coarse and a fine word the fine ones share what their coarse word has; the other coarse words
    keep theirs. Raises ConfigError for a model without type words.
    """
    levels = [level.names for level in TypeWords.of(model).levels]
    temperature, parts = Calibration.of(model).temperature, []
    for found in annotate_cells(model, member, batch_size=batch_size):
        parts.append(named_words(found.logits, levels, mapping, temperature))
        on_progress(int(found.cell_index[-1]) + 1, member.source.n_cells)
    return TypeProbabilities.joined(parts)


def classified(
    model: CellModel,
    member: PoolMember,
    mapping: Mapping[str, str],
    *,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TypeProbabilities:
    """What a fine-tuned model says of every cell of a source, tempered, in the judge's labels.

    ``mapping`` puts its types in terms of the labels; one it does not name stands for itself.
    Raises ConfigError for a model without a classifier.
    """
    temperature, parts = Calibration.of(model).temperature, []
    for found in classify_cells(model, member, batch_size=batch_size):
        assert model.classifier is not None
        names = [model.classifier.spec.labels]
        parts.append(named_words(TypeLogits((found.scores,)), names, mapping, temperature))
        on_progress(int(found.cell_index[-1]) + 1, member.source.n_cells)
    return TypeProbabilities.joined(parts)


def named_words(
    logits: TypeLogits,
    levels: Sequence[Sequence[str]],
    mapping: Mapping[str, str],
    temperature: float,
) -> TypeProbabilities:
    """Scores of words as probabilities of labels; words of one label are added up."""
    shares = [softmax(level, temperature) for level in logits.levels]
    if len(shares) == 2:
        coarse = logits.levels[0].argmax(1) if logits.coarse is None else logits.coarse
        cells = np.arange(len(coarse))
        shares[1] = shares[1] * shares[0][cells, coarse][:, None]
        shares[0][cells, coarse] = 0.0
    labels = [mapping.get(word) or word for words in levels for word in words]
    classes = sorted(set(labels))
    place = {name: at for at, name in enumerate(classes)}
    total = np.zeros((len(logits), len(classes)))
    for at, share in zip([place[name] for name in labels], np.hstack(shares).T, strict=True):
        total[:, at] += share
    total /= total.sum(1, keepdims=True)
    return TypeProbabilities(tuple(classes), total, np.zeros(len(total), dtype=bool))


def embed_all(
    model: CellModel,
    member: PoolMember,
    *,
    pooling: str | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Every cell of a source, in file order."""
    vectors, depth = [], []
    for found in embed_cells(
        model, member, EmbeddingConfig.of(model, pooling), batch_size=batch_size
    ):
        vectors.append(found.embedding)
        depth.append(found.depth)
        on_progress(int(found.cell_index[-1]) + 1, member.source.n_cells)
    return Embedded(np.concatenate(vectors), np.concatenate(depth))


def untrained(model: CellModel, seed: int) -> CellModel:
    """The same architecture and vocabulary, on the same device, with weights as first drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.config, model.vocab)
    return fresh.to(model.device).eval()  # pyright: ignore[reportArgumentType]
