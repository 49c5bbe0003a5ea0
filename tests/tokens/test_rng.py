"""Counter-based random numbers: against published sequences, and uniform."""

import numpy as np
import pytest
import scipy.stats

from scfm.data.bits import compiled
from scfm.tokens.rng import (
    DEPTH,
    GOLDEN,
    TARGETS,
    ZEROS,
    below,
    cell_keys,
    mix64,
    open_stream,
    uniform,
    word,
)


def test_a_stream_with_the_golden_step_is_splitmix64():
    # seed 1234567, as published with many ports of Vigna's splitmix64.c
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    drawn = [int(word((np.uint64(1234567), GOLDEN), counter)) for counter in range(5)]
    assert drawn == expected


def test_keys_of_an_epoch_all_differ():
    keys = cell_keys(3, 7, np.arange(100_000))
    assert keys.dtype == np.uint64
    assert len(np.unique(keys)) == len(keys)


def test_a_key_depends_on_seed_epoch_and_cell_alone():
    cells, epochs = np.array([5, 9, 5, 9]), np.array([0, 0, 1, 1])
    keys = cell_keys(3, epochs, cells)
    assert len(set(keys.tolist())) == 4
    one_by_one = [
        cell_keys(3, int(e), np.array([c]))[0] for e, c in zip(epochs, cells, strict=True)
    ]
    assert keys.tolist() == one_by_one
    assert not np.isin(cell_keys(4, epochs, cells), keys).any()


@pytest.mark.parametrize("seed", [-1, 0, 2**64 - 1, 2**80])
def test_any_integer_is_a_seed(seed):
    assert len(cell_keys(seed, 0, np.arange(3))) == 3


def test_the_compiled_mixer_and_the_array_one_are_the_same():
    z = np.arange(50, dtype=np.uint64) * GOLDEN
    assert [int(mix64(x)) for x in z] == mix64.py_func(z).tolist()


@compiled
def _fill(keys, purpose, n, numbers, uniforms):
    for i in range(len(keys)):
        stream = open_stream(keys[i], purpose)
        numbers[i], _ = below(stream, 0, n)
        uniforms[i] = uniform(stream, 1)


def first_draws(purpose: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """First numbers of the streams of 20,000 neighbouring cells: where bad mixing would show."""
    keys = cell_keys(0, 0, np.arange(20_000))
    numbers, uniforms = np.empty(len(keys), np.int64), np.empty(len(keys))
    _fill(keys, purpose, n, numbers, uniforms)
    return numbers, uniforms


@pytest.mark.parametrize("n", [1, 7, 100, 1024])
def test_integers_below_n_are_uniform(n):
    numbers, _ = first_draws(ZEROS, n)
    assert scipy.stats.chisquare(np.bincount(numbers, minlength=n)).pvalue > 1e-3 or n == 1
    assert numbers.max() < n


def test_uniforms_are_uniform_and_independent_of_other_purposes():
    _, depth = first_draws(DEPTH, 10)
    _, targets = first_draws(TARGETS, 10)
    assert scipy.stats.kstest(depth, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(depth, targets)[0, 1]) < 4 / np.sqrt(len(depth))
    assert abs(np.corrcoef(depth[1:], depth[:-1])[0, 1]) < 4 / np.sqrt(len(depth))
