"""A judged perturbation head -> its run folder.

in   PerturbationEvaluation, the head
out  metrics.json (the verdict first), scores.csv, scores.png, head/
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scfm.data.write import atomic_folder
from scfm.evaluate.figures import ACCENT, INK, LINE, MUTED
from scfm.evaluate.perturbation_scores import METHODS, SCORES, PerturbationEvaluation
from scfm.model.perturbation import PerturbationHead
from scfm.model.perturbation_folder import save_perturbation

METRICS = "metrics.json"


def write_run(out: str | Path, evaluation: PerturbationEvaluation, head: PerturbationHead) -> None:
    """The whole folder or nothing; an earlier run's is replaced."""
    with atomic_folder(out, marker=METRICS) as folder:
        (folder / METRICS).write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n")
        evaluation.table.to_csv(folder / "scores.csv", index=False)
        draw_scores(evaluation, folder / "scores.png")
        save_perturbation(head, folder / "head")


def score_table(evaluation: PerturbationEvaluation) -> str:
    """Methods by scores, as lines of text."""
    shown = [m for m in METHODS if m.key in evaluation.scores]
    width = max(len(m.name) for m in shown)
    heads = [f"{score:>28}" for score in SCORES]
    lines = [" " * width + "".join(heads)]
    for method in shown:
        scores = [evaluation.scores[method.key][score] for score in SCORES]
        numbers = [f"{f'{s.value:.4f} ({s.low:.4f} to {s.high:.4f})':>28}" for s in scores]
        lines.append(f"{method.name:<{width}}{''.join(numbers)}")
    return "\n".join(lines)


def draw_scores(evaluation: PerturbationEvaluation, path: Path) -> None:
    """One panel a score: a dot a perturbation, the mean with its interval."""
    size = (4.2 * len(SCORES), 0.9 + 0.5 * len(evaluation.scores))
    figure, axes = plt.subplots(1, len(SCORES), figsize=size, layout="constrained", sharey=True)
    figure.get_layout_engine().set(wspace=0.06)  # pyright: ignore
    for ax, score in zip(axes, SCORES, strict=True):
        _panel(ax, evaluation, score)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(ax: Axes, evaluation: PerturbationEvaluation, score: str) -> None:
    shown = [m for m in METHODS if m.key in evaluation.scores]
    for height, method in enumerate(reversed(shown)):
        colour = ACCENT if method.kind == "model" else INK
        own = evaluation.table[evaluation.table["method"] == method.key][score]
        # in a lane of their own below the mean, which would hide those it lies on
        lane = [height - 0.22] * len(own)
        ax.plot(own, lane, "o", ms=4, color=MUTED, alpha=0.55, mew=0, zorder=2)
        found = evaluation.scores[method.key][score]
        ax.plot([found.low, found.high], [height] * 2, color=colour, lw=2, zorder=3)
        ax.plot([found.value], [height], "o", ms=6, color=colour, zorder=4)
    ax.set_yticks(range(len(shown)), [m.name for m in reversed(shown)], color=INK)
    ax.set_ylim(-0.6, len(shown) - 0.6)
    name, more_is_better = SCORES[score]
    if more_is_better:  # of the three it is Pearson's r, which has two sides
        ax.axvline(0, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    ax.set_xlabel(f"{name}\n({'more' if more_is_better else 'less'} is better)", color=MUTED)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="x", color=LINE, lw=0.6, zorder=0)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
