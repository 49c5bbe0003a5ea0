"""How near made cells are to real ones of the same type, with bootstrap over both.

in   log1p(cp10k) of real and of made cells of one type, and how many genes each expresses
out  each score on the cells as they are and on resamples; the real resamples are every method's

Scores, of one type (x real, y made, both log1p of counts per 10,000 on the judged genes):

mmd2        squared maximum mean discrepancy, unbiased, Gaussian kernel; 0 for equal distributions
mean_r      Pearson's r over genes of their means
variance_r  the same of their variances
auroc       of a logistic regression that tells made from real, cross-validated; 0.5 is a guess
zero_gap    |share of zeros made - real|, over all genes both measure
margin      mean_r with the own type minus mean_r with the best other type

Source of mmd2: Gretton et al. 2012, JMLR 13, eq. 3; the bandwidth is the median distance of the
real cells, the same for every method.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist, pdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from scfm.evaluate.intervals import ScoreDraws
from scfm.evaluate.profile_scores import pearson_rows

LOWER_IS_BETTER = ("mmd2", "auroc", "zero_gap")
SCORES = ("mmd2", "mean_r", "variance_r", "auroc", "zero_gap", "margin")
UNBIASED = ("mmd2", "auroc")  # averages over pairs of different cells, on resamples as well
N_FOLDS = 5

Profiles = Float[np.ndarray, "cell gene"]
Weights = Float[np.ndarray, "resample cell"]


@dataclass(frozen=True)
class TypeCells:
    """Cells of one type as every score sees them.

    Attributes
    ----------
    profiles
        log1p(cp10k) of the judged genes.
    n_expressed
        Genes with any expression, of all that can be compared.
    """

    profiles: Profiles
    n_expressed: Int[np.ndarray, " cell"]

    @cached_property
    def squares(self) -> Profiles:
        return self.profiles**2


@dataclass(frozen=True)
class Truth:
    """The real cells of one type and their resamples, which all methods share."""

    cells: TypeCells
    weights: Weights
    bandwidth: float

    @cached_property
    def means(self) -> Float[np.ndarray, "resample gene"]:
        return self.weights @ self.cells.profiles / self.weights.sum(1, keepdims=True)

    @cached_property
    def kernel(self) -> Float[np.ndarray, "cell cell"]:
        return gaussian(self.cells.profiles, self.cells.profiles, self.bandwidth)


def resamples(n_cells: int, n_bootstrap: int, rng: np.random.Generator) -> Weights:
    """How often each cell is drawn; the first row is the cells as they are."""
    drawn = rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), size=n_bootstrap)
    return np.concatenate([np.ones((1, n_cells)), drawn])


def median_distance(profiles: Profiles) -> float:
    """Median Euclidean distance of two different cells; 1 where all are the same."""
    return float(np.median(pdist(profiles))) or 1.0


def gaussian(
    x: Float[np.ndarray, "x gene"], y: Float[np.ndarray, "y gene"], bandwidth: float
) -> Float[np.ndarray, "x y"]:
    """exp(-|x - y|^2 / (2 bandwidth^2))."""
    return np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))


def score_type(
    made: TypeCells,
    truth: Truth,
    others: Mapping[str, Truth],
    *,
    n_genes: int,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Every score, on the cells as they are and on ``n_bootstrap`` resamples.

    ``others`` are the real cells of the other types; without any ``margin`` is NaN. ``n_genes`` is
    the number of genes that ``n_expressed`` is out of.
    """
    real, weights = truth.cells, truth.weights
    own = resamples(len(made.profiles), n_bootstrap, rng)
    means = own @ made.profiles / own.sum(1, keepdims=True)
    mean_r = _known(pearson_rows(truth.means, means))
    variances = [
        np.maximum(w @ cells.squares / w.sum(1, keepdims=True) - m**2, 0)
        for cells, w, m in ((real, weights, truth.means), (made, own, means))
    ]
    by_other = [_known(pearson_rows(other.means, means)) for other in others.values()]
    best_other = np.max(by_other, axis=0) if by_other else np.full(len(mean_r), np.nan)
    zero_gap = weights @ real.n_expressed / weights.sum(1) - own @ made.n_expressed / own.sum(1)
    return {
        "mmd2": mmd2(truth, made.profiles, own),
        "mean_r": mean_r,
        "variance_r": _known(pearson_rows(*variances)),
        "auroc": auroc(*told_apart(real.profiles, made.profiles, rng), weights, own),
        "zero_gap": np.abs(zero_gap) / n_genes,
        "margin": mean_r - best_other,
    }


