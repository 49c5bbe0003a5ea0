"""Bit operations that inner loops share.

in   words of uint64 that stand for a set of positions
out  members, counts and ranks
"""

from collections.abc import Callable

import numpy as np
from numba import types
from numba.extending import intrinsic

from scfm.data.compiled import compiled

ZERO, ONE, ALL = np.uint64(0), np.uint64(1), ~np.uint64(0)
SIX, LOW_SIX = np.uint64(6), np.uint64(63)  # a position's word and its bit there


def _popcount(typing_context, word):  # noqa: ARG001  (numba's signature)
    def build(context, builder, signature, arguments):  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), build


# How many bits of a uint64 are set, as int64: one machine instruction.
popcount: Callable = intrinsic(_popcount)


@compiled
def n_words(n_bits):
    """Length of the uint64 array that holds so many bits."""
    return (n_bits + 63) >> 6


# Positions are made unsigned below: numba checks every signed index for negative ones.


@compiled
def has_bit(words, position):
    """Whether a bit is set."""
    at = np.uint64(position)
    return (words[at >> SIX] >> (at & LOW_SIX)) & ONE != ZERO


@compiled
def set_bit(words, position):
    """Set a bit."""
    at = np.uint64(position)
    words[at >> SIX] |= ONE << (at & LOW_SIX)


@compiled
def count_before(words, before):
    """Fill ``before`` with the number of bits set in all earlier words; return that of all."""
    total = 0
    for i in range(len(words)):
        before[i] = total
        total += popcount(words[i])
    return total


@compiled
def rank(words, before, position):
    """Number of bits set below ``position``: where it stands in ascending order."""
    at = np.uint64(position)
    below = (ONE << (at & LOW_SIX)) - ONE
    return before[at >> SIX] + popcount(words[at >> SIX] & below)
