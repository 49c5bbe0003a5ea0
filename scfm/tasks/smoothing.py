"""Labels of cells -> the labels their neighbours agree on.

in   an embedding, in chunks; a label of every cell
out  the label with most of the neighbours' weight, and its share of it

A neighbour weighs the inverse of its distance. Where cells lie in one spot that is not defined:
there they share all the weight, which is its limit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

from scfm.errors import InputError

QUERIED = 4096  # cells whose neighbours are looked up at a time


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig:
    """Who a cell's neighbours are, and how far they must agree.

    Attributes
    ----------
    n_neighbours
        Cells of a neighbourhood, the cell itself among them, who does not vote: k - 1 others do.
    n_components
        Principal components of the embedding that distances are taken in.
    threshold
        A share of the neighbours' weight below which a cell is unknown; a whole number above 0 is
        so many of the k - 1 neighbours.
    """

    n_neighbours: int = 15
    n_components: int = 10
    threshold: float | int = 0.5

    def __post_init__(self) -> None:
        if self.n_neighbours < 2:
            raise ValueError(f"smoothing.n_neighbours must be at least 2, got {self.n_neighbours}")
        if self.n_components < 1:
            raise ValueError(f"smoothing.n_components must be at least 1, got {self.n_components}")
        if not 0 <= self.share <= 1:
            raise ValueError(
                f"smoothing.threshold is a share in [0, 1], or a number of the "
                f"{self.n_neighbours - 1} neighbours that vote; got {self.threshold}"
            )

    @property
    def share(self) -> float:
        """The threshold as a share of the weight."""
        if isinstance(self.threshold, int):
            return self.threshold / (self.n_neighbours - 1)
        return self.threshold


def smooth(
    chunks: Callable[[], Iterator[Num[np.ndarray, "chunk d"]]],
    codes: Int[np.ndarray, " cell"],
    config: SmoothingConfig,
) -> tuple[Int[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """The neighbours' label of each cell, and its share of their weight.

    ``chunks`` gives the embedding from its beginning, as often as it is called (twice): what is
    held of it is ``n_components`` numbers a cell. ``codes`` are the cells' labels, -1 for none;
    such a cell has no vote, but the weight is shared with it all the same. A cell whose
    neighbours are all without a label keeps none, with share 0. Equal shares fall to the lower
    code.
    """
    points = principal_components(chunks, config.n_components)
    if len(points) != len(codes):
        raise InputError(f"{len(points):,} embedded cells and {len(codes):,} labels; wanted equal.")
    if len(points) < 2:
        return codes.copy(), np.zeros(len(codes))
    neighbour, distance = neighbours(points, config.n_neighbours - 1)
    return vote(codes[neighbour], inverse_distances(distance))


def inverse_distances(distance: Float[np.ndarray, "cell k"]) -> Float[np.ndarray, "cell k"]:
    """Weights 1 / d that sum to 1 a cell; neighbours at distance 0 share all of it alike."""
    is_zero = distance == 0
    # scaled by the nearest, so that no inverse of a tiny distance overflows
    nearest = np.where(is_zero, np.inf, distance).min(1, keepdims=True)
    weight = np.where(is_zero, 0.0, nearest / np.where(is_zero, 1.0, distance))
    weight = np.where(is_zero.any(1, keepdims=True), is_zero.astype(np.float64), weight)
    return weight / weight.sum(1, keepdims=True)


def vote(
    codes: Int[np.ndarray, "cell k"], weight: Float[np.ndarray, "cell k"]
) -> tuple[Int[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """The code with most weight in each row, and its weight; -1 and 0 where no code has a vote."""
    n_cells, n_codes = len(codes), int(codes.max(initial=-1)) + 1
    if n_codes == 0:
        return np.full(n_cells, -1, dtype=np.int64), np.zeros(n_cells)
    has_vote = codes >= 0
    slot = (np.arange(n_cells)[:, None] * n_codes + codes)[has_vote]
    votes = np.bincount(slot, weight[has_vote], minlength=n_cells * n_codes)
    votes = np.round(votes.reshape(n_cells, n_codes), 12)  # equal shares summed in another order
    best = votes.argmax(1)
    share = votes[np.arange(n_cells), best]
    return np.where(share > 0, best, -1), share


def neighbours(
    points: Float[np.ndarray, "cell component"], n_neighbours: int
) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"]]:
    """The nearest other cells of each cell and their Euclidean distances; exact."""
    from scipy.spatial import KDTree

    tree, own = KDTree(points), np.arange(len(points))
    k = min(n_neighbours, len(points) - 1)
    neighbour, distance = np.empty((len(points), k), np.int64), np.empty((len(points), k))
    for first in range(0, len(points), QUERIED):
        part = slice(first, first + QUERIED)
        found = tree.query(points[part], k + 1)
        far, near = np.asarray(found[0]), np.asarray(found[1])
        # Where many cells lie in one spot the cell itself may not be named: then the last goes.
        is_own = near == own[part][:, None]
        is_own[~is_own.any(1), -1] = True
        neighbour[part], distance[part] = near[~is_own].reshape(-1, k), far[~is_own].reshape(-1, k)
    return neighbour, distance


def principal_components(
    chunks: Callable[[], Iterator[Num[np.ndarray, "chunk d"]]], n_components: int
) -> Float[np.ndarray, "cell component"]:
    """Scores on the leading principal components, by way of the (d, d) covariance.

    Fewer where the embedding has fewer dimensions. Two passes; no more than a chunk is held.
    """
    n_cells, total, square = 0, np.zeros(0), np.zeros((0, 0))
    shift = np.zeros(0)  # the first cell: squares of what lies far from zero would lose digits
    for chunk in chunks():
        if n_cells == 0:
            shift = chunk[0].astype(np.float64)
            total, square = np.zeros(len(shift)), np.zeros((len(shift), len(shift)))
        x = chunk.astype(np.float64) - shift
        n_cells, total, square = n_cells + len(x), total + x.sum(0), square + x.T @ x
    mean = total / max(n_cells, 1)
    covariance = square / max(n_cells, 1) - np.outer(mean, mean)
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :n_components]
    return np.concatenate([(chunk.astype(np.float64) - shift - mean) @ axes for chunk in chunks()])
