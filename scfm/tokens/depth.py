"""Read-depth down-sampling: the same cell, sequenced less deeply.

in   whole counts of a cell in vocabulary order, its key
out  thinned counts, and the share of molecules kept

Each molecule is kept with the cell's rate b. One comparison of b with a uniform number, bit by bit
from the top, is made for 64 molecules at once; so binomials are exact for every n and b, and the
cost is about eight random words for 64 molecules.
"""

import numpy as np
from jaxtyping import Float, Int, UInt64

from scfm.data.bits import ALL, ONE, ZERO, n_words, popcount
from scfm.data.compiled import compiled
from scfm.data.counts import CountRows
from scfm.tokens.gather import column_slots, csr_arrays
from scfm.tokens.rng import DEPTH, ROUNDING, open_stream, uniform, word

UNTHINNED = ZERO  # a rate of exactly 0 keeps no molecule, and then the cell stays as it is anyway
LANES = 64  # counts below share words of 64 comparisons, larger ones have words of their own
_RATE_WORDS = 4  # counters of a cell's depth stream that its rate is drawn from


def thin(
    indptr: Int[np.ndarray, " bound"],
    counts: Int[np.ndarray, " expressed"],
    keys: UInt64[np.ndarray, " cell"],
    *,
    probability: float = 0.5,
    min_counts: int = 1000,
) -> tuple[Int[np.ndarray, " expressed"], Float[np.ndarray, " cell"]]:
    """Read-depth down-sampling (RDA): thinned counts, and each cell's rate (1 where untouched).

    ``counts`` are whole and all of a cell's, those outside the vocabulary as one entry: see
    `scfm.tokens.gather`. A cell of at least ``min_counts`` molecules is thinned with
    ``probability``, at one rate b ~ Beta(2, 2): Binomial(count, b), gene-wise. A cell of which
    nothing would be left stays as it is.

    Source: Hao et al. 2024 (scFoundation), doi:10.1038/s41592-024-02305-7, supplementary notes 9
    and 10. Oracle: scipy.stats.binom.
    """
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    thinned, rates = np.empty_like(counts), np.empty(len(keys))
    _thin_rows(np.asarray(indptr), counts, keys, probability, min_counts, thinned, rates)
    return thinned, rates


def thin_rows(
    rows: CountRows, keys: UInt64[np.ndarray, " cell"], *, probability: float, min_counts: int
) -> CountRows:
    """The same cells, each with ``probability`` sequenced less deeply: see `thin`.

    Expected counts, which are no molecules, stay as they are.
    """
    if not probability or not np.issubdtype(rows.counts.dtype, np.integer):
        return rows
    thinned, _ = thin(
        rows.indptr, rows.counts, keys, probability=probability, min_counts=min_counts
    )
    return _without_zeros(rows, thinned)


def _without_zeros(rows: CountRows, counts: Int[np.ndarray, " nonzero"]) -> CountRows:
    is_left = counts > 0
    indptr = np.concatenate([[0], np.cumsum(is_left)])[rows.indptr]
    return CountRows(
        *(indptr, rows.indices[is_left], counts[is_left].astype(np.int32)),
        *(rows.cell_index, rows.dataset),
    )


def round_expected(
    rows: CountRows,
    column_to_gene: Int[np.ndarray, " column"],
    n_genes: int,
    keys: UInt64[np.ndarray, " cell"],
) -> CountRows:
    """Expected counts rounded to whole molecules, up with the probability of the fraction.

    Every count keeps its expectation. Outside the vocabulary it is their sum that is rounded, and
    the row's last such column that gains the difference. Whole counts pass unchanged.
    """
    if np.issubdtype(rows.counts.dtype, np.integer):
        return rows
    whole = np.zeros(len(rows.counts), dtype=np.int64)
    slots = column_slots(column_to_gene, n_genes)
    _round_rows(*csr_arrays(rows), slots, n_genes, keys, whole)
    return _without_zeros(rows, whole)


@compiled
def draw_rate(stream, probability, min_counts, total):
    """A cell's rate as a fraction of 2^64, or UNTHINNED."""
    if total < min_counts or uniform(stream, 0) >= probability:
        return UNTHINNED
    # Beta(2, 2) is the law of the median of three uniform numbers
    a, b, c = word(stream, 1), word(stream, 2), word(stream, 3)
    return max(min(a, b), min(max(a, b), c))


