"""Labels for query cells from their nearest reference cells. NumPy only; exact, not approximate.

in   embeddings of labelled reference cells; embeddings of query cells
out  NeighbourPrediction: a label for every cell, how sure, the runner-up, and who is unlike all
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num, Shaped

from scfm.errors import InputError, LabelError
from scfm.tasks.type_probabilities import TypeProbabilities

# Cosines are compared on this grid: two that differ by less are a tie. Without it a tie would be
# decided by the last bit of a matrix product, which hangs on the CPU and on who is in the block.
COSINE_STEPS = 10**9
BLOCK_VALUES = 1 << 22  # cosines held at a time: about 100 MB, however many query cells
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
    """

    n_neighbours: int = 15
    min_confidence: float = 0.5
    unknown_percentile: float = 1.0
    min_cells: int = 3
    standardise: bool = True
    adjust_depth: bool = True

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


@dataclass(frozen=True)
class Frame:
    """A shift and a scale, fitted on the reference, that all embeddings go through."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]

    @classmethod
    def unchanged(cls, embedding: Num[np.ndarray, "..."]) -> "Frame":
        """Directions as the embedding has them."""
        d = _two_dimensional(embedding).shape[1]
        return cls(np.zeros(d), np.ones(d))

    @classmethod
    def of(cls, embedding: Num[np.ndarray, "..."]) -> "Frame":
        """Mean 0 and standard deviation 1 in each dimension that varies.

        Where none does, or values are not finite, embeddings stay unchanged: the first have no
        other direction, the second are refused when they are used.
        """
        x = _two_dimensional(embedding).astype(np.float64)
        if len(x) == 0 or not np.isfinite(x).all():
            return cls.unchanged(embedding)
        mean, scale = x.mean(0), x.std(0)
        varies = scale > 1e-12 * np.abs(x).max(initial=0.0)
        if not varies.any():
            return cls.unchanged(embedding)
        return cls(mean, np.where(varies, scale, np.inf))

    def apply(self, embedding: Num[np.ndarray, "..."]) -> Float[np.ndarray, "cell d"]:
        """An embedding in this frame. A zero embedding stays zero: it has no direction."""
        x = _two_dimensional(embedding).astype(np.float64)
        moved = (x - self.mean) / self.scale
        return np.where(np.any(x != 0, axis=1)[:, None], moved, 0.0)


@dataclass(frozen=True)
class DepthSlope:
    """How an embedding moves with log10 depth among cells of one label: a common line's slope."""

    mean_depth: float
    slope: Float[np.ndarray, " d"]

    @classmethod
    def of(
        cls,
        embedding: Num[np.ndarray, "cell d"],
        labels: Shaped[np.ndarray, " cell"],
        depth: Float[np.ndarray, " cell"],
    ) -> "DepthSlope":
        """The pooled within-group slope of an analysis of covariance (least squares).

        Between labels depth and identity are confounded; within them only depth is left.
        Zero where no label has cells of different depth.
        """
        x, group = np.asarray(embedding, dtype=np.float64), pd.factorize(labels)[0]
        is_labelled = group >= 0
        x, z, group = x[is_labelled], depth[is_labelled].astype(np.float64), group[is_labelled]
        n_cells = np.maximum(np.bincount(group), 1)
        z = z - (np.bincount(group, z) / n_cells)[group]
        spread = float(z @ z)
        mean_depth = float(np.mean(depth)) if len(depth) else 0.0
        # z sums to zero within a label, so the labels' means of x drop out of the product
        return cls(mean_depth, (z @ x) / spread if spread > 0 else np.zeros(x.shape[1]))

    def removed(
        self, embedding: Num[np.ndarray, "cell d"], depth: Float[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "cell d"]:
        """The embedding as it would be at the reference's mean depth. Zero stays zero."""
        x = np.asarray(embedding, dtype=np.float64)
        moved = x - np.asarray(depth - self.mean_depth)[:, None] * self.slope
        return np.where(np.any(x != 0, axis=1)[:, None], moved, 0.0)


def _two_dimensional(embedding: Num[np.ndarray, "..."]) -> Num[np.ndarray, "cell d"]:
    if np.ndim(embedding) != 2:
        raise InputError(f"an embedding has shape {np.shape(embedding)}; wanted (cells, d).")
    return np.asarray(embedding)


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
            slope = DepthSlope.of(_two_dimensional(embedding), labels, depth)
            embedding = slope.removed(embedding, depth)
        frame = Frame.of(embedding) if config.standardise else Frame.unchanged(embedding)
        directions, is_zero = _unit_vectors(frame.apply(embedding), "the reference")
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
        neighbour, cosine, is_zero = self._neighbours(embedding, depth)
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
        neighbour, cosine, is_zero = self._neighbours(embedding, depth)
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

    def _neighbours(
        self, embedding: Num[np.ndarray, "cell d"], depth: Float[np.ndarray, " cell"] | None
    ) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"], Bool[np.ndarray, " cell"]]:
        """Each query cell's neighbours, their cosines, and which cells have no direction."""
        n_dimensions = np.shape(embedding)[1]
        if n_dimensions != len(self.frame.mean):
            raise InputError(
                f"the query's embedding has {n_dimensions} dimensions, the reference's "
                f"{len(self.frame.mean)}. Embed both with the same model."
            )
        if self.depth_slope is not None:
            assert depth is not None, "a reference fitted with depths wants the query's"
            embedding = self.depth_slope.removed(embedding, depth)
        directions, is_zero = _unit_vectors(self.frame.apply(embedding), "the query")
        return *nearest(directions, self.directions, self.config.n_neighbours), is_zero

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


def nearest(
    query: Float[np.ndarray, "cell d"],
    reference: Float[np.ndarray, "reference d"],
    n_neighbours: int,
    *,
    own: Int[np.ndarray, " cell"] | None = None,
    block: int | None = None,
) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"]]:
    """Reference cells of largest cosine to each query cell, nearest first, and their cosines.

    Both sides are unit vectors (or zeros). Equal cosines go to the lower reference index.
    ``own`` is each query cell's index in the reference, where it must not be its own neighbour;
    ``block`` is how many query cells are held at a time; no cosine hangs on it by more than 1e-9.
    """
    n_query, n_reference = len(query), len(reference)
    k = min(n_neighbours, n_reference - (own is not None))
    assert k > 0
    block = block or max(1, BLOCK_VALUES // n_reference)
    neighbour = np.empty((n_query, k), dtype=np.int64)
    cosine = np.empty((n_query, k), dtype=np.float64)
    for start in range(0, n_query, block):
        rows = slice(start, min(start + block, n_query))
        # One unique integer a pair, cosine first and index second: no ties are left to chance.
        key = np.rint(query[rows] @ reference.T * COSINE_STEPS).astype(np.int64)
        key *= n_reference
        key += np.arange(n_reference - 1, -1, -1)
        if own is not None:
            key[np.arange(len(key)), own[rows]] = np.iinfo(np.int64).min
        top = np.argpartition(key, n_reference - k, axis=1)[:, n_reference - k :]
        best = np.sort(np.take_along_axis(key, top, 1), axis=1)[:, ::-1]
        neighbour[rows] = n_reference - 1 - best % n_reference
        cosine[rows] = best // n_reference / COSINE_STEPS
    return neighbour, np.clip(cosine, -1.0, 1.0)


def _unit_vectors(
    embedding: Num[np.ndarray, "..."], name: str
) -> tuple[Float[np.ndarray, "cell d"], Bool[np.ndarray, " cell"]]:
    vectors = np.asarray(embedding, dtype=np.float64)
    if vectors.ndim != 2:
        raise InputError(f"{name}'s embedding has shape {vectors.shape}; wanted (cells, d).")
    is_bad = ~np.isfinite(vectors).all(1)
    if is_bad.any():
        raise InputError(
            f"{name}'s embedding has NaN or infinity in {is_bad.sum():,} of {len(vectors):,} cells "
            f"(first rows: {np.flatnonzero(is_bad)[:3].tolist()}). Embed them again."
        )
    largest = np.abs(vectors).max(1, initial=0.0, keepdims=True)
    scaled = vectors / np.where(largest > 0, largest, 1.0)  # so that no square over- or underflows
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(norm > 0, norm, 1.0), norm[:, 0] == 0


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
