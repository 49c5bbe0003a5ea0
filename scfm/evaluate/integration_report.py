"""An IntegrationResult -> report.html and metrics.json.

in   IntegrationResult, provenance
out  one self-contained page and one JSON file in a folder

Layout and style are those of every report: scfm.evaluate.report and templates/.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from scfm.data.write import atomic_path, make_folder
from scfm.evaluate import figures, inline, typing_figures
from scfm.evaluate.integration import EmbeddingResult, IntegrationResult
from scfm.evaluate.integration_scores import BATCH, BIOLOGICAL, HEADINGS
from scfm.evaluate.report import captioned, finite, grouped, page_environment

COLUMNS = ("total", "biological", "batch", *BIOLOGICAL, *BATCH)


def write_integration(
    result: IntegrationResult,
    out: str | Path,
    *,
    title: str,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """metrics.json and report.html into a folder. Raises OutputError."""
    folder = make_folder(out)
    found = result.to_dict() | {"provenance": dict(provenance or {})}
    with atomic_path(folder / "metrics.json") as path:
        text = json.dumps(finite(found), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    with atomic_path(folder / "report.html") as path:
        path.write_text(page(result, title, provenance or {}), encoding="utf-8")


def page(result: IntegrationResult, title: str, provenance: Mapping[str, Any]) -> str:
    """The report."""
    ranking = sorted(result.methods, key=lambda method: -method.scores["total"].value)
    template = page_environment().get_template("integration.html.j2")
    return template.render(
        result=result,
        title=title,
        model=result.judged,
        ranking=ranking,
        columns=COLUMNS,
        headings=HEADINGS,
        best={name: max(m.scores[name].value for m in ranking) for name in COLUMNS},
        chart=total_chart(ranking, result.judged),
        plane=plane_chart(ranking, result.judged),
        data=captioned(result.data),
        settings=captioned(result.settings),
        provenance=grouped(provenance),
    )


def total_chart(ranking: list[EmbeddingResult], model: EmbeddingResult) -> Markup:
    """The total of every embedding, best first, with what the draws span."""
    figure = Figure(figsize=(4, 0.55 + 0.45 * len(ranking)), layout="constrained")
    ax = figure.subplots()
    figures.intervals(
        *(ax, [m.name for m in ranking], [m.scores["total"] for m in ranking]),
        highlight=ranking.index(model),
    )
    ax.set_xlabel("total score, spread over draws")
    return inline.svg(figure, name="total")


def plane_chart(ranking: list[EmbeddingResult], model: EmbeddingResult) -> Markup:
    """Types kept apart against batches mixed, a dot an embedding."""
    figure = Figure(figsize=(4, 3.6), layout="constrained")
    ax = figure.subplots()
    x = [method.scores["batch"].value for method in ranking]
    y = [method.scores["biological"].value for method in ranking]
    colours = [figures.ACCENT if m is model else figures.MUTED for m in ranking]
    ax.scatter(x, y, s=36, c=colours, linewidths=0, zorder=3)
    for method, across, up, colour in zip(ranking, x, y, colours, strict=True):
        ax.annotate(
            method.name, (across, up), xytext=(0, 7), textcoords="offset points",
            ha="center", fontsize=8.5, color=colour, parse_math=False,
        )  # fmt: skip
    ax.margins(0.25)
    ax.set(xlabel="batches mixed", ylabel="types kept apart")
    typing_figures.quiet(ax)
    return inline.svg(figure, name="plane")