def mmd2(
    truth: Truth, made: Float[np.ndarray, "made gene"], own: Float[np.ndarray, "resample made"]
) -> Float[np.ndarray, " resample"]:
    """Unbiased squared MMD. Pairs of one cell drawn twice are left out of the resamples too."""
    across = gaussian(truth.cells.profiles, made, truth.bandwidth)
    between = _quadratic(truth.weights, across, own)
    between = between / (truth.weights.sum(1) * own.sum(1))
    return (
        _mean_over_pairs(truth.kernel, truth.weights)
        + _mean_over_pairs(gaussian(made, made, truth.bandwidth), own)
        - 2 * between
    )


def _mean_over_pairs(kernel: np.ndarray, weights: Weights) -> Float[np.ndarray, " resample"]:
    kernel = kernel - np.diag(np.diag(kernel))
    n_pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    return _quadratic(weights, kernel, weights) / n_pairs


def _quadratic(left: np.ndarray, matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    return ((left @ matrix) * right).sum(1)


def told_apart(
    real: Float[np.ndarray, "real gene"],
    made: Float[np.ndarray, "made gene"],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " real"], Float[np.ndarray, " made"]]:
    """Log odds of being made, of every cell, from a regression that has not seen it.

    L2-penalised with C = 1, five folds. It is fitted in the space the cells span, where it is the
    same regression (the penalty knows no directions) with fewer numbers.
    """
    features = _row_space(np.concatenate([real, made]))
    is_made = np.r_[np.zeros(len(real), bool), np.ones(len(made), bool)]
    folds = StratifiedKFold(
        min(N_FOLDS, len(real), len(made)), shuffle=True, random_state=int(rng.integers(2**31))
    )
    odds = np.empty(len(is_made))
    with warnings.catch_warnings():
        # cells that can be told apart without error have no finite end; the order is settled then
        warnings.simplefilter("ignore", ConvergenceWarning)
        for fitted, held_out in folds.split(features, is_made):
            model = LogisticRegression(C=1.0, max_iter=500)
            model.fit(features[fitted], is_made[fitted])
            odds[held_out] = model.decision_function(features[held_out])
    return odds[: len(real)], odds[len(real) :]


def _row_space(profiles: Profiles) -> Float[np.ndarray, "cell direction"]:
    """The centred cells in an orthonormal basis of what they span: same inner products."""
    centred = profiles - profiles.mean(0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    is_some = values > 1e-10 * max(values[-1], 1e-300)
    return vectors[:, is_some] * np.sqrt(values[is_some])


def auroc(
    real: Float[np.ndarray, " real"],
    made: Float[np.ndarray, " made"],
    weights: Float[np.ndarray, "resample real"],
    own: Float[np.ndarray, "resample made"],
) -> Float[np.ndarray, " resample"]:
    """P(a made cell scores above a real one), ties half: the area under the ROC curve."""
    above = (made > real[:, None]) + 0.5 * (made == real[:, None])
    return _quadratic(weights, above, own) / (weights.sum(1) * own.sum(1))


def over_types(per_type: list[dict[str, Float[np.ndarray, " resample"]]]) -> dict[str, ScoreDraws]:
    """The mean over types of every score, with its resamples."""
    found = {}
    for name in SCORES:
        values = np.mean([scores[name] for scores in per_type], axis=0)
        value, draws = float(values[0]), values[1:]
        if name not in UNBIASED:
            # Means over repeated cells are noisier, so that r is lower on every resample: bias of
            # the resampling, not uncertainty, and without this the value lay outside.
            draws = draws + (value - draws.mean())
        found[name] = ScoreDraws(value, draws)
    return found


def _known(r: np.ndarray) -> np.ndarray:
    """r of profiles that are the same for all genes is 0: it tells nothing."""
    return np.nan_to_num(r, nan=0.0)
