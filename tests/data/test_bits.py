"""Bit operations against Python's own."""

import numpy as np

from scfm.data.bits import count_before, has_bit, n_words, popcount, rank, set_bit
from scfm.data.compiled import compiled


@compiled
def bits_of(word):
    return popcount(word)


def test_popcount_is_pythons(rng):
    words = [0, 1, 2**63, 2**64 - 1, *rng.integers(2**63, size=50).tolist()]
    assert [bits_of(np.uint64(word)) for word in words] == [word.bit_count() for word in words]


def test_bits_and_ranks(rng):
    positions = np.sort(rng.choice(1000, 130, replace=False))
    words, before = np.zeros(n_words(1000), np.uint64), np.zeros(n_words(1000), np.int64)
    for position in positions:
        set_bit(words, position)
    assert count_before(words, before) == 130
    ranks = [rank(words, before, position) for position in range(1000)]
    assert ranks == np.searchsorted(positions, np.arange(1000)).tolist()
    assert [p for p in range(1000) if has_bit(words, p)] == positions.tolist()
