"""Arrays -> drawings. Knows matplotlib's Axes and no AnnData, file or page.

in   coordinates, labels, counts, losses, scores: plain arrays
out  the artist that carries the data, drawn on the Axes given

The report and scfm.pl draw with the same functions, so a figure on a page and in a notebook agree.
Six colours (INK ... SECOND) stand for roles; scfm.evaluate.inline replaces them by the page's own,
which is how one drawing stays legible on light and on dark ground.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.patheffects
import numpy as np
from jaxtyping import Float, Int, Num
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from scfm.evaluate.results import Interval

INK, MUTED, LINE, PAPER = "#1a2530", "#5c6873", "#d4dbe1", "#fffffe"
ACCENT, ON_ACCENT, SECOND = "#1d5f91", "#fefefe", "#b9501a"

UNKNOWN = "unknown"
UNKNOWN_GREY = "#98a2ad"

# Okabe & Ito's colours (jfly.uni-koeln.de/color) without black and yellow, which vanish on dark
# and on light ground, the blue lighter for the same reason. From the seventh on no set is safe for
# every eye, so panels also carry names.
PALETTE = (
    *("#1c7fc4", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c7a00", "#7b5fc0"),
    *("#a6522d", "#2fb5a5", "#c2387a", "#6b8e23", "#5b7f95", "#d98880", "#3f8f3f", "#b08fd8"),
)

SHARE_MAP = LinearSegmentedColormap.from_list("share", [(*to_rgb(ACCENT), 0), (*to_rgb(ACCENT), 1)])
LIGHT_TEXT_FROM = 0.7  # share from which a cell's ground is dark enough for ON_ACCENT


def label_colours(*labels: Iterable[str]) -> dict[str, str]:
    """One colour a label, the same for any order and repetition: one call serves all panels."""
    names = sorted({str(label) for some in labels for label in some} - {UNKNOWN})
    return dict(zip(names, cycle(PALETTE), strict=False)) | {UNKNOWN: UNKNOWN_GREY}


def embedding(
    ax: Axes,
    coordinates: Num[np.ndarray, "cell 2"],
    labels: Sequence[str] | np.ndarray,
    colours: Mapping[str, str],
    *,
    legend: bool = True,
) -> PathCollection:
    """Cells as dots coloured by label; the legend stands beside the axes, never on the cells."""
    labels = np.asarray(labels, dtype=str)
    assert coordinates.shape == (len(labels), 2), (coordinates.shape, len(labels))
    # Drawn label by label the last label would cover the others where they mix.
    order = np.random.default_rng(0).permutation(len(labels))
    dots = ax.scatter(
        *coordinates[order].T,
        c=[colours[label] for label in labels[order]],
        s=dot_size(len(labels)),
        alpha=0.8,
        linewidths=0,
    )
    _as_map(ax)
    if legend:
        _legend_beside(ax, {k: v for k, v in colours.items() if k in set(labels)})
    return dots


def confidence(
    ax: Axes,
    coordinates: Num[np.ndarray, "cell 2"],
    values: Float[np.ndarray, " cell"],
    is_unknown: np.ndarray,
) -> PathCollection:
    """Cells as dots coloured by confidence in 0 ... 1; unknown cells grey, underneath.

    Returns the coloured dots. Cells without a value count as unknown.
    """
    is_unknown = is_unknown | np.isnan(values)
    size = dot_size(len(values))
    ax.scatter(*coordinates[is_unknown].T, c=UNKNOWN_GREY, s=size, linewidths=0, label=UNKNOWN)
    known = np.flatnonzero(~is_unknown)
    known = known[np.argsort(-values[known], kind="stable")]  # doubtful cells stay visible
    dots = ax.scatter(
        *coordinates[known].T,
        c=values[known],
        s=size,
        cmap="viridis_r",
        vmin=0,
        vmax=1,
        linewidths=0,
    )
    _as_map(ax)
    if is_unknown.any():
        _legend_beside(ax, {f"{UNKNOWN} ({is_unknown.sum():,} cells)": UNKNOWN_GREY}, below=True)
    return dots


def name_places(
    ax: Axes, coordinates: Num[np.ndarray, "cell 2"], labels: Sequence[str] | np.ndarray
) -> dict[str, tuple[float, float]]:
    """Where to write each label: its cells' median in fractions of the axes, pushed apart in y.

    Labels of less than 1 % of the cells, and unknown, get no place.
    """
    labels = np.asarray(labels, dtype=str)
    found, n_cells = np.unique(labels, return_counts=True)
    # The median of a few stray cells lies among another label's.
    enough = n_cells >= 0.01 * len(labels)
    names = [str(name) for name in found[enough] if name != UNKNOWN]
    ax.autoscale_view()  # the limits are set lazily; without them the transform is another
    to_fraction = ax.transData + ax.transAxes.inverted()
    places = np.array(
        [to_fraction.transform(np.median(coordinates[labels == name], axis=0)) for name in names]
    ).reshape(-1, 2)
    near_x, near_y = 0.25, 0.07  # about one word and one line of a panel
    for _ in range(50):
        for i in range(len(names)):
            for j in range(i):
                gap = places[i] - places[j]
                if abs(gap[0]) < near_x and abs(gap[1]) < near_y:
                    push = (near_y - abs(gap[1])) / 2 * (1 if gap[1] >= 0 else -1)
                    places[i, 1] += push
                    places[j, 1] -= push
    places = np.clip(places, 0.04, 0.96)
    return {name: (float(x), float(y)) for name, (x, y) in zip(names, places, strict=True)}


def write_names(ax: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Labels on the cells, with a rim that keeps them readable."""
    rim = [matplotlib.patheffects.withStroke(linewidth=3, foreground=PAPER)]
    for name, (x, y) in places.items():
        ax.text(
            x, y, name, transform=ax.transAxes, ha="center", va="center", parse_math=False,
            fontsize=9, fontweight="bold", color=INK, path_effects=rim,
        )  # fmt: skip


