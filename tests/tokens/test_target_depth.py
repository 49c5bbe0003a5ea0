"""TargetDepth: the specification's numbers, and refusals that say what may be written."""

import warnings

import numpy as np
import pytest

from scfm.errors import ConfigError, ScfmWarning
from scfm.tokens.masking import MaskedTokenizer
from scfm.tokens.target_depth import TargetDepth, parse_target_depth, warn_if_below
from tests.tokens.test_masking import vocab_of


@pytest.mark.parametrize(
    ("text", "target_depth", "written"),
    [
        ("f5", 1.69897, "f5"),  # item A: a cell of 10 counts
        ("a5", 6, "a5"),
        ("t4", 4, "t4"),
        (None, 1, "source"),
        ("source", 1, "source"),
        (4, 4, "t4"),
        ("4.5", 4.5, "t4.5"),
        ("f0.5", 0.69897, "f0.5"),
        ("a-0.25", 0.75, "a-0.25"),
        ("t0", 0, "t0"),
        ("a+1", 2, "a1"),
        (np.float64(4.5), 4.5, "t4.5"),
        ("f1000000", 7, "f1e+06"),
    ],
)
def test_worked_numbers(text, target_depth, written):
    wanted = parse_target_depth(text)
    found = wanted.of(np.array([1.0, 1.0], np.float32))
    np.testing.assert_allclose(found, target_depth, rtol=1e-6)
    assert found.dtype == np.float32
    assert str(wanted) == written
    assert parse_target_depth(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("", "t", "x4", "4t", "t-1", "t9.5", "f0", "f-2", "tnan", "a99", "finf", "10000", 1e4),
        *("t4_0", "t0_4", " 4", "t 4", "t4 ", "\u0664", True, False, float("nan")),
    ],
)
def test_nonsense_is_refused(text):
    with pytest.raises(ConfigError, match=r"target_depth is .*'t4' for 10,000 counts"):
        parse_target_depth(text)


def test_less_than_a_molecule_is_refused():
    depths = np.array([3.0, 1.0, 0.5])
    with pytest.raises(
        ConfigError, match=r"'a-2', which asks cells for less than one count\. Wanted"
    ):
        TargetDepth("a", -2.0).of(depths)


def test_the_remedy_for_the_cells_own_depth_is_what_is_understood():
    with pytest.raises(ConfigError, match="'source' for the cell's own depth"):
        parse_target_depth("own")


def test_cells_deeper_than_asked_for_are_warned_of(columns, rows_of):
    source = np.log10(np.array([500, 10_000, 10_001, 20_000], np.float32))
    assert TargetDepth("t", 4.0).is_below(source).tolist() == [False, False, False, True]
    for always in (TargetDepth(), TargetDepth("f", 1.0), TargetDepth("a", 0.0)):
        assert not always.is_below(source).any()
    with pytest.warns(ScfmWarning, match=r"1 of 4 cells have more counts .* 't4' asks for"):
        warn_if_below(1, 4, TargetDepth("t", 4.0))
    with warnings.catch_warnings(action="error"):
        warn_if_below(0, 4, TargetDepth("t", 4.0))


def test_a_tokenizer_puts_it_into_the_cells(columns, rows_of):
    tokenizer = MaskedTokenizer(vocab_of(3), columns([2, 1, 0]))
    cells = tokenizer.shown(rows_of(np.array([[6, 3, 1], [90, 10, 0]])))
    deeper = tokenizer.asked_for(cells, parse_target_depth("f5"))
    np.testing.assert_allclose(deeper.target_depth, [1.69897, 2.69897], rtol=1e-6)
    given = tokenizer.shown(
        rows_of(np.array([[6, 3, 1], [90, 10, 0]])), target_depth=deeper.target_depth
    )
    for name in ("gene_ids", "values", "target_depth", "source_depth"):
        np.testing.assert_array_equal(getattr(deeper, name), getattr(given, name))
    assert cells.values[0] == 1  # the first ones are as they were
