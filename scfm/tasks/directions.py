"""Embeddings -> directions that can be compared across data sets. NumPy only.

in   embeddings of reference and query cells, log10 of their depths, the reference's labels
out  DepthSlope and Frame, fitted on the reference; unit vectors
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Num, Shaped

from scfm.errors import InputError


@dataclass(frozen=True)
class Frame:
    """A shift and a scale, fitted on the reference, that all embeddings go through."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]

    @classmethod
    def unchanged(cls, embedding: Num[np.ndarray, "..."]) -> "Frame":
        """Directions as the embedding has them."""
        d = two_dimensional(embedding).shape[1]
        return cls(np.zeros(d), np.ones(d))

    @classmethod
    def of(cls, embedding: Num[np.ndarray, "..."]) -> "Frame":
        """Mean 0 and standard deviation 1 in each dimension that varies.

        Where none does, or values are not finite, embeddings stay unchanged: the first have no
        other direction, the second are refused when they are used.
        """
        x = two_dimensional(embedding).astype(np.float64)
        if len(x) == 0 or not np.isfinite(x).all():
            return cls.unchanged(embedding)
        mean, scale = x.mean(0), x.std(0)
        varies = scale > 1e-12 * np.abs(x).max(initial=0.0)
        if not varies.any():
            return cls.unchanged(embedding)
        return cls(mean, np.where(varies, scale, np.inf))

    def apply(self, embedding: Num[np.ndarray, "..."]) -> Float[np.ndarray, "cell d"]:
        """An embedding in this frame. A zero embedding stays zero: it has no direction."""
        x = two_dimensional(embedding).astype(np.float64)
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


def two_dimensional(embedding: Num[np.ndarray, "..."]) -> Num[np.ndarray, "cell d"]:
    if np.ndim(embedding) != 2:
        raise InputError(f"an embedding has shape {np.shape(embedding)}; wanted (cells, d).")
    return np.asarray(embedding)


def unit_vectors(
    embedding: Num[np.ndarray, "..."], name: str
) -> tuple[Float[np.ndarray, "cell d"], Bool[np.ndarray, " cell"]]:
    """Embeddings of length 1, and which are all zeros and stay so; ``name`` is for messages."""
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
