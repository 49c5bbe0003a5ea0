"""A bijection of 64-bit words that scatters them: for hashes, and for random numbers by counter.

in   uint64
out  uint64, every bit of which hangs on every bit of the input

Source: SplitMix64's finaliser, Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195. Oracle: the
published sequence (tests/tokens/test_rng.py).
"""

import numpy as np

from scfm.data.compiled import compiled

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


@compiled
def mix64(z):
    """A bijection of uint64 in which every output bit hangs on every input bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# The same bijection for arrays, so that making keys needs no compiler.
mix64_array = mix64.py_func
