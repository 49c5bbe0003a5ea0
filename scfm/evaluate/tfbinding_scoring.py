"""Scores of methods at judged regions -> quadrants, with intervals over chromosomes.

in   Judged, Scored methods
out  Quadrant: means over pairs of AUPR, AUROC and the rest, paired differences

Each score is of one TF in one group of cells, over the regions whose label is known; the mean over
pairs weighs every one alike. Chromosomes are drawn whole, the same draws for every method: regions
of one chromosome are alike.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from scfm.evaluate.intervals import ScoreDraws
from scfm.evaluate.ranking import Ranking, ranking
from scfm.evaluate.resampling import Resampling, confidence_bins
from scfm.evaluate.results import Interval
from scfm.evaluate.tfbinding_baselines import Scored
from scfm.evaluate.tfbinding_pairs import SIDES, Judged
from scfm.evaluate.tfbinding_result import BindingScores, Calibration, Quadrant, Side
from scfm.metrics import expected_calibration_error

Draws = dict[str, Float[np.ndarray, "resample pair"]]  # by score
SIDES_HELD: tuple[Side, ...] = ("held-out", "seen")


def quadrants(
    found: Judged,
    methods: Sequence[Scored],
    *,
    n_bootstrap: int,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Quadrant], str]:
    """Every quadrant that has regions and pairs, the hardest first; what was resampled."""
    result, told = [], ""
    places: list[tuple[Side, Side]] = [
        (cell, chromosome) for chromosome in SIDES_HELD for cell in SIDES_HELD
    ]
    total = len(places) * len(methods)
    for number, (cell, chromosome) in enumerate(places):
        rows, columns = np.flatnonzero(found.rows(chromosome)), found.columns(cell)
        columns = _judgeable(found, rows, columns)
        if not len(columns):
            continue
        resampling = Resampling.of(
            len(rows),
            found.chrom[rows],
            over="chromosome",
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        draws = {}
        for at, method in enumerate(methods):
            draws[method.key] = _draws(found, method, rows, columns, resampling)
            on_progress(number * len(methods) + at + 1, total)
        told = told or _told(resampling)
        result.append(_quadrant(found, methods, rows, columns, draws, cell, chromosome))
    return result, told


def _told(resampling: Resampling) -> str:
    if resampling.over == "cells":
        return "All regions lie on one chromosome: there is nothing to draw intervals from."
    return resampling.sentence


def _judgeable(
    found: Judged, rows: Int[np.ndarray, " row"], columns: Int[np.ndarray, " pair"]
) -> Int[np.ndarray, " judged"]:
    """Pairs with bound and unbound regions here."""
    labels = found.labels[np.ix_(rows, columns)]
    return columns[(labels == 1).any(0) & (labels == 0).any(0)]


def _draws(
    found: Judged,
    method: Scored,
    rows: Int[np.ndarray, " row"],
    columns: Int[np.ndarray, " pair"],
    resampling: Resampling,
) -> Draws:
    """Row 0 is the regions as they are; NaN where the method has no such pair."""
    weight, inverse = _weights(resampling)
    is_there = method.is_there
    result = {name: np.full((len(inverse), len(columns)), np.nan) for name in Ranking._fields}
    for at, column in enumerate(columns):
        if not is_there[column]:
            continue
        labels = found.labels[rows, column]
        known = labels >= 0
        of_pair = ranking(
            labels[known] == 1,
            np.asarray(method.score[rows[known], column], dtype=np.float64),
            resampling.unit[known],
            weight,
        )
        for name, values in of_pair._asdict().items():
            result[name][:, at] = values[inverse]
    result["enrichment"] = result["aupr"] / result["prevalence"]
    return result


def _weights(
    resampling: Resampling,
) -> tuple[Num[np.ndarray, "distinct unit"], Int[np.ndarray, " resample"]]:
    """Distinct draws (of three chromosomes there are but ten) and which one each resample is.

    The first is the regions as they are; the only one where all lie on one chromosome.
    """
    if resampling.over == "cells":
        return np.ones((1, resampling.n_units)), np.zeros(1, dtype=np.int64)
    drawn = np.concatenate([np.ones((1, resampling.n_units)), *resampling.weights()])
    distinct, inverse = np.unique(drawn, axis=0, return_inverse=True)
    return distinct, inverse.ravel()


def _quadrant(
    found: Judged,
    methods: Sequence[Scored],
    rows: Int[np.ndarray, " row"],
    columns: Int[np.ndarray, " pair"],
    draws: dict[str, Draws],
    cell: Side,
    chromosome: Side,
) -> Quadrant:
    model = next(method for method in methods if method.kind == "model")
    ours = draws[model.key]["aupr"]
    scored, versus, n_shared = [], {}, {}
    for method in methods:
        there = np.isfinite(draws[method.key]["aupr"][0])
        if not there.any():
            continue
        scored.append(_summed(method, draws[method.key], there))
        shared = there & np.isfinite(ours[0])
        if method.key != model.key and shared.any():
            gap = _mean(ours[:, shared]) - _mean(draws[method.key]["aupr"][:, shared])
            versus[method.key], n_shared[method.key] = _interval(gap), int(shared.sum())
    prevalence = draws[model.key]["prevalence"][0]
    known = (found.labels[np.ix_(rows, columns)] >= 0).sum(0)
    per_pair = {
        found.pairs[column].name: {
            "prevalence": float(prevalence[at]),
            "n_regions": int(known[at]),
            **{m.key: float(draws[m.key]["aupr"][0, at]) for m in methods},
        }
        for at, column in enumerate(columns)
    }
    return Quadrant(
        *(cell, chromosome, len(rows), len(set(found.chrom[rows]))),
        float(np.nanmean(prevalence)),
        *(scored, versus, n_shared, per_pair),
    )


def _summed(method: Scored, draws: Draws, there: np.ndarray) -> BindingScores:
    names = ("aupr", "auroc", "enrichment", "precision_at_10", "precision_at_50")
    scores = {name: _interval(_mean(draws[name][:, there])) for name in names}
    return BindingScores(
        method.key, method.name, method.kind, method.note, int(there.sum()), scores
    )


def _mean(values: Float[np.ndarray, "resample pair"]) -> Float[np.ndarray, " resample"]:
    """Over the pairs that a resample can judge; NaN where it can judge none."""
    is_known = ~np.isnan(values)
    n = is_known.sum(1)
    total = np.where(is_known, values, 0).sum(1)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _interval(values: Float[np.ndarray, " resample"]) -> Interval:
    """The first value, and the middle 95 % of the others."""
    draws = values[1:][~np.isnan(values[1:])]
    return ScoreDraws(float(values[0]), draws if len(draws) else values[:1]).interval()


def calibration_of(
    found: Judged,
    before: Float[np.ndarray, "region pair"],
    after: Float[np.ndarray, "region pair"],
    n_bins: int = 15,
) -> Calibration | None:
    """Of probabilities before and after calibration, on the held-out chromosomes."""
    rows = found.part == SIDES["held-out"]
    errors, said, bound = [], [], []
    for column in range(len(found.pairs)):
        known = rows & (found.labels[:, column] >= 0)
        if not known.any() or np.isnan(after[known, column]).any():
            continue
        truth = found.labels[known, column] == 1
        pair = [
            expected_calibration_error(truth, p[known, column].astype(np.float64), n_bins)
            for p in (before, after)
        ]
        errors.append(pair)
        said.append(after[known, column])
        bound.append(truth)
    if not errors:
        return None
    probability, truth = np.concatenate(said).astype(np.float64), np.concatenate(bound)
    bins = confidence_bins(probability, n_bins)
    n = np.bincount(bins, minlength=n_bins)
    mean, share = (np.bincount(bins, x, n_bins) for x in (probability, truth.astype(np.float64)))
    told = [(float(mean[i] / n[i]), float(share[i] / n[i]), int(n[i])) for i in np.flatnonzero(n)]
    before_, after_ = np.mean(errors, axis=0).tolist()
    return Calibration(before_, after_, len(errors), told)
