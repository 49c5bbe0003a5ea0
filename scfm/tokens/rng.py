"""Random numbers by counter: a pure function of (seed, epoch, cell, purpose, counter).

in   a run's seed, an epoch, cell numbers
out  one key a cell; from a key one stream of 64-bit words a purpose, readable at any place

No state is carried from cell to cell, so a cell's draws cannot depend on batch, order or process;
and a purpose's draws do not move when another purpose uses more or fewer.

Source: SplittableRandom, Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195 (SplitMix64 where
a stream's step is the golden ratio). Oracle: the published SplitMix64 sequence.
"""

import numpy as np
from jaxtyping import Int, UInt64

from scfm.data.bits import popcount
from scfm.data.compiled import compiled
from scfm.data.mixing import GOLDEN, mix64, mix64_array

# Purposes a cell's key is split into. A new one gets a new number: old draws must not move.
ROUNDING, DEPTH, SUBSET, TARGETS, ZEROS, CORRUPTION, RANDOM_VALUES = range(7)
SENTENCE, GENE_ORDER, WORD_SUBSET = range(7, 10)


def cell_keys(
    seed: int, epoch: int | Int[np.ndarray, " cell"], cell_index: Int[np.ndarray, " cell"]
) -> UInt64[np.ndarray, " cell"]:
    """One key a cell, the only source of randomness in its training example.

    Keys of different cells within an epoch are all different; ``epoch`` is one number or one a
    cell.
    """
    base = mix64_array(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64) + GOLDEN)
    epochs = np.atleast_1d(epoch).astype(np.uint64)
    return mix64_array(
        mix64_array(base + (epochs + np.uint64(1)) * GOLDEN)
        ^ np.asarray(cell_index).astype(np.uint64)
    )


@compiled
def open_stream(key, purpose):
    """(start, step) of a key's stream for a purpose; steps are odd and have irregular bits."""
    at = key + GOLDEN * np.uint64(2 * purpose + 1)
    step = at + GOLDEN
    step = (step ^ (step >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    step = (step ^ (step >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    step = (step ^ (step >> np.uint64(33))) | np.uint64(1)
    if popcount(step ^ (step >> np.uint64(1))) < 24:
        step ^= np.uint64(0xAAAAAAAAAAAAAAAA)
    return mix64(at), step


@compiled
def word(stream, counter):
    """The stream's ``counter``-th 64 random bits."""
    start, step = stream
    return mix64(start + step * np.uint64(counter + 1))


@compiled
def uniform(stream, counter):
    """Uniform in [0, 1), a multiple of 2^-53."""
    return np.float64(word(stream, counter) >> np.uint64(11)) * 2.0**-53


@compiled
def below(stream, counter, n):
    """Uniform integer in [0, n) and the next counter. Exactly uniform, for n up to 2^32.

    Source: Lemire 2019, doi:10.1145/3230636.
    """
    n = np.uint64(n)
    while True:
        product = (word(stream, counter) >> np.uint64(32)) * n
        counter += 1
        leftover = product & np.uint64(0xFFFFFFFF)
        # the modulus is slow and needed about once in 2^32 / n draws
        if leftover >= n or leftover >= (np.uint64(1 << 32) - n) % n:
            return np.int64(product >> np.uint64(32)), counter
