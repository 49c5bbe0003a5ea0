"""How near predicted expression profiles are to the true ones, with bootstrap over cells.

in   true and predicted log1p(cp10k), cells by genes
out  each score on the cells as they are and on resamples, the same for every method

Scores (true value t, predicted p, both log1p of counts per 10,000, nats):

mae           mean of |p - t| over all cells and genes
mae_nonzero   the same where t > 0
mre           mean of |p - t| / t where t > 0; elsewhere it has no value
pearson_cell  mean over cells of Pearson's r over genes
pearson_gene  mean over genes of Pearson's r over cells

r is 0 where the prediction is constant: it tells nothing. Cells and genes of constant truth have no
r and are left out. MAE, MRE and r are what Hao et al. 2024 report, doi:10.1038/s41592-024-02305-7.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from scfm.evaluate.intervals import ScoreDraws

LOWER_IS_BETTER = ("mae", "mae_nonzero", "mre")
SCORES = (*LOWER_IS_BETTER, "pearson_cell", "pearson_gene")
CONSTANT = 1e-12  # variance up to which values count as equal

Profiles = Float[np.ndarray, "cell gene"]
Weights = Float[np.ndarray, "resample cell"]


def score_profiles(
    truth: Profiles, predictions: Mapping[str, Profiles], *, n_bootstrap: int, seed: int
) -> dict[str, dict[str, ScoreDraws]]:
    """Every score of every method with its resamples, paired: ``[method][score]``."""
    n_cells = len(truth)
    rng = np.random.default_rng(seed)
    resamples = rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), size=n_bootstrap)
    weights = np.concatenate([np.ones((1, n_cells)), resamples])  # the cells as they are, first
    return {
        key: {name: _draws(name, values) for name, values in _scores(truth, p, weights).items()}
        for key, p in predictions.items()
    }


def _draws(name: str, values: Float[np.ndarray, " resample"]) -> ScoreDraws:
    value, draws = float(values[0]), values[1:]
    if name == "pearson_gene":
        # Where few cells express a gene, its r over repeated cells is another on average: that is
        # bias of the resampling, not uncertainty, and without this the value lay outside.
        draws = draws + (value - draws.mean())
    return ScoreDraws(value, draws)


def _scores(truth: Profiles, predicted: Profiles, weights: Weights) -> dict[str, np.ndarray]:
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    error, is_some = np.abs(predicted - truth), truth > 0
    relative = error[is_some] / truth[is_some]
    n_some = weights @ is_some.sum(1)
    per_cell = pearson_rows(truth, predicted)
    has_r = ~np.isnan(per_cell)
    return {
        "mae": weights @ error.mean(1) / weights.sum(1),
        "mae_nonzero": _ratio(weights @ (error * is_some).sum(1), n_some),
        "mre": _ratio(weights @ _row_sums(relative, is_some), n_some),
        "pearson_cell": _ratio(weights[:, has_r] @ per_cell[has_r], weights[:, has_r].sum(1)),
        "pearson_gene": _mean_of_known(_pearson_genes(truth, predicted, weights)),
    }


def _ratio(total: np.ndarray, n: np.ndarray) -> np.ndarray:
    """A mean; NaN over nothing, as in a resample that drew no such cell."""
    return np.where(n > 0, total / np.maximum(n, 1e-300), np.nan)


def _mean_of_known(values: Float[np.ndarray, "resample gene"]) -> Float[np.ndarray, " resample"]:
    is_known = ~np.isnan(values)
    return _ratio(np.where(is_known, values, 0).sum(1), is_known.sum(1))


def _row_sums(
    values: Float[np.ndarray, " some"], is_some: Bool[np.ndarray, "cell gene"]
) -> Float[np.ndarray, " cell"]:
    return np.bincount(np.nonzero(is_some)[0], values, minlength=len(is_some))


def pearson_rows(truth: Profiles, predicted: Profiles) -> Float[np.ndarray, " cell"]:
    """Pearson's r of each row; NaN where the truth is constant, 0 where only the prediction is."""
    t = truth - truth.mean(1, keepdims=True)
    p = predicted - predicted.mean(1, keepdims=True)
    return _r((t * p).mean(1), (t * t).mean(1), (p * p).mean(1))


def _pearson_genes(
    truth: Profiles, predicted: Profiles, weights: Weights
) -> Float[np.ndarray, "resample gene"]:
    """Pearson's r of each gene over the cells of each resample."""
    # centred first, so that little is lost in the difference of squares below
    t, p = truth - truth.mean(0), predicted - predicted.mean(0)
    w = weights / weights.sum(1, keepdims=True)
    mean_t, mean_p = w @ t, w @ p
    covariance = w @ (t * p) - mean_t * mean_p
    return _r(covariance, w @ (t * t) - mean_t**2, w @ (p * p) - mean_p**2)


def _r(covariance: np.ndarray, variance_t: np.ndarray, variance_p: np.ndarray) -> np.ndarray:
    is_flat = variance_p <= CONSTANT
    scale = np.sqrt(np.maximum(variance_t, CONSTANT) * np.where(is_flat, 1, variance_p))
    r = np.where(is_flat, 0, covariance / scale)
    return np.where(variance_t <= CONSTANT, np.nan, np.clip(r, -1, 1))
