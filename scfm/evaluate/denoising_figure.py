"""A DenoisingResult -> one figure: each score by share of the counts kept, a line a method.

in   DenoisingResult
out  a matplotlib Figure in the report's colours
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scfm.evaluate.denoising_result import MODEL, NAMES, DenoisingResult
from scfm.evaluate.figures import ACCENT, INK, LINE, MUTED, PALETTE, PAPER

PANELS = {
    "mae": "MAE, log1p(cp10k)",
    "mae_nonzero": "MAE of expressed genes",
    "mre": "MRE of expressed genes",
    "pearson_cell": "Pearson r over genes, mean of cells",
    "pearson_gene": "Pearson r over cells, mean of genes",
}
OTHERS = (PALETTE[1], PALETTE[2], PALETTE[3])
MARKERS = "osD^"  # told apart without colour


def draw(result: DenoisingResult) -> Figure:
    """A panel a score, the legend in the last place; bars are 95 % intervals over cells."""
    figure = Figure(figsize=(11.4, 6.2), layout="constrained", facecolor=PAPER)
    *axes, last = figure.subplots(2, 3).flat
    for ax, (score, title) in zip(axes, PANELS.items(), strict=True):
        _panel(ax, result, score, title)
    last.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    last.legend(handles, labels, loc="center left", frameon=False, fontsize=10)
    return figure


def _panel(ax: Axes, result: DenoisingResult, score: str, title: str) -> None:
    shares = [at.share * 100 for at in result.shares]
    others = iter(OTHERS)
    for marker, method in zip(MARKERS, result.shares[0].scores, strict=True):
        found = [at.scores[method][score] for at in result.shares]
        is_model = method == MODEL
        ax.errorbar(
            shares,
            [one.value for one in found],
            yerr=[
                [max(one.value - one.low, 0) for one in found],
                [max(one.high - one.value, 0) for one in found],
            ],
            color=ACCENT if is_model else next(others),
            lw=2 if is_model else 1.3,
            marker=marker,
            ms=5,
            capsize=2,
            label=NAMES[method],
        )
    ax.set_xscale("log")
    ax.set_xticks(shares, [f"{share:g} %" for share in shares])
    ax.set_xticks([], minor=True)
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    ax.set_xlabel("counts kept", fontsize=8.5, color=MUTED)
    ax.grid(axis="y", color=LINE, lw=0.6)
    ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
