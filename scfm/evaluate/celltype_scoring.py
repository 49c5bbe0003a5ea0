"""Answers of methods -> scores with intervals, and who wins.

in   MethodRuns, the judged cells' true labels and groups
out  CelltypeResult
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from scfm.errors import ConfigError
from scfm.evaluate.celltype import verdict_on
from scfm.evaluate.celltype_protocol import MethodRun, ProtocolConfig
from scfm.evaluate.celltype_result import CalibrationScores, CelltypeResult, ReliabilityBin
from scfm.evaluate.contamination import Contamination
from scfm.evaluate.intervals import ScoreDraws
from scfm.evaluate.resampling import (
    N_BINS,
    Resampling,
    auroc_draws,
    confidence_bins,
    ece_draws,
    label_draws,
)
from scfm.evaluate.results import ClassScore, Evaluation, Interval, MethodResult
from scfm.evaluate.splits import SplitPlan
from scfm.metrics import (
    confusion_matrix,
    expected_calibration_error,
    label_scores_of,
    labels_in,
    macro_f1,
)

Labels = Shaped[np.ndarray, " cell"]


def score_runs(
    runs: Sequence[MethodRun],
    truth: Labels,
    groups: Labels | None,
    plan: SplitPlan,
    config: ProtocolConfig,
    *,
    reference: Mapping[str, Any],
    query: Mapping[str, Any],
    over: str = "cells",
    per_seed: Mapping[str, Sequence[float]] | None = None,
    contamination: Mapping[str, Contamination] | None = None,
    notes: Sequence[str] = (),
) -> CelltypeResult:
    """Score all methods on the same judged cells, resampled alike.

    ``truth`` and ``groups`` are of the judged cells, in the runs' order.
    """
    if not any(run.method.kind == "model" for run in runs):
        raise ConfigError("No model is among the methods; an evaluation judges at least one.")
    resampling = Resampling.of(
        len(truth), groups, over=over, n_bootstrap=config.n_bootstrap, seed=config.seeds[0]
    )
    labels = labels_in(truth)
    draws = {
        run.method.key: label_draws(truth, run.probabilities.label, labels, resampling)
        for run in runs
    }
    ordered = _models_first(runs, draws)
    methods = [_method_result(run, truth, labels, draws[run.method.key]) for run in ordered]
    best = draws[methods[0].key]["macro_f1"]
    versus = {method.key: best.minus(draws[method.key]["macro_f1"]) for method in methods[1:]}
    return CelltypeResult(
        evaluation=Evaluation(
            reference=dict(reference),
            query=dict(query),
            labels=labels,
            truth=truth,
            methods=methods,
            versus=versus,
            verdict=verdict_on(methods, versus),
            n_bootstrap=config.n_bootstrap,
            seed=config.seeds[0],
            resampled=resampling.over,
        ),
        calibration={run.method.key: calibration_of(run, truth, resampling) for run in ordered},
        unknown={run.method.key: unknown_of(run, truth, resampling) for run in ordered},
        per_fold={run.method.key: _by_fold(run, truth, plan) for run in ordered},
        per_seed=per_seed or {},
        split={
            "kind": plan.kind,
            "by": plan.by,
            "is_optimistic": plan.is_optimistic,
            "sentence": plan.sentence,
            "folds": [
                {"train": len(f.train), "judged": len(f.test), "held_out": list(f.held_out)}
                for f in plan.folds
            ],
        },
        resampled=resampling.sentence,
        settings=asdict(config),
        contamination=contamination or {},
        notes=(*plan.notes, *notes),
    )


def _models_first(
    runs: Sequence[MethodRun], draws: Mapping[str, Mapping[str, ScoreDraws]]
) -> list[MethodRun]:
    """The model of highest macro-F1 first, as the strongest baseline is taken, too."""

    def rank(run: MethodRun) -> tuple[bool, float]:
        is_model = run.method.kind == "model"
        return not is_model, -draws[run.method.key]["macro_f1"].value if is_model else 0.0

    return sorted(runs, key=rank)


def _method_result(
    run: MethodRun, truth: Labels, labels: list[str], draws: Mapping[str, ScoreDraws]
) -> MethodResult:
    predicted, method = run.probabilities.label, run.method
    scores = label_scores_of(confusion_matrix(truth, predicted, labels))
    per_class = {
        label: ClassScore(float(p), float(r), float(f), int(n))
        for label, p, r, f, n in zip(labels, *scores, strict=True)
    }
    return MethodResult(
        key=method.key,
        name=method.name,
        kind=method.kind,
        per_class=per_class,
        predicted=predicted,
        note=method.note,
        **{name: score.interval() for name, score in draws.items()},
    )


def calibration_of(run: MethodRun, truth: Labels, resampling: Resampling) -> CalibrationScores:
    """Are cells that a method is 80 % sure of right in 80 %?"""
    found, before = run.probabilities, run.raw
    is_right = np.asarray(found.label == truth, dtype=bool)
    named = np.asarray(run.is_named, dtype=bool)
    return CalibrationScores(
        error=ece_draws(is_right, found.confidence, resampling).interval(),
        error_before=expected_calibration_error(
            np.asarray(before.label == truth, dtype=bool), before.confidence
        ),
        bins=reliability(is_right, found.confidence),
        temperatures=tuple(c.temperature for c in run.calibrations),
        thresholds=tuple(c.threshold for c in run.calibrations),
        share_named=float(named.mean()),
        accuracy_named=float(is_right[named].mean()) if named.any() else float("nan"),
    )


def reliability(
    is_right: Bool[np.ndarray, " cell"], confidence: Float[np.ndarray, " cell"]
) -> tuple[ReliabilityBin, ...]:
    """Mean confidence and accuracy of each bin that has cells."""
    bins = confidence_bins(confidence)
    return tuple(
        ReliabilityBin(
            float(confidence[here].mean()), float(is_right[here].mean()), int(here.sum())
        )
        for at in range(N_BINS)
        for here in [bins == at]
        if here.any()
    )


def unknown_of(run: MethodRun, truth: Labels, resampling: Resampling) -> dict[str, Interval]:
    """AUROC per left-out label: its cells against all other judged cells."""
    return {
        label: auroc_draws(
            np.asarray(truth == label, dtype=bool), np.asarray(score, dtype=float), resampling
        ).interval()
        for label, score in run.novelty.items()
    }


def _by_fold(run: MethodRun, truth: Labels, plan: SplitPlan) -> list[float]:
    ends = np.cumsum([len(fold.test) for fold in plan.folds])
    label = run.probabilities.label
    return [
        macro_f1(truth[end - len(fold.test) : end], label[end - len(fold.test) : end])
        for fold, end in zip(plan.folds, ends, strict=True)
    ]
