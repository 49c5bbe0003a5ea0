"""What any way of typing cells says of each: a probability for every class it knows. NumPy only.

in   classes, probabilities of each cell, which cells are unlike all that was learned
out  TypeProbabilities: label, confidence, runner-up, and how little a cell belongs to any class
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Shaped

SUMS_TO = 1e-6  # how far from 1 a cell's probabilities may add up


@dataclass(frozen=True)
class TypeProbabilities:
    """Some cells' probabilities of belonging to each class.

    Attributes
    ----------
    classes
        Names, sorted.
    probabilities
        A row a cell; rows sum to 1, or are all 0 where nothing can be said of a cell.
    is_outlier
        Cells unlike all that was learned; False where a method cannot tell.
    novelty
        A method's own measure of how unlike all it learned each cell is, in [0, 1]; None: 1 -
        confidence is taken in its place.
    """

    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, "cell type"] = field(repr=False)
    is_outlier: Bool[np.ndarray, " cell"] = field(repr=False)
    novelty: Float[np.ndarray, " cell"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n_cells, n_classes = self.probabilities.shape
        assert list(self.classes) == sorted(set(self.classes)), self.classes
        assert n_classes == len(self.classes) > 0, (n_classes, len(self.classes))
        assert len(self.is_outlier) == n_cells
        sums = self.probabilities.sum(1)
        assert np.all((np.abs(sums - 1) < SUMS_TO) | (sums == 0)), "rows must sum to 1 or 0"

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def label(self) -> Shaped[np.ndarray, " cell"]:
        """The most probable class, of equals the first; also where a cell is an outlier."""
        return np.array(self.classes, dtype=object)[self.probabilities.argmax(1)]

    @property
    def confidence(self) -> Float[np.ndarray, " cell"]:
        """The probability of ``label``."""
        return self.probabilities.max(1)

    @property
    def runner_up(self) -> Shaped[np.ndarray, " cell"]:
        """The second most probable class; "" where no other has any probability."""
        rest, cells = self.probabilities.copy(), np.arange(len(self))
        rest[cells, rest.argmax(1)] = 0.0
        second = rest.argmax(1)
        names = np.array(self.classes, dtype=object)[second]
        return np.where(rest[cells, second] > 0, names, "").astype(object)

    @property
    def unknown_score(self) -> Float[np.ndarray, " cell"]:
        """How little a cell belongs to any class: what AUROC of "unknown" is taken over."""
        if self.novelty is not None:
            return self.novelty
        return np.where(self.is_outlier, 1.0, 1.0 - self.confidence)

    def labels(self, threshold: float, unknown: str = "unknown") -> Shaped[np.ndarray, " cell"]:
        """``label``; ``unknown`` for outliers, and for confidences of 0 or below ``threshold``."""
        is_unknown = self.is_outlier | (self.confidence < threshold) | (self.confidence == 0)
        return np.where(is_unknown, unknown, self.label).astype(object)

    def part(self, rows: Shaped[np.ndarray, " some"]) -> "TypeProbabilities":
        """Some of the cells."""
        novelty = None if self.novelty is None else self.novelty[rows]
        return TypeProbabilities(
            self.classes, self.probabilities[rows], self.is_outlier[rows], novelty
        )

    @classmethod
    def joined(cls, parts: Sequence["TypeProbabilities"]) -> "TypeProbabilities":
        """The cells of all parts, which know the same classes, in their order."""
        assert len({part.classes for part in parts}) == 1, "parts must know the same classes"
        novelty = [part.novelty for part in parts if part.novelty is not None]
        return cls(
            parts[0].classes,
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.is_outlier for part in parts]),
            np.concatenate(novelty) if len(novelty) == len(parts) else None,
        )
