"""How well scores rank bound regions before others, with resamples of whole chromosomes.

in   labels and scores of regions, the chromosome of each, how often a resample drew each of these
out  AUPR, AUROC, precision at given recalls: one value a resample, all from one sort

AUPR is average precision, sum over thresholds of (recall gained) x precision, without
interpolation; equal scores are one threshold. AUROC counts ties half. Precision at recall r is that
of the highest threshold that reaches it.
Oracle: scikit-learn's ``average_precision_score`` and ``roc_auc_score`` with sample weights.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from scfm.data.compiled import compiled

RECALLS = (0.1, 0.5)


class Ranking(NamedTuple):
    """One value a resample; NaN where it drew no bound or no unbound region."""

    aupr: Float[np.ndarray, " resample"]
    auroc: Float[np.ndarray, " resample"]
    precision_at_10: Float[np.ndarray, " resample"]
    precision_at_50: Float[np.ndarray, " resample"]
    prevalence: Float[np.ndarray, " resample"]


def ranking(
    is_bound: Bool[np.ndarray, " region"],
    score: Float[np.ndarray, " region"],
    unit: Int[np.ndarray, " region"],
    weight: Num[np.ndarray, "resample unit"],
) -> Ranking:
    """Scores of every resample; ``weight`` says how often each unit (chromosome) was drawn."""
    order = np.argsort(-score, kind="stable")
    sorted_score = np.ascontiguousarray(score[order], dtype=np.float64)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(sorted_score) != 0])).astype(np.int64)
    found = _ranked(
        np.ascontiguousarray(is_bound[order]),
        np.ascontiguousarray(unit[order]),
        np.append(starts, len(order)),
        np.ascontiguousarray(weight, dtype=np.float64),
        np.array(RECALLS),
    )
    return Ranking(*found.T)


@compiled
def _ranked(is_bound, unit, bounds, weight, recalls):
    n_resamples = weight.shape[0]
    found = np.full((n_resamples, 5), np.nan)
    for r in range(n_resamples):
        bound, other = 0.0, 0.0
        for i in range(len(is_bound)):
            if is_bound[i]:
                bound += weight[r, unit[i]]
            else:
                other += weight[r, unit[i]]
        if bound + other > 0:
            found[r, 4] = bound / (bound + other)
        if bound == 0 or other == 0:
            continue
        area, pairs, hits, misses = 0.0, 0.0, 0.0, 0.0
        for k in range(len(bounds) - 1):
            more_hits, more_misses = 0.0, 0.0
            for i in range(bounds[k], bounds[k + 1]):
                if is_bound[i]:
                    more_hits += weight[r, unit[i]]
                else:
                    more_misses += weight[r, unit[i]]
            pairs += more_misses * (hits + more_hits / 2)
            hits += more_hits
            misses += more_misses
            if more_hits > 0:
                precision = hits / (hits + misses)
                area += more_hits / bound * precision
                for q in range(len(recalls)):
                    if np.isnan(found[r, 2 + q]) and hits >= recalls[q] * bound:
                        found[r, 2 + q] = precision
        found[r, 0] = area
        found[r, 1] = pairs / (bound * other)
    return found