def confusion_counts(
    truth: np.ndarray, predicted: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> Int[np.ndarray, "row column"]:
    """Cells of each true label (row) given each predicted label (column)."""
    row_of = {label: i for i, label in enumerate(rows)}
    column_of = {label: i for i, label in enumerate(columns)}
    counts = np.zeros((len(rows), len(columns)), dtype=np.int64)
    for t, p in zip(truth, predicted, strict=True):
        counts[row_of[str(t)], column_of[str(p)]] += 1
    return counts


def confusion(
    ax: Axes, counts: Int[np.ndarray, "row column"], rows: Sequence[str], columns: Sequence[str]
) -> QuadMesh:
    """Share of each true label's cells (a row sums to 1) as colour and per cent, with cell counts.

    A row without cells stays blank.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    tiles = ax.pcolormesh(share, cmap=SHARE_MAP, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.5)
    for (i, j), n in np.ndenumerate(counts):
        if n == 0:
            continue
        colour = ON_ACCENT if share[i, j] >= LIGHT_TEXT_FROM else INK
        ax.text(
            j + 0.5, i + 0.47, _percent(share[i, j]),
            ha="center", va="bottom", fontsize=9, fontweight="bold", color=colour,
        )  # fmt: skip
        ax.text(
            j + 0.5, i + 0.57, f"{n:,}", ha="center", va="top", fontsize=7.5, color=colour
        )  # fmt: skip
    slanted = max(map(len, columns)) > 4
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, **slant)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    for tick in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        tick.set_parse_math(False)  # a "$" in a label is a dollar sign
    ax.invert_yaxis()
    ax.set(xlabel="predicted label", ylabel="true label")
    _plain(ax, frame=False)
    return tiles


def loss_curve(
    ax: Axes,
    steps: Sequence[float] | np.ndarray,
    losses: Sequence[float] | np.ndarray,
    validation: tuple[Sequence[float] | np.ndarray, Sequence[float | None] | np.ndarray]
    | None = None,
) -> Line2D:
    """Training loss by step, with its running mean; validation as dots on a line where given.

    Returns the line of the raw values. Entries that are not finite are steps without that value.
    """
    x, y = _measured(steps, losses)
    smooth = len(y) >= 60
    (raw,) = ax.plot(x, y, color=ACCENT, lw=0.8 if smooth else 1.6, alpha=0.35 if smooth else 1)
    named = {"training": ACCENT}
    at, held_out = _measured(*(validation or ([], [])))
    if smooth:
        ax.plot(x, _running_mean(y, max(5, len(y) // 40)), color=ACCENT, lw=1.8)
    if len(at):
        ax.plot(at, held_out, color=SECOND, lw=1.4, marker="o", ms=4)
        named["validation"] = SECOND
    if len(y) > 20 and np.ptp(y) > 0:
        # The first steps of a fresh network would flatten all that follows.
        low, high = np.min([*y, *held_out]), np.max([np.percentile(y, 98), *held_out])
        ax.set_ylim(low - 0.08 * (high - low), high + 0.12 * (high - low))
    ax.margins(x=0.02)
    ax.set(xlabel="step", ylabel="loss")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.locator_params(axis="both", nbins=6)
    ax.grid(axis="y", color=LINE, lw=0.6)
    _plain(ax)
    for i, (name, colour) in enumerate(named.items()):
        ax.text(
            0.98, 0.97 - 0.09 * i, name, transform=ax.transAxes,
            ha="right", va="top", fontsize=9, fontweight="bold", color=colour,
        )  # fmt: skip
    return raw


def intervals(
    ax: Axes,
    names: Sequence[str],
    scores: Sequence[Interval],
    *,
    highlight: int | None = None,
    score_name: str = "macro-F1",
    digits: int = 3,
) -> PathCollection:
    """Scores in 0 ... 1 with their 95 % intervals, in the order given, first on top.

    ``highlight`` is the position of the method that is judged; dashed marks carry its score
    past the others.
    """
    colours = [ACCENT if i == highlight else MUTED for i in range(len(scores))]
    shown = [f"{score.value:.{digits}f}" for score in scores]
    dots = _interval_rows(ax, names, scores, shown, colours)
    if highlight is not None:
        value = scores[highlight].value
        _mark(ax, value, len(scores), color=ACCENT, ls=(0, (2, 2)), alpha=0.7)
    low = np.floor(min(score.low for score in scores) * 10) / 10
    high = np.ceil(max(score.high for score in scores) * 10) / 10
    ax.set_xlim(max(low, 0.0) - 0.02, min(high, 1.0) + 0.02)  # room for half a dot
    ax.set_xlabel(f"{score_name}, 95 % interval")
    return dots


def differences(
    ax: Axes,
    names: Sequence[str],
    scores: Sequence[Interval],
    *,
    model: str,
    score_name: str = "macro-F1",
) -> PathCollection:
    """The model's score minus each other method's, with paired 95 % intervals and a line at zero.

    Blue where the model is ahead, orange where it is behind, grey where the interval holds zero.
    """
    colours = [ACCENT if s.low > 0 else SECOND if s.high < 0 else MUTED for s in scores]
    shown = [f"{score.value:+.3f}".replace("-", "\N{MINUS SIGN}") for score in scores]
    dots = _interval_rows(ax, names, scores, shown, colours)
    _mark(ax, 0, len(scores), color=INK)
    low, high = min(0.0, *(s.low for s in scores)), max(0.0, *(s.high for s in scores))
    room = 0.06 * (high - low) + 0.005
    ax.set_xlim(low - room, high + room)
    ax.set_xlabel(f"{score_name} of {model} minus that of the method, 95 % interval")
    return dots


def _interval_rows(
    ax: Axes,
    names: Sequence[str],
    scores: Sequence[Interval],
    shown: Sequence[str],
    colours: Sequence[str],
) -> PathCollection:
    """One line a method. Names stand above their line, not beside the axes: so they need no
    width, and the drawing stays readable on a phone."""
    across = blended_transform_factory(ax.transAxes, ax.transData)
    y = -np.arange(len(scores), dtype=float)
    for height, name, score, value, colour in zip(y, names, scores, shown, colours, strict=True):
        words = {"fontsize": 9, "va": "center", "transform": across, "parse_math": False}
        words |= {"color": INK} if colour == MUTED else {"color": colour, "fontweight": "bold"}
        ax.plot([0, 1], [height, height], transform=across, color=LINE, lw=0.8, zorder=0)
        ax.text(0, height + 0.4, name, **words)
        ax.text(1, height + 0.4, value, ha="right", **words)
        ax.plot(
            [score.low, score.high], [height, height], color=colour, lw=2, zorder=2,
            solid_capstyle="butt", marker="|", ms=7, mew=2,
        )  # fmt: skip
    values = [score.value for score in scores]
    dots = ax.scatter(values, y, c=colours, s=30, zorder=3, linewidths=0)
    ax.set_ylim(y.min() - 0.45, 0.75)
    ax.set_yticks([])
    ax.locator_params(axis="x", nbins=6)
    _plain(ax)
    ax.spines["left"].set_visible(False)
    return dots


def _mark(ax: Axes, value: float, n_rows: int, **style: Any) -> None:
    """A value marked on every row, but not through the names between them."""
    rows = -np.arange(n_rows)
    ax.vlines(np.full(n_rows, value), rows - 0.2, rows + 0.2, lw=1.1, zorder=1, **style)


def dot_size(n_cells: int) -> float:
    """Area in square points that fills a panel evenly from a hundred to a million cells."""
    return float(np.clip(22_000 / max(n_cells, 1), 0.5, 30))


def _as_map(ax: Axes) -> None:
    # A UMAP's axes have no unit: ticks would invite reading distances.
    ax.set(xticks=[], yticks=[])
    ax.margins(0.04)
    for spine in ax.spines.values():
        spine.set_color(LINE)


def _legend_beside(ax: Axes, colours: Mapping[str, str], *, below: bool = False) -> None:
    keys = [
        Line2D([], [], marker="o", ls="", ms=6, mec="none", color=colour, label=label)
        for label, colour in colours.items()
    ]
    where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.05)} if below else {}
    where = where or {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    legend = ax.legend(
        handles=keys, frameon=False, labelcolor=INK, fontsize=9, handletextpad=0.3, **where
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(ax: Axes, *, frame: bool = True) -> None:
    """Quiet axes: no box, grey ticks."""
    for side, spine in ax.spines.items():
        spine.set_visible(frame and side in ("left", "bottom"))
        spine.set_color(LINE)
    ax.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=4)
    ax.xaxis.label.set(color=MUTED, fontsize=8.5)
    ax.yaxis.label.set(color=MUTED, fontsize=8.5)


def _measured(
    steps: Sequence[float] | np.ndarray, values: Sequence[float | None] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    is_there = np.isfinite(x) & np.isfinite(y)
    return x[is_there], y[is_there]


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred, over the values that exist: the ends average fewer, none is invented."""
    window = np.ones(width)
    total = np.convolve(values, window, mode="same")
    return total / np.convolve(np.ones_like(values), window, mode="same")


def _percent(share: float) -> str:
    # 0 % with cells in it, or 100 % without all of them, would be wrong to the reader's eye.
    return "<1%" if share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{share:.0%}"
