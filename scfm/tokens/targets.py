"""Which genes the model must guess: some of the expressed, and as many zeros.

in   a cell's expressed genes in vocabulary order, the genes the data measures, its key
out  which expressed genes are kept and which of these are targets; drawn genes without a count
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from scfm.data.bits import ONE, ZERO, has_bit, n_words, set_bit
from scfm.data.compiled import compiled
from scfm.tokens.rng import SUBSET, TARGETS, ZEROS, below, open_stream


class Targets(NamedTuple):
    """What `draw_targets` drew.

    Attributes
    ----------
    is_kept, is_target
        One an expressed gene. Targets are kept genes.
    zero_indptr, zero_genes
        Drawn genes that have no count in the cell, ascending within it.
    """

    is_kept: Bool[np.ndarray, " expressed"]
    is_target: Bool[np.ndarray, " expressed"]
    zero_indptr: Int[np.ndarray, " bound"]
    zero_genes: Int[np.ndarray, " zero"]


def draw_targets(
    indptr: Int[np.ndarray, " bound"],
    genes: Int[np.ndarray, " expressed"],
    measured: Int[np.ndarray, " measured"],
    keys: UInt64[np.ndarray, " cell"],
    *,
    n_genes: int,
    max_genes: int = 2048,
    target_share: float = 0.3,
    zero_ratio: float = 1.0,
) -> Targets:
    """Draw the genes to guess, uniformly and without replacement.

    Of a cell's expressed genes (ascending) at most ``max_genes`` are kept; of n kept ones
    round(target_share * n), at least one, become targets; and round(zero_ratio * that) genes are
    drawn from those ``measured`` without a count in the cell, or all of these where they are
    fewer. ``n_genes`` is the size of the vocabulary. As many zeros as expressed genes: the balance
    that scFoundation's masking of 0.3 and 0.03 comes to (doi:10.1038/s41592-024-02305-7).
    """
    is_kept, is_target = np.zeros((2, len(genes)), dtype=bool)
    room = np.diff(indptr).max(initial=0) * max(1.0, zero_ratio) + 1
    zeros = np.empty((len(keys), int(min(room, len(measured)))), dtype=np.int32)
    n_zeros = np.zeros(len(keys), dtype=np.int64)
    amounts = (max_genes, target_share, zero_ratio)
    measured = np.ascontiguousarray(measured, dtype=np.int32)
    _draw_rows(indptr, genes, measured, keys, n_genes, amounts, is_kept, is_target, zeros, n_zeros)
    drawn = [np.sort(row[:n]) for row, n in zip(zeros, n_zeros, strict=True)]
    zero_indptr = np.concatenate([[0], np.cumsum(n_zeros)])
    return Targets(is_kept, is_target, zero_indptr, np.concatenate([zeros.ravel()[:0], *drawn]))


@compiled
def n_targets_of(n_kept, target_share):
    """How many of the kept genes are targets."""
    return min(n_kept, max(1, round(target_share * n_kept)))


@compiled
def choose(k, n, stream, marks):
    """Set k of the first n bits, every subset equally likely, and clear the others."""
    marks[: n_words(n)] = ZERO
    if k >= n:
        k, n_drawn = n, 0
    else:
        n_drawn = min(k, n - k)  # the smaller part is drawn: few numbers come twice
    counter, found = 0, 0
    while found < n_drawn:
        position, counter = below(stream, counter, n)
        found += 0 if has_bit(marks, position) else 1
        set_bit(marks, position)
    if n_drawn < k:
        for i in range(n_words(n)):
            marks[i] = ~marks[i]
        if n & 63:
            marks[n >> 6] &= (ONE << np.uint64(n & 63)) - ONE


@compiled
def choose_kept_and_targets(key, n, max_genes, target_share, kept, targets, marks):
    """Bits of the kept and of the targets among n expressed genes, by rank; returns n targets."""
    n_kept = min(n, max_genes)
    n_targets = n_targets_of(n_kept, target_share)
    choose(n_kept, n, open_stream(key, SUBSET), kept)
    if n_kept == n:
        choose(n_targets, n, open_stream(key, TARGETS), targets)
    else:
        choose(n_targets, n_kept, open_stream(key, TARGETS), marks)
        _spread(marks, kept, n, targets)
    return n_targets


@compiled
def _spread(marks, kept, n, targets):
    """From bits by rank among the kept to bits by rank among all n."""
    targets[: n_words(n)] = ZERO
    kept_rank = 0
    for r in range(n):
        is_kept = has_bit(kept, r)
        targets[r >> 6] |= np.uint64(is_kept & has_bit(marks, kept_rank)) << np.uint64(r & 63)
        kept_rank += is_kept


@compiled
def choose_zeros(key, wanted, measured, expressed, n_expressed, taken, marks, zeros):
    """Genes without a count into ``zeros``, in no order; returns how many.

    ``expressed`` and ``taken`` are bits by gene; the latter come in all zero and go out with the
    drawn genes set. All ``n_expressed`` genes are measured.
    """
    stream, n_zeros = open_stream(key, ZEROS), len(measured) - n_expressed
    wanted = min(wanted, n_zeros)
    if 2 * wanted > n_zeros or 8 * n_zeros < len(measured):
        return _choose_listed(stream, wanted, n_zeros, measured, expressed, taken, marks, zeros)
    counter, found = 0, 0
    while found < wanted:
        position, counter = below(stream, counter, len(measured))
        gene = measured[position]
        zeros[found] = gene
        found += 0 if has_bit(expressed, gene) or has_bit(taken, gene) else 1
        set_bit(taken, gene)  # an expressed one too: cheaper than a branch
    for i in range(len(taken)):
        taken[i] &= ~expressed[i]
    return found


@compiled
def _choose_listed(stream, wanted, n_zeros, measured, expressed, taken, marks, zeros):
    """The same where blind draws would mostly miss: walk along all genes without a count."""
    choose(wanted, n_zeros, stream, marks)
    found, position = 0, 0
    for gene in measured:
        if not has_bit(expressed, gene):
            if has_bit(marks, position):
                zeros[found] = gene
                found += 1
                set_bit(taken, gene)
            position += 1
    return found


@compiled
def _draw_rows(indptr, genes, measured, keys, n_genes, amounts, is_kept, is_target, zeros, n_zeros):
    max_genes, target_share, zero_ratio = amounts
    bits = np.zeros((5, n_words(n_genes + 1)), np.uint64)
    expressed, taken, kept, targets, marks = bits[0], bits[1], bits[2], bits[3], bits[4]
    for i in range(len(keys)):
        first, n = indptr[i], indptr[i + 1] - indptr[i]
        expressed[:], taken[:] = ZERO, ZERO
        for gene in genes[first : first + n]:
            set_bit(expressed, gene)
        n_targets = choose_kept_and_targets(
            keys[i], n, max_genes, target_share, kept, targets, marks
        )
        for r in range(n):
            is_kept[first + r], is_target[first + r] = has_bit(kept, r), has_bit(targets, r)
        wanted = round(zero_ratio * n_targets)
        n_zeros[i] = choose_zeros(keys[i], wanted, measured, expressed, n, taken, marks, zeros[i])
