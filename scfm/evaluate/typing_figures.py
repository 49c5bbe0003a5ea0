"""How sure against how often right, and F1 type by type: drawings of a CelltypeResult's parts.

in   reliability bins; F1 of each label by method
out  the artist that carries the data, drawn on the Axes given

The page and scfm.pl draw with the same functions, in the role colours of scfm.evaluate.figures.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from scfm.evaluate import figures
from scfm.evaluate.celltype_result import ReliabilityBin

LARGEST_DOT = 90.0  # square points: a bin with all the cells


def reliability(
    ax: Axes, bins: Sequence[ReliabilityBin], *, highlight: bool = True
) -> PathCollection:
    """Share of cells that are right against how sure the method was, a dot a bin.

    On the diagonal a probability can be taken at its word; below it the method is too sure. A
    dot's area is the share of the cells.
    """
    colour = figures.ACCENT if highlight else figures.MUTED
    sure = np.array([b.confidence for b in bins])
    right = np.array([b.accuracy for b in bins])
    n_cells = np.array([b.n_cells for b in bins], dtype=np.float64)
    ax.plot([0, 1], [0, 1], color=figures.LINE, lw=1.2, zorder=1)
    ax.plot(sure, right, color=colour, lw=1.2, zorder=2)
    area = np.maximum(LARGEST_DOT * n_cells / n_cells.sum(), 6)
    dots = ax.scatter(sure, right, s=area, c=colour, zorder=3, linewidths=0)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    ax.set(xlabel="confidence", ylabel="share right", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    quiet(ax)
    return dots


def per_class(
    ax: Axes, f1: Mapping[str, Sequence[float]], labels: Sequence[str]
) -> list[PathCollection]:
    """F1 of every label, a row each; the first method in colour, the others as grey dots."""
    rows = -np.arange(len(labels), dtype=float)
    ax.hlines(rows, 0, 1, color=figures.LINE, lw=0.8, zorder=0)
    drawn = [
        ax.scatter(
            values,
            rows,
            s=34 if first else 16,
            zorder=3 if first else 2,
            linewidths=0,
            c=figures.ACCENT if first else figures.MUTED,
            alpha=1 if first else 0.7,
            label=name if first else None,
        )
        for name, values in f1.items()
        for first in [name == next(iter(f1))]
    ]
    ax.set_yticks(rows, labels)
    for tick in ax.get_yticklabels():
        tick.set_parse_math(False)  # a "$" in a label is a dollar sign
    ax.set(xlim=(-0.03, 1.03), ylim=(rows.min() - 0.6, 0.6), xlabel="F1")
    quiet(ax)
    return drawn


def quiet(ax: Axes) -> None:
    """Grey ticks, no box."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(figures.LINE)
    ax.tick_params(length=0, labelsize=8.5, labelcolor=figures.INK)
    ax.xaxis.label.set(color=figures.MUTED, fontsize=8.5)
    ax.yaxis.label.set(color=figures.MUTED, fontsize=8.5)
