"""The artists hold the data they were given. Oracles: pandas.crosstab, the inputs themselves."""

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scfm.evaluate import figures
from scfm.evaluate.results import Interval


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def test_colours_do_not_depend_on_order_or_split():
    together = figures.label_colours(["NK", "B", "unknown", "CD4 T"])
    assert together == figures.label_colours(["B"], ["CD4 T", "B"], ["NK"])
    assert together["unknown"] == figures.UNKNOWN_GREY
    assert len(set(together.values())) == 4


def test_palette_is_distinct_and_visible_on_both_grounds():
    assert len(set(figures.PALETTE)) == len(figures.PALETTE)
    for ground in ("#ffffff", "#172027"):
        for colour in (*figures.PALETTE[:8], figures.UNKNOWN_GREY):
            assert contrast(colour, ground) > 2, (colour, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio."""

    def luminance(colour: str) -> float:
        c = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_embedding_draws_each_cell_in_its_colour(ax, rng):
    coordinates = rng.normal(size=(500, 2))
    labels = rng.choice(["B", "NK", "unknown"], size=500)
    colours = figures.label_colours(labels)
    dots = figures.embedding(ax, coordinates, labels, colours)
    drawn = np.column_stack([np.asarray(dots.get_offsets()), dots.get_facecolors()[:, :3]])
    wanted = np.column_stack([coordinates, [matplotlib.colors.to_rgb(colours[x]) for x in labels]])
    np.testing.assert_array_equal(drawn[np.lexsort(drawn.T)], wanted[np.lexsort(wanted.T)])
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["B", "NK", "unknown"]
    figure = ax.figure
    figure.canvas.draw()
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1  # beside, not on the cells


def test_names_stand_apart_and_inside(ax, rng):
    coordinates = rng.normal(size=(600, 2))  # all labels in one place
    labels = np.repeat(["a", "b", "c", "d", "e", "unknown"], 100)
    figures.embedding(ax, coordinates, labels, figures.label_colours(labels))
    places = np.array(list(figures.name_places(ax, coordinates, labels).values()))
    assert len(places) == 5
    assert ((places > 0) & (places < 1)).all()
    assert np.diff(np.sort(places[:, 1])).min() > 0.06


def test_few_stray_cells_get_no_name(ax, rng):
    labels = np.array(["a"] * 399 + ["b"])
    coordinates = rng.normal(size=(400, 2))
    figures.embedding(ax, coordinates, labels, figures.label_colours(labels))
    assert list(figures.name_places(ax, coordinates, labels)) == ["a"]


def test_confidence_separates_unknown_cells(ax, rng):
    coordinates, values = rng.normal(size=(90, 2)), rng.random(90)
    values[:5] = np.nan
    is_unknown = np.arange(90) >= 70
    dots = figures.confidence(ax, coordinates, values, is_unknown)
    np.testing.assert_array_equal(np.sort(dots.get_array()), np.sort(values[5:70]))
    grey = ax.collections[0]
    assert len(grey.get_offsets()) == 25


def test_confusion_counts_equal_pandas(rng):
    truth, given = rng.choice(["a", "b"], 80), rng.choice(["a", "b", "c"], 80)
    counts = figures.confusion_counts(truth, given, ["a", "b"], ["a", "b", "c"])
    np.testing.assert_array_equal(counts, pd.crosstab(truth, given).to_numpy())


def test_confusion_shows_rows_that_sum_to_one(ax):
    counts = np.array([[90, 10, 0], [1, 399, 0], [0, 0, 0]])
    tiles = figures.confusion(ax, counts, ["a", "b", "c"], ["a", "b", "unknown"])
    wanted = [[0.9, 0.1, 0], [0.0025, 0.9975, 0], [0, 0, 0]]
    np.testing.assert_allclose(np.asarray(tiles.get_array()).reshape(3, 3), wanted, rtol=1e-12)
    written = [text.get_text() for text in ax.texts]
    assert written == ["90%", "90", "10%", "10", "<1%", "1", ">99%", "399"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "unknown"]
    assert ax.yaxis_inverted()


def test_intervals_stand_at_their_values(ax):
    scores = [Interval(0.81, 0.78, 0.83), Interval(0.62, 0.6, 0.65)]
    dots = figures.intervals(ax, ["PCA", "scfm"], scores, highlight=1)
    np.testing.assert_array_equal(np.asarray(dots.get_offsets()), [[0.81, 0], [0.62, -1]])
    whiskers = [line.get_xdata() for line in ax.lines if line.get_marker() == "|"]
    np.testing.assert_array_equal(whiskers, [[0.78, 0.83], [0.6, 0.65]])
    assert [t.get_text() for t in ax.texts] == ["PCA", "0.810", "scfm", "0.620"]
    colours = [matplotlib.colors.to_hex(c) for c in dots.get_facecolors()]
    assert colours == [figures.MUTED, figures.ACCENT]


def test_differences_are_coloured_by_who_is_ahead(ax):
    scores = [Interval(-0.05, -0.07, -0.03), Interval(-0.01, -0.02, 0.01), Interval(0.3, 0.2, 0.4)]
    dots = figures.differences(ax, ["a", "b", "c"], scores, model="scfm")
    np.testing.assert_array_equal(np.asarray(dots.get_offsets())[:, 0], [-0.05, -0.01, 0.3])
    colours = [matplotlib.colors.to_hex(c) for c in dots.get_facecolors()]
    assert colours == [figures.SECOND, figures.MUTED, figures.ACCENT]
    assert ax.get_xlim()[0] < -0.07
    assert ax.get_xlim()[1] > 0.4


def test_loss_curve_holds_all_steps_and_skips_missing_validation(ax, rng):
    loss = rng.random(200)
    loss[3] = np.nan
    validation = np.full(200, np.nan)
    validation[[99, 199]] = [0.5, 0.4]
    steps = np.arange(1, 201)
    raw = figures.loss_curve(ax, steps, loss, (steps, validation))
    np.testing.assert_array_equal(raw.get_ydata(), loss[np.isfinite(loss)])
    held_out = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(held_out.get_xdata(), [100, 200])


def test_running_mean_of_a_constant_is_the_constant(ax):
    figures.loss_curve(ax, np.arange(100), np.full(100, 2.5))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 2.5, rtol=1e-12)


def test_loss_curve_shows_validation_above_the_training_loss(ax):
    steps = np.arange(100)
    figures.loss_curve(ax, steps, np.exp(-steps / 20), ([50, 99], [1.5, 1.4]))
    assert ax.get_ylim()[1] > 1.5
