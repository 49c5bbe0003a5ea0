"""A GenerationResult -> report.html and metrics.json.

in   GenerationResult
out  one self-contained page and one JSON file in a folder

Layout and style are those of every report: scfm.evaluate.report and templates/.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from scfm.data.write import atomic_path, make_folder
from scfm.evaluate import figures, inline
from scfm.evaluate.generation_result import (
    GENERATED,
    HEADINGS,
    NAMES,
    PRIMARY,
    RIVALS,
    GenerationResult,
)
from scfm.evaluate.generation_scores import LOWER_IS_BETTER, SCORES
from scfm.evaluate.report import captioned, finite, gene_tables, page_environment
from scfm.evaluate.results import Interval
from scfm.evaluate.wording import MINUS

CHARTS = {
    "mmd2": "Distance of the whole distribution (squared MMD). Left is nearer to real cells.",
    "auroc": "How well a classifier tells the cells from real ones. At 0.5 it guesses.",
    "mean_r": "Correlation of gene means with those of real cells. Right is nearer.",
    "variance_r": "Correlation of gene variances with those of real cells. Right is nearer.",
}
MOST_SCATTERS = 9
SCATTER_WIDTH = 300  # CSS pixels


def write_generation(result: GenerationResult, out: str | Path, *, title: str) -> None:
    """metrics.json and report.html into a folder. Raises OutputError."""
    folder = make_folder(out)
    with atomic_path(folder / "metrics.json") as path:
        text = json.dumps(finite(result.to_dict()), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    with atomic_path(folder / "report.html") as path:
        path.write_text(page(result, title), encoding="utf-8")


def page(result: GenerationResult, title: str) -> str:
    """The report."""
    template = page_environment().get_template("generation.html.j2")
    made_how = {k: v for k, v in result.generator.items() if not isinstance(v, dict)}
    return template.render(
        result=result,
        title=title,
        names=NAMES,
        headings=HEADINGS,
        scores=SCORES,
        lower=LOWER_IS_BETTER,
        primary=PRIMARY,
        generated=GENERATED,
        best={s: result.best(s, among=(GENERATED, *RIVALS)) for s in SCORES},
        standing={method: standing(result, method) for method in result.scores},
        typical={m: result.typical(m) for m in (*result.scores, "held_out")},
        charts={score: (chart(result, score), CHARTS[score]) for score in CHARTS},
        scatters=scatters(result),
        made_how=captioned(made_how),
        settings=captioned(result.settings),
        data=captioned({k: v for k, v in result.data.items() if k not in ("genes", "left_out")}),
        left_out=result.data["left_out"],
        genes=gene_tables({result.data["real"]: result.data["genes"]}),
        digits=digits,
        spread=spread,
    )


def standing(result: GenerationResult, method: str) -> tuple[str, str]:
    """How a method stands against the generated cells by the first score, in style and words.

    "Clearly" means that the paired 95 % interval of the difference does not reach zero.
    """
    if method == GENERATED:
        return "model", "judged here"
    if method not in RIVALS:
        return "even", "a bound"
    gap = result.versus[method][PRIMARY]
    if gap.low > 0:
        return "ahead", "nearer"
    if gap.high < 0:
        return "behind", "farther"
    return "even", "not clear"


def digits(value: float, score: str) -> str:
    """A score as the table shows it; MMD has small values."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    n_digits = 4 if score == PRIMARY else 3
    shown = f"{round(value, n_digits) + 0.0:.{n_digits}f}"  # no minus before a zero
    return shown.replace("-", MINUS)


def spread(interval: Interval, score: str) -> str:
    """Both ends of an interval."""
    if not math.isfinite(interval.low):
        return ""
    return f"{digits(interval.low, score)} to {digits(interval.high, score)}"


def chart(result: GenerationResult, score: str) -> Markup:
    """One score of every method with its interval, in the table's order."""
    methods = list(result.scores)
    found = [result.scores[method][score] for method in methods]
    figure = Figure(figsize=(4, 0.55 + 0.45 * len(methods)), layout="constrained")
    ax = figure.subplots()
    names = [NAMES[method] for method in methods]
    figures.intervals(
        *(ax, names, found),
        highlight=methods.index(GENERATED),
        digits=4 if score == PRIMARY else 3,
    )
    low, high = min(one.low for one in found), max(one.high for one in found)
    room = 0.05 * (high - low) + 1e-4
    ax.set_xlim(low - room, high + room)
    ax.set_xlabel(f"{HEADINGS[score]}, mean over types, 95 % interval")
    return inline.svg(figure, name=f"chart-{score}")


def scatters(result: GenerationResult) -> list[dict[str, Any]]:
    """Means of the judged genes, generated against real, for some types."""
    found = []
    for label in result.types[:MOST_SCATTERS]:
        real, made = result.means[label]
        figure = Figure(figsize=(3, 3), layout="constrained")
        ax = figure.subplots()
        top = 1.03 * max(float(np.max(real)), float(np.max(made)), 1e-3)
        ax.plot([0, top], [0, top], color=figures.MUTED, lw=0.8)
        ax.scatter(real, made, s=7, c=figures.ACCENT, alpha=0.5, linewidths=0)
        ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        ax.set_xlabel("real cells", color=figures.MUTED, fontsize=8.5)
        ax.set_ylabel("generated cells", color=figures.MUTED, fontsize=8.5)
        ax.tick_params(length=0, labelsize=8, labelcolor=figures.MUTED)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(figures.MUTED)
        r = result.per_type[label][GENERATED]["mean_r"]
        found.append(
            {
                "title": label,
                "caption": f"r = {r:.3f} over {len(real):,} genes",
                "image": inline.png(figure, width=SCATTER_WIDTH),
            }
        )
    return found
