"""A gene's value -> its bin: ten equal parts between 0 and the cell's largest value.

in   log-normalised values, or counts and the total they are a share of
out  bins 1 to n_bins; 0 stands for no value

The bins are those of np.digitize(x, np.linspace(0, max, n_bins + 1), right=True) in float64, to the
bit. ceil(n_bins * x / max) is not the same: of 0.3, 0.6, ..., 3.0 it puts three elsewhere, for the
edges are rounded otherwise.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from scfm.data.compiled import compiled
from scfm.tokens.values import TABLED


def value_bins(
    indptr: Int[np.ndarray, " bound"], values: Float[np.ndarray, " expressed"], n_bins: int = 10
) -> Int[np.ndarray, " expressed"]:
    """Bins of each cell's values, which are above 0; the largest of a cell is in the last bin.

    Source: scMulan/scMulan.py:46-62 of SuperBianC/scMulan. Oracle: numpy.digitize.
    """
    bins = np.empty(len(values), dtype=np.int64)
    _bin_rows(np.asarray(indptr), values.astype(np.float64), n_bins, bins)
    return bins


@compiled
def bin_of(x, largest, n_bins):
    """How many of the edges 0, step, 2 step, ... lie below x, which is in (0, largest].

    numpy.linspace makes its edges as number times step, so these are the very same numbers; the
    last one is ``largest``, which nothing is above.
    """
    step = largest / n_bins
    bin_ = min(max(np.int64(x / step), 0), n_bins)  # a guess, up to rounding
    while bin_ < n_bins and bin_ * step < x:
        bin_ += 1
    while bin_ > 1 and (bin_ - 1) * step >= x:
        bin_ -= 1
    return bin_


@compiled
def bins_of_counts(counts, n, total, n_bins, table, bins):
    """Bins of n counts by their log1p per 10,000 of ``total``; ``table`` has room for TABLED."""
    if n == 0:
        return
    largest = _log_value(counts[:n].max(), total)
    for count in range(1, TABLED):
        # counts above the cell's largest do not occur: their place holds anything
        table[count] = bin_of(min(_log_value(count, total), largest), largest, n_bins)
    for r in range(n):
        whole = np.int64(counts[r])
        if whole < TABLED and whole == counts[r]:
            bins[r] = table[whole]
        else:
            bins[r] = bin_of(_log_value(counts[r], total), largest, n_bins)


@compiled
def _log_value(count, total):
    return math.log1p(1e4 * count / total)


@compiled
def _bin_rows(indptr, values, n_bins, bins):
    for i in range(len(indptr) - 1):
        row = slice(indptr[i], indptr[i + 1])
        largest = values[row].max() if indptr[i + 1] > indptr[i] else 0.0
        for k in range(indptr[i], indptr[i + 1]):
            bins[k] = bin_of(values[k], largest, n_bins)