@compiled
def thin_counts(counts, n, rate, stream, lanes, thinned):
    """Fill ``thinned[:n]``; returns its total. ``lanes`` needs n + 2 words."""
    shared = 0
    for i in range(n):
        shared += counts[i] if counts[i] < LANES else 0
    # one word more than needed: the loop below always reads two neighbours
    counter = _fill_lanes(rate, stream, _RATE_WORDS, n_words(shared) + 1, lanes)
    total, at = 0, 0
    for i in range(n):
        if counts[i] < LANES:
            shift = np.uint64(at & 63)
            lane = lanes[at >> 6] >> shift
            lane |= (lanes[(at >> 6) + 1] << (np.uint64(63) - shift)) << ONE
            thinned[i] = popcount(lane & ((ONE << np.uint64(counts[i])) - ONE))
            at += counts[i]
        else:
            thinned[i], counter = _binomial(counts[i], rate, stream, counter)
        total += thinned[i]
    return total


@compiled
def _fill_lanes(rate, stream, counter, size, lanes):
    """``size`` words of bits that are each set with probability rate / 2^64; the next counter."""
    for i in range(size):
        lanes[i], counter = lane_word(rate, stream, counter)
    return counter


@compiled
def lane_word(rate, stream, counter):
    """64 bits that are each set with probability rate / 2^64, and the next counter.

    At most 64 counters are used.
    """
    is_below, undecided, digit = ZERO, ALL, np.uint64(64)
    while undecided != ZERO and digit > ZERO:
        digit -= ONE
        drawn = word(stream, counter)
        counter += 1
        rate_bit = ZERO - ((rate >> digit) & ONE)  # the rate's digit in all 64 places
        is_below |= undecided & rate_bit & ~drawn
        undecided &= ~(drawn ^ rate_bit)
    return is_below, counter


@compiled
def _binomial(n, rate, stream, counter):
    """Binomial(n, rate / 2^64) and the next counter, at the cost of about n / 32 random words.

    The same comparison without telling molecules apart: of those undecided so far, it only counts
    how many draw a 1 at this digit.
    """
    below, undecided, digit = 0, n, np.uint64(64)
    while undecided > 0 and digit > ZERO:
        digit -= ONE
        ones = 0
        for _ in range(undecided >> 6):
            ones += popcount(word(stream, counter))
            counter += 1
        ones += popcount(word(stream, counter) & ((ONE << np.uint64(undecided & 63)) - ONE))
        counter += 1
        if (rate >> digit) & ONE:
            below += undecided - ones
            undecided = ones
        else:
            undecided -= ones
    return below, counter


@compiled
def _thin_rows(indptr, counts, keys, probability, min_counts, thinned, rates):
    for i in range(len(keys)):
        row = slice(indptr[i], indptr[i + 1])
        n, total = indptr[i + 1] - indptr[i], counts[row].sum()
        stream = open_stream(keys[i], DEPTH)
        rate = draw_rate(stream, probability, min_counts, total)
        rates[i] = np.float64(rate) * 2.0**-64
        lanes = np.empty(n + 2, np.uint64)
        if rate == UNTHINNED or thin_counts(counts[row], n, rate, stream, lanes, thinned[row]) == 0:
            thinned[row], rates[i] = counts[row], 1.0


@compiled
def _round_rows(indptr, indices, counts, slots, n_genes, keys, whole):
    for i in range(len(keys)):
        stream = open_stream(keys[i], ROUNDING)
        fraction, last = 0.0, -1
        for k in range(indptr[i], indptr[i + 1]):
            slot = np.int64(slots[indices[k]])
            whole[k] = np.int64(counts[k])
            if slot == n_genes:
                fraction, last = fraction + (counts[k] - whole[k]), k
            # counted by gene, not by column: the file's column order must not show
            elif uniform(stream, slot) < counts[k] - whole[k]:
                whole[k] += 1
        if last >= 0:
            whole[last] += np.int64(fraction + uniform(stream, n_genes))
