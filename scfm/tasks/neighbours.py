"""Labels for query cells from their nearest reference cells. NumPy only.

in   embeddings of labelled reference cells; embeddings of query cells
out  NeighbourPrediction: a label for every cell, how sure, the runner-up, and who is unlike all;
     TypeProbabilities; the neighbours themselves
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num, Shaped

from scfm.errors import InputError, LabelError
from scfm.tasks.directions import DepthSlope, Frame, two_dimensional, unit_vectors
from scfm.tasks.nearest import SEARCHES, Search, Searching, nearest, searched
from scfm.tasks.type_probabilities import TypeProbabilities

MAX_SELF_CHECKED = 10_000  # reference cells that set the threshold for "unknown"


@dataclass(frozen=True, kw_only=True)
class NeighbourConfig:
    """How neighbours vote.

    Attributes
    ----------
    n_neighbours
        Reference cells that vote; all of them where there are fewer.
    min_confidence
        Below this share of the vote a cell is unknown.
    unknown_percentile
        A cell is also unknown where its mean cosine to its neighbours lies below this percentile
        of the same figure among reference cells (each left out of its own neighbours). 0: never.
    min_cells
        Labels with fewer reference cells are left out: they could hardly win a vote.
    standardise
        Compare directions after giving each dimension mean 0 and variance 1 in the reference. In
        embeddings of log-normalised values one direction, sequencing depth, holds most of the
        variance and would decide who is near. Whitening in full was worse: it blows up what
        tells the reference's libraries apart (docs/LOG.md, 2026-11-20).
    adjust_depth
        Where depths are given: first take out what depth does to the embedding of cells of one
        label, so that a query sequenced deeper than the reference is not led astray by it.
    search
        "exact", "approximate", or "auto": exact unless the reference is very large
        (`scfm.tasks.nearest`).
    """

    n_neighbours: int = 15
    min_confidence: float = 0.5
    unknown_percentile: float = 1.0
    min_cells: int = 3
    standardise: bool = True
    adjust_depth: bool = True
    search: Searching = "auto"

    def __post_init__(self) -> None:
        if self.n_neighbours < 1:
            raise ValueError(f"n_neighbours must be at least 1, got {self.n_neighbours}")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must lie in [0, 1], got {self.min_confidence}")
        if not 0 <= self.unknown_percentile < 100:
            raise ValueError(
                f"unknown_percentile must lie in [0, 100), got {self.unknown_percentile}"
            )
        if self.min_cells < 1:
            raise ValueError(f"min_cells must be at least 1, got {self.min_cells}")
        if self.search not in SEARCHES:
            raise ValueError(f"search is '{self.search}'; known are {', '.join(SEARCHES)}")


@dataclass(frozen=True)
class NeighbourPrediction:
    """What the neighbours say of each query cell.

    Attributes
    ----------
    label
        The label with most votes, also where ``is_unknown``.
    confidence
        Its share of the neighbours' distance-weighted votes, in [0, 1].
    runner_up
        The label with the second most votes; "" where all neighbours agree.
    similarity
        Mean cosine to the neighbours.
    is_unknown
        Too few votes, or too far from all reference cells.
    """

    label: Shaped[np.ndarray, " cell"]
    confidence: Float[np.ndarray, " cell"]
    runner_up: Shaped[np.ndarray, " cell"]
    similarity: Float[np.ndarray, " cell"]
    is_unknown: Bool[np.ndarray, " cell"]

    def labels(self, unknown: str = "unknown") -> Shaped[np.ndarray, " cell"]:
        """``label``, and ``unknown`` where a cell is that."""
        return np.where(self.is_unknown, unknown, self.label).astype(object)


class Support(NamedTuple):
    """Each query cell's neighbours, nearest first, their cosines, and who has no direction.

    ``neighbour`` numbers the cells that vote; those of a cell without direction mean nothing.
    """

    neighbour: Int[np.ndarray, "cell k"]
    cosine: Float[np.ndarray, "cell k"]
    is_zero: Bool[np.ndarray, " cell"]


@dataclass(frozen=True)
class NeighbourClassifier:
    """Reference cells ready to vote. Made by ``NeighbourClassifier.fit``.

    Attributes
    ----------
    depth_slope
        What depth does within a label; None where the reference's depths were not given.
    frame
        How embeddings are moved and scaled before their directions are taken.
    directions
        Unit vectors of the reference cells, in the order of their labels.
    codes
        Position of each one's label in ``classes``.
    rows
        Position of each one among the cells that ``fit`` was given.
    min_similarity
        Mean cosine below which a query cell is unknown.
    dropped
        Reference cells left out, by reason.
    """

    config: NeighbourConfig
    classes: tuple[str, ...]
    depth_slope: DepthSlope | None
    frame: Frame
    directions: Float[np.ndarray, "reference d"] = field(repr=False)
    codes: Int[np.ndarray, " reference"] = field(repr=False)
    rows: Int[np.ndarray, " reference"] = field(repr=False)
    min_similarity: float
    dropped: Mapping[str, int]

    @classmethod
    def fit(
        cls,
        embedding: Num[np.ndarray, "..."],
        labels: Shaped[np.ndarray, " reference"],
        config: NeighbourConfig | None = None,
        *,
        depth: Float[np.ndarray, " reference"] | None = None,
    ) -> "NeighbourClassifier":
        """Keep the reference cells that can vote and find out how close they lie to each other.

        ``embedding`` is (reference cells, dimensions), ``labels`` has one entry a reference cell,
        ``depth`` is log10 of their total counts; with it, ``predict`` needs the query's.
        Raises LabelError where no labelled cell is left, InputError where the embedding has NaN.
        """
        config = config or NeighbourConfig()
        embedding, slope = np.asarray(embedding), None
        if depth is not None and config.adjust_depth and len(labels) == len(embedding):
            slope = DepthSlope.of(two_dimensional(embedding), labels, depth)
            embedding = slope.removed(embedding, depth)
        frame = Frame.of(embedding) if config.standardise else Frame.unchanged(embedding)
        directions, is_zero = unit_vectors(frame.apply(embedding), "the reference")
        if len(labels) != len(directions):
            raise InputError(
                f"the reference has {len(directions):,} embedded cells and {len(labels):,} labels; "
                "wanted one label a cell."
            )
        keep, names, dropped = _voters(labels, is_zero, config.min_cells)
        classes, codes = np.unique(names[keep].astype(str), return_inverse=True)
        # In the order of labels, a tie in cosine falls to the first label, not the file's first.
        order = np.argsort(codes, kind="stable")
        directions, codes = directions[keep][order], codes[order]
        return cls(
            config=config,
            classes=tuple(classes.tolist()),
            depth_slope=slope,
            frame=frame,
            directions=directions,
            codes=codes,
            rows=np.flatnonzero(keep)[order],
            min_similarity=_own_similarity(directions, config),
            dropped=dropped,
        )

    def predict(
        self,
        embedding: Num[np.ndarray, "cell d"],
        depth: Float[np.ndarray, " cell"] | None = None,
    ) -> NeighbourPrediction:
        """Ask the neighbours of each query cell. A cell's result does not depend on the others.

        A cell whose embedding is all zeros has no direction, so no neighbours: it is unknown, with
        confidence 0. Raises InputError for NaN or another number of dimensions.
        """
        neighbour, cosine, is_zero = self.support(embedding, depth)
        votes = self._votes(neighbour, cosine)
        cells = np.arange(len(votes))
        first = votes.argmax(1)  # argmax takes the first of equals: ties fall to label order
        confidence = np.where(is_zero, 0.0, votes[cells, first])
        votes[cells, first] = 0.0
        second = votes.argmax(1)
        names = np.array(self.classes, dtype=object)
        similarity = np.where(is_zero, 0.0, cosine.mean(1))
        return NeighbourPrediction(
            label=names[first],
            confidence=confidence,
            runner_up=np.where(votes[cells, second] > 0, names[second], "").astype(object),
            similarity=similarity,
            is_unknown=is_zero
            | (confidence < self.config.min_confidence)
            | (similarity < self.min_similarity),
        )

    def probabilities(
        self,
        embedding: Num[np.ndarray, "cell d"],
        depth: Float[np.ndarray, " cell"] | None = None,
    ) -> TypeProbabilities:
        """The same answer as every label's share of the vote; outliers are too far from all.

        One more vote is shared by all classes: fifteen cells of one mind are no certainty, and a
        temperature cannot mend a probability of 0. Cells whose embedding is all zeros have no
        probabilities. Novelty is (1 - mean cosine) / 2.
        """
        return self.answer(self.support(embedding, depth))

    def answer(self, support: Support) -> TypeProbabilities:
        """`probabilities` of cells whose neighbours are known."""
        neighbour, cosine, is_zero = support
        k = neighbour.shape[1]
        votes = (self._votes(neighbour, cosine) * k + 1 / len(self.classes)) / (k + 1)
        votes = np.where(is_zero[:, None], 0.0, votes / votes.sum(1, keepdims=True))
        similarity = np.where(is_zero, -1.0, cosine.mean(1))
        return TypeProbabilities(
            classes=self.classes,
            probabilities=votes,
            is_outlier=is_zero | (similarity < self.min_similarity),
            novelty=(1.0 - similarity) / 2,
        )

    def support(
        self,
        embedding: Num[np.ndarray, "cell d"],
        depth: Float[np.ndarray, " cell"] | None = None,
    ) -> Support:
        """The neighbours of each query cell. A cell's do not depend on the other cells."""
        directions, is_zero = self.directions_of(embedding, depth)
        return Support(*self._search.nearest(directions, self.config.n_neighbours), is_zero)

    def directions_of(
        self,
        embedding: Num[np.ndarray, "cell d"],
        depth: Float[np.ndarray, " cell"] | None = None,
    ) -> tuple[Float[np.ndarray, "cell d"], Bool[np.ndarray, " cell"]]:
        """Unit vectors of query cells as the reference's are, and which cells have no direction."""
        n_dimensions = np.shape(embedding)[1]
        if n_dimensions != len(self.frame.mean):
            raise InputError(
                f"the query's embedding has {n_dimensions} dimensions, the reference's "
                f"{len(self.frame.mean)}. Embed both with the same model."
            )
        if self.depth_slope is not None:
            assert depth is not None, "a reference fitted with depths wants the query's"
            embedding = self.depth_slope.removed(embedding, depth)
        return unit_vectors(self.frame.apply(embedding), "the query")

    @cached_property
    def _search(self) -> Search:
        return searched(self.directions, self.config.search)

    def _votes(
        self, neighbour: Int[np.ndarray, "cell k"], cosine: Float[np.ndarray, "cell k"]
    ) -> Float[np.ndarray, "cell label"]:
        """Share of the vote of each label. A vote weighs exp(-(d / d_k)^2), d the cosine distance.

        The scale is the cell's own k-th neighbour's distance, so that weights lie between 1 and
        1 / e and neither an exact duplicate nor a shift between studies decides alone.
        """
        distance = 1.0 - cosine
        furthest = distance[:, -1:]
        weight = np.exp(-((distance / np.where(furthest > 0, furthest, 1.0)) ** 2))
        n_cells, n_classes = len(cosine), len(self.classes)
        slot = np.arange(n_cells)[:, None] * n_classes + self.codes[neighbour]
        votes = np.bincount(slot.ravel(), weight.ravel(), minlength=n_cells * n_classes)
        votes = votes.reshape(n_cells, n_classes)
        # Rounded, so that equal votes summed in another order of neighbours are still equal.
        return np.round(votes / weight.sum(1, keepdims=True), 12)


