"""Cell type transfer judged: several methods' labels for the same query cells, and who wins.

in   the query's true labels and each method's predictions; a CSV that maps labels to common ones
out  Evaluation: scores with intervals, paired differences, one plain sentence
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from scfm.errors import LabelError
from scfm.evaluate.intervals import ScoreDraws, bootstrap_scores
from scfm.evaluate.results import ClassScore, Evaluation, Interval, MethodResult
from scfm.metrics import confusion_matrix, label_scores_of, labels_in

NO_LABEL = "(no label)"


class Prediction(NamedTuple):
    """One method's labels for the query's cells, and how to present it."""

    name: str
    kind: Literal["model", "untrained", "baseline"]
    predicted: Shaped[np.ndarray, " cell"]
    note: str = ""


@dataclass(frozen=True)
class CommonLabels:
    """Labels in the terms two data sets share.

    Attributes
    ----------
    labels
        One a cell; "" where the cell is left out.
    is_kept
        True where the label has a common one.
    left_out
        Cells left out, by their own label.
    """

    labels: Shaped[np.ndarray, " cell"] = field(repr=False)
    is_kept: Bool[np.ndarray, " cell"] = field(repr=False)
    left_out: Mapping[str, int]


def read_label_mapping(path: Path) -> dict[str, dict[str, str]]:
    """A CSV of dataset, label, common -> ``[dataset][label]``; an empty common leaves cells out."""
    # "NA" is a label here, and pandas would read it as missing.
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    wanted = {"dataset", "label", "common"}
    if not wanted <= set(table.columns):
        raise LabelError(
            f"{path} has columns {list(table.columns)}; wanted dataset, label and common."
        )
    mapping: dict[str, dict[str, str]] = {}
    for dataset, label, common in table[["dataset", "label", "common"]].itertuples(index=False):
        if mapping.setdefault(dataset, {}).setdefault(label, common) != common:
            raise LabelError(f"{path} maps {dataset}'s {label!r} twice; keep one of the rows.")
    return mapping


def common_labels(
    labels: Shaped[np.ndarray, " cell"], mapping: Mapping[str, str], *, name: str = "the data"
) -> CommonLabels:
    """Put each cell's label in common terms. Cells without a label are left out and counted.

    Raises LabelError for a label the mapping does not name: it may be a slip of the pen.
    """
    names = [NO_LABEL if pd.isna(label) else str(label) for label in np.asarray(labels, object)]
    known = {NO_LABEL: "", **mapping}
    strange = sorted(set(names) - set(known))
    if strange:
        raise LabelError(
            f"{name} has labels the mapping does not name: {', '.join(map(repr, strange[:5]))}"
            f"{' ...' if len(strange) > 5 else ''}. Add a row for each, with an empty common "
            f"label to leave its cells out. It names {', '.join(map(repr, sorted(mapping)))}."
        )
    common = np.array([known[label] for label in names], dtype=object)
    is_kept = common != ""
    left_out = Counter(label for label in names if known[label] == "")
    return CommonLabels(common, is_kept, dict(left_out))


def evaluate_transfer(
    truth: Shaped[np.ndarray, " cell"],
    predictions: Mapping[str, Prediction],
    *,
    reference: Mapping[str, Any],
    query: Mapping[str, Any],
    seed: int = 0,
    n_bootstrap: int = 1_000,
) -> Evaluation:
    """Score every method on the same cells and say who wins.

    The first of ``predictions`` of kind "model" is judged; the rest it is judged against.
    ``reference`` and ``query`` describe the data sets and are handed on. Raises LabelError where a
    method has not one label a cell.
    """
    truth = np.asarray(truth, dtype=object)
    for key, method in predictions.items():
        if len(method.predicted) != len(truth) or len(truth) == 0:
            raise LabelError(
                f"{key} has {len(method.predicted):,} predicted labels for {len(truth):,} cells; "
                "wanted one a cell, and at least one cell."
            )
    predicted = {key: np.asarray(m.predicted, dtype=object) for key, m in predictions.items()}
    draws = bootstrap_scores(truth, predicted, n_bootstrap=n_bootstrap, seed=seed)
    labels = labels_in(truth)
    results = [
        MethodResult(
            key=key,
            name=method.name,
            kind=method.kind,
            per_class=_per_class(truth, predicted[key], labels),
            predicted=predicted[key],
            note=method.note,
            **{name: score.interval() for name, score in draws[key].items()},
        )
        for key, method in predictions.items()
    ]
    versus = _versus(results, {key: d["macro_f1"] for key, d in draws.items()})
    return Evaluation(
        reference=dict(reference),
        query=dict(query),
        labels=labels,
        truth=truth,
        methods=results,
        versus=versus,
        verdict=verdict_on(results, versus),
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def verdict_on(methods: list[MethodResult], versus: Mapping[str, Interval]) -> str:
    """One sentence: the model against the baseline of highest macro-F1, by how much, and how sure.

    A winner is named only where the difference's interval excludes zero.
    """
    model = next((m for m in methods if m.kind == "model"), None)
    baselines = [m for m in methods if m.kind == "baseline"]
    if model is None or not baselines:
        lacking = "model" if model is None else "baseline"
        return f"No verdict: there is no {lacking} among the methods compared."
    best = max(baselines, key=lambda m: m.macro_f1.value)
    difference = versus[best.key]
    ours, theirs = f"{model.macro_f1.value:.3f}", f"{best.macro_f1.value:.3f}"
    interval = f"95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.low > 0:
        return (
            f"{model.name} wins: macro-F1 {ours} against {theirs} of the strongest baseline, "
            f"{best.name} (difference {difference.value:+.3f}, {interval}, which excludes zero)."
        )
    if difference.high < 0:
        return (
            f"The strongest baseline, {best.name}, wins: macro-F1 {theirs} against "
            f"{model.name}'s {ours} (difference {difference.value:+.3f}, {interval}, "
            "which excludes zero)."
        )
    return (
        f"No clear winner: macro-F1 {ours} of {model.name} and {theirs} of the strongest baseline, "
        f"{best.name} (difference {difference.value:+.3f}, {interval}, which includes zero)."
    )


def _per_class(
    truth: Shaped[np.ndarray, " cell"], predicted: Shaped[np.ndarray, " cell"], labels: list[str]
) -> dict[str, ClassScore]:
    scores = label_scores_of(confusion_matrix(truth, predicted, labels))
    return {
        label: ClassScore(float(precision), float(recall), float(f1), int(n_cells))
        for label, precision, recall, f1, n_cells in zip(labels, *scores, strict=True)
    }


def _versus(results: list[MethodResult], draws: Mapping[str, ScoreDraws]) -> dict[str, Interval]:
    model = next((r.key for r in results if r.kind == "model"), None)
    if model is None:
        return {}
    return {r.key: draws[model].minus(draws[r.key]) for r in results if r.key != model}
