"""A CelltypeResult -> report.html, metrics.json and figures in a folder.

in   CelltypeResult, provenance
out  one self-contained page, one JSON file, PNG figures

Layout and style are those of every report: scfm.evaluate.report and templates/.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from scfm.data.write import atomic_path, make_folder
from scfm.evaluate import figures, inline, typing_figures
from scfm.evaluate.celltype_result import CelltypeResult
from scfm.evaluate.report import (
    best_values,
    captioned,
    confusion_chart,
    confusion_columns,
    confusion_words,
    difference_chart,
    finite,
    grouped,
    interval_chart,
    page_environment,
    ranked,
    standing,
)
from scfm.evaluate.results import Evaluation, MethodResult

FIGURES = ("scores.png", "reliability.png", "per_class.png")
DOTS_PER_INCH = 150


def write_celltype(
    result: CelltypeResult,
    out: str | Path,
    *,
    title: str,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """metrics.json, report.html and the figures into a folder. Raises OutputError."""
    folder = make_folder(out)
    found = result.to_dict() | {"provenance": dict(provenance or {})}
    with atomic_path(folder / "metrics.json") as path:
        text = json.dumps(finite(found), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    with atomic_path(folder / "report.html") as path:
        path.write_text(page(result, title, provenance or {}), encoding="utf-8")
    for name, figure in zip(FIGURES, drawings(result), strict=True):
        with atomic_path(folder / name) as path:
            figure.savefig(path, format="png", dpi=DOTS_PER_INCH, facecolor="white")


def page(result: CelltypeResult, title: str, provenance: Mapping[str, Any]) -> str:
    """The report."""
    evaluation = result.evaluation
    order = ranked(evaluation)
    template = page_environment().get_template("celltype.html.j2")
    return template.render(
        result=result,
        evaluation=evaluation,
        title=title,
        model=evaluation.methods[0],
        ranking=order,
        best=best_values(evaluation),
        best_unknown=_best_unknown(result),
        best_ece=min(found.error.value for found in result.calibration.values()),
        standing={method.key: _standing(evaluation, method) for method in evaluation.methods},
        interval_chart=interval_chart(evaluation),
        difference_chart=difference_chart(evaluation),
        confusion_chart=confusion_chart(evaluation),
        confusion_words=confusion_words(evaluation),
        wide_confusion=len(confusion_columns(evaluation)) > 10,
        reliabilities={m.key: reliability_chart(result, m.key) for m in order},
        unknown_labels=sorted({u for found in result.unknown.values() for u in found}),
        data={
            "Learned from": captioned(evaluation.reference),
            "Judged": captioned(evaluation.query),
        },
        settings=captioned(result.settings),
        provenance=grouped(provenance),
        isfinite=math.isfinite,
    )


def _standing(evaluation: Evaluation, method: MethodResult) -> tuple[str, str]:
    """As scfm.evaluate.report.standing, where of several models the best is judged."""
    is_judged = method is evaluation.methods[0]
    return standing(evaluation, method if is_judged else replace(method, kind="baseline"))


def _best_unknown(result: CelltypeResult) -> dict[str, float]:
    """The highest AUROC of each left-out label, and of their mean ("")."""
    labels = {label for found in result.unknown.values() for label in found}
    best = {
        label: max(found[label].value for found in result.unknown.values() if label in found)
        for label in labels
    }
    means = [result.mean_unknown(key) for key in result.unknown]
    return best | {"": max((m for m in means if math.isfinite(m)), default=math.nan)}


def reliability_chart(result: CelltypeResult, key: str) -> Markup:
    """One method's reliability, for its panel."""
    figure = Figure(figsize=(2.6, 2.5), layout="constrained")
    is_model = result.evaluation.method(key).kind == "model"
    typing_figures.reliability(figure.subplots(), result.calibration[key].bins, highlight=is_model)
    return inline.svg(figure, name=f"reliability-{key}")


def drawings(result: CelltypeResult) -> tuple[Figure, Figure, Figure]:
    """The figures that lie beside the page, for a talk or a paper."""
    evaluation, order = result.evaluation, ranked(result.evaluation)
    scores = Figure(figsize=(5, 0.7 + 0.5 * len(order)), layout="constrained")
    figures.intervals(
        *(scores.subplots(), [m.name for m in order], [m.macro_f1 for m in order]),
        highlight=order.index(evaluation.methods[0]),
    )
    reliable = Figure(figsize=(4, 4), layout="constrained")
    model = evaluation.methods[0]
    axes = reliable.subplots()
    typing_figures.reliability(axes, result.calibration[model.key].bins)
    axes.set_title(model.name, fontsize=10, parse_math=False)
    labels = list(evaluation.labels)
    classes = Figure(figsize=(5, 0.8 + 0.35 * len(labels)), layout="constrained")
    typing_figures.per_class(classes.subplots(), f1_by_method(result), labels)
    return scores, reliable, classes


def f1_by_method(result: CelltypeResult) -> dict[str, list[float]]:
    """F1 of every label, in their order, by the method's name; the judged model first."""
    return {
        method.name: [method.per_class[label].f1 for label in result.evaluation.labels]
        for method in result.evaluation.methods
    }