def _voters(
    labels: Shaped[np.ndarray, " cell"], is_zero: Bool[np.ndarray, " cell"], min_cells: int
) -> tuple[Bool[np.ndarray, " cell"], np.ndarray, dict[str, int]]:
    """Which reference cells can vote, their names, and how many cannot, by reason."""
    names = np.array(labels, dtype=object)
    is_missing = pd.isna(names) | (names == "")
    keep = ~is_missing & ~is_zero
    n_cells = Counter(names[keep])
    is_rare = keep & np.array([n_cells[name] < min_cells for name in names], dtype=bool)
    keep &= ~is_rare
    dropped = {
        "no label": int(is_missing.sum()),
        "embedding of zeros": int((is_zero & ~is_missing).sum()),
        f"label with fewer than {min_cells} cells": int(is_rare.sum()),
    }
    if not keep.any():
        raise LabelError(
            f"no labelled cell is left of the reference's {len(names):,}: "
            + ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
            + ". Wanted labels in one obs column; give its name as the label key."
        )
    return keep, names, dropped


def _own_similarity(directions: Float[np.ndarray, "reference d"], config: NeighbourConfig) -> float:
    """The percentile of reference cells' mean cosine to their neighbours, themselves left out."""
    if config.unknown_percentile == 0 or len(directions) < 2:
        return -1.0
    step = -(-len(directions) // MAX_SELF_CHECKED)
    own = np.arange(0, len(directions), step)
    _, cosine = nearest(directions[own], directions, config.n_neighbours, own=own)
    return float(np.percentile(cosine.mean(1), config.unknown_percentile))
