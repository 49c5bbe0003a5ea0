"""Counts -> the value of a gene's token, log1p of counts per 10,000.

in   counts of genes, the total they are a share of
out  float32 values in nats, computed in float64
"""

import math

import numpy as np
from jaxtyping import Float, Int, Num

from scfm.data.compiled import compiled

# Logarithms are most of the work, and most counts are 1: a cell's first few values are tabled.
TABLED = 32


def log1p_cp10k(
    indptr: Int[np.ndarray, " bound"],
    counts: Num[np.ndarray, " expressed"],
    totals: Num[np.ndarray, " cell"],
) -> Float[np.ndarray, " expressed"]:
    """Log1p of counts per 10,000 of the cell's total, in nats, float32.

    ``totals`` are over all measured genes, in or out of the vocabulary. Source: Luecken & Theis
    2019, doi:10.15252/msb.20188746. Oracle: scanpy, numpy.
    """
    values = np.empty(len(counts), dtype=np.float32)
    _log1p_rows(indptr, counts, np.asarray(totals, dtype=np.float64), values)
    return values


@compiled
def fill_table(total, table):
    """Values of the counts 0 to TABLED - 1; of no use, and left as it is, where the total is 0."""
    for count in range(TABLED if total > 0 else 0):
        table[count] = value_of(count, total)


@compiled
def value_of(count, total):
    """log1p of a count per 10,000 of ``total``, which is above 0 where a count is."""
    return np.float32(math.log1p(1e4 * count / total)) if count > 0 else np.float32(0)


@compiled
def tabled_value(count, total, table):
    """`value_of`, looked up where the count is whole and small."""
    whole = np.int64(count)
    return table[np.uint64(whole)] if whole < TABLED and whole == count else value_of(count, total)


@compiled
def _log1p_rows(indptr, counts, totals, values):
    table = np.empty(TABLED, np.float32)
    for i in range(len(totals)):
        fill_table(totals[i], table)
        for k in range(indptr[i], indptr[i + 1]):
            values[k] = tabled_value(counts[k], totals[i], table)
