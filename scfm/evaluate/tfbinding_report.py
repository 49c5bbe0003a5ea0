"""A BindingEvaluation -> report.html, metrics.json, calibration.json and figures in a folder.

in   BindingEvaluation, BindingCalibration, provenance
out  one self-contained page, two JSON files, aupr.png

Layout and style are those of every report: scfm.evaluate.report and templates/.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from scfm.data.write import atomic_path, make_folder
from scfm.evaluate import figures, inline, typing_figures
from scfm.evaluate.celltype_result import ReliabilityBin
from scfm.evaluate.report import captioned, finite, grouped, page_environment
from scfm.evaluate.tfbinding_result import (
    HEADINGS,
    BindingEvaluation,
    BindingScores,
    Calibration,
    CellScores,
    Quadrant,
)
from scfm.evaluate.wording import score, signed
from scfm.tasks.tf_calibration import BindingCalibration

MOST_PAIRS = 60  # listed one by one


def write_tfbinding(
    result: BindingEvaluation,
    calibration: BindingCalibration,
    out: str | Path,
    *,
    title: str,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """All files of an evaluation into a folder. Raises OutputError."""
    folder = make_folder(out)
    found = result.to_dict() | {"provenance": dict(provenance or {})}
    with atomic_path(folder / "metrics.json") as path:
        text = json.dumps(finite(found), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    calibration.save(folder / "calibration.json")
    with atomic_path(folder / "aupr.png") as path:
        scores_figure(result.headline).savefig(path, dpi=150)
    with atomic_path(folder / "report.html") as path:
        path.write_text(page(result, title, provenance or {}), encoding="utf-8")


def page(result: BindingEvaluation, title: str, provenance: Mapping[str, Any]) -> str:
    """The report."""
    here = result.headline
    template = page_environment().get_template("tfbinding.html.j2")
    return template.render(
        result=result,
        title=title,
        here=here,
        model=result.model,
        rankings=[(quadrant, ranked(quadrant.methods)) for quadrant in result.quadrants],
        standing=standing,
        same_pairs=len({method.n_pairs for method in here.methods}) == 1,
        headings=HEADINGS,
        chart=inline.svg(scores_figure(here), name="aupr"),
        gaps=difference_chart(here, result.model),
        reliability=reliability_chart(result.calibration),
        pairs_shown=pairs_shown(here, result.model),
        n_pairs=len(here.per_pair),
        cells=cells_ranked(result.cells),
        data=captioned(result.data),
        settings=captioned(result.settings),
        provenance=grouped(provenance),
    )


def ranked(methods: Sequence[BindingScores]) -> list[BindingScores]:
    """Best AUPR first: a baseline that wins stands on top."""
    return sorted(methods, key=lambda method: -method.scores["aupr"].value)


def standing(quadrant: Quadrant, method: BindingScores) -> str:
    """The model's AUPR minus this method's over the pairs both have, for the table."""
    if method.kind == "model":
        return "the model judged here"
    if method.key not in quadrant.versus:
        return "not compared"
    gap = quadrant.versus[method.key]
    told = f"{signed(gap.value)} ({signed(gap.low)} to {signed(gap.high)})"
    shared = quadrant.n_shared[method.key]
    return told if shared == method.n_pairs else f"{told}, {shared} pairs"


def scores_figure(quadrant: Quadrant) -> Figure:
    """AUPR of every method with its interval, best first."""
    methods = ranked(quadrant.methods)
    figure = Figure(figsize=(4.4, 0.55 + 0.45 * len(methods)), layout="constrained")
    figures.intervals(
        figure.subplots(),
        [method.name for method in methods],
        [method.scores["aupr"] for method in methods],
        highlight=[method.kind for method in methods].index("model"),
        score_name="AUPR, mean over pairs",
    )
    return figure


def difference_chart(quadrant: Quadrant, model: BindingScores) -> Markup | None:
    """The model's AUPR minus each other method's."""
    methods = [m for m in ranked(quadrant.methods) if m.key in quadrant.versus]
    if not methods:
        return None
    figure = Figure(figsize=(4.4, 0.55 + 0.45 * len(methods)), layout="constrained")
    figures.differences(
        figure.subplots(),
        [method.name for method in methods],
        [quadrant.versus[method.key] for method in methods],
        model=model.name,
        score_name="AUPR",
    )
    return inline.svg(figure, name="gaps")


def reliability_chart(calibration: Calibration | None) -> Markup | None:
    """Share bound against the calibrated probability, a dot a bin."""
    if calibration is None:
        return None
    figure = Figure(figsize=(3.4, 3.4), layout="constrained")
    ax = figure.subplots()
    bins = [ReliabilityBin(said, bound, n) for said, bound, n in calibration.bins]
    typing_figures.reliability(ax, bins)
    ax.set(xlabel="calibrated probability", ylabel="share bound")
    return inline.svg(figure, name="reliability")


def pairs_shown(quadrant: Quadrant, model: BindingScores) -> list[tuple[str, list[str]]]:
    """Pairs by the model's AUPR, the best first: cells of their row of the table."""
    methods = [model, *(m for m in ranked(quadrant.methods) if m.key != model.key)]
    by_model = sorted(
        quadrant.per_pair.items(), key=lambda item: -_or_least(item[1].get(model.key))
    )
    return [
        (
            name,
            [
                f"{int(found['n_regions']):,}",
                score(found["prevalence"]),
                *(score(found.get(method.key, float("nan"))) for method in methods),
            ],
        )
        for name, found in by_model[:MOST_PAIRS]
    ]


def cells_ranked(cells: Sequence[CellScores]) -> list[CellScores]:
    """Best ARI first."""
    return sorted(cells, key=lambda one: -one.ari.value)


def _or_least(value: float | None) -> float:
    return -1.0 if value is None or value != value else value
