"""The inner loops of scfm.tokens.masking: one cell after the other into the arrays of a batch.

in   CSR rows, tables of columns and genes, a key a cell, settings
out  the filled arrays of scfm.tokens.packed
"""

import math
from typing import NamedTuple

import numpy as np

from scfm.data.bits import ONE, ZERO, has_bit, n_words, popcount, rank, set_bit
from scfm.data.compiled import compiled
from scfm.tokens.depth import UNTHINNED, draw_rate, lane_word, thin_counts
from scfm.tokens.gather import gather_cell, new_sums
from scfm.tokens.rng import (
    CORRUPTION,
    DEPTH,
    RANDOM_VALUES,
    SUBSET,
    TARGETS,
    ZEROS,
    below,
    open_stream,
    uniform,
)
from scfm.tokens.targets import choose
from scfm.tokens.values import TABLED, fill_table, tabled_value

N_SPECIALS = 2  # [T], [S]


class MaskSettings(NamedTuple):
    """MaskConfig as the kernels take it; probabilities of bits as fractions of 2^64."""

    max_genes: int
    expressed_rate: np.uint64
    zero_rate: np.uint64
    replace_share: float
    random_share: float
    expressed_by_raw: bool
    random_from_cell: bool
    corrupted_in_encoder: bool
    downsample_probability: float
    downsample_min_counts: int


class MaskScratch(NamedTuple):
    """Working space of one cell: bits by gene, bits by rank, and an entry an expressed gene."""

    expressed: np.ndarray  # bits by gene, before thinning; all zero between cells
    expressed_before: np.ndarray  # bits set in earlier words
    is_shown: np.ndarray  # bits by gene: something is left of it
    dropped: np.ndarray  # bits by gene: shown, but beyond max_genes
    selected: np.ndarray  # bits by gene: to be guessed
    kept: np.ndarray  # bits by rank among the shown
    genes: np.ndarray
    counts: np.ndarray
    thinned: np.ndarray
    lanes: np.ndarray
    shown_values: np.ndarray  # of the shown genes, ascending
    raw_table: np.ndarray
    shown_table: np.ndarray


def new_mask_scratch(longest: int, n_genes: int, counts: np.ndarray) -> MaskScratch:
    words, longest = n_words.py_func(n_genes + 1), longest + 2
    return MaskScratch(
        expressed=np.zeros(words, np.uint64),
        expressed_before=np.zeros(words, np.int64),
        is_shown=np.zeros(words, np.uint64),
        dropped=np.zeros(words, np.uint64),
        selected=np.zeros(words, np.uint64),
        kept=np.zeros(words, np.uint64),
        genes=np.empty(longest, np.int32),
        counts=new_sums(longest, counts),
        thinned=new_sums(longest, counts),
        lanes=np.empty(longest, np.uint64),
        shown_values=np.empty(longest, np.float32),
        raw_table=np.empty(TABLED, np.float32),
        shown_table=np.empty(TABLED, np.float32),
    )


@compiled
def shown_cells(indptr, indices, counts, tables, dataset, n_genes, ids, s, out):
    for i in range(len(indptr) - 1):
        row, slots = slice(indptr[i], indptr[i + 1]), tables.slots[tables.table_of[dataset[i]]]
        n, total = _gather(indices[row], counts[row], slots, n_genes, s)
        at = _place_depths(i, total, total, ids, out)
        fill_table(total, s.raw_table)
        for r in range(n):
            out.gene_ids[at + r] = ids[2] + s.genes[r]
            out.values[at + r] = tabled_value(s.counts[r], total, s.raw_table)
            out.is_target[at + r] = False
            out.target_values[at + r] = 0
        out.offsets[i + 1] = at + n


@compiled
def training_cells(
    indptr, indices, counts, tables, dataset, n_genes, may_be_zero, ids, s, out, is_hidden, keys, c
):
    """Returns whether there was room for all tokens."""
    for i in range(len(indptr) - 1):
        row, key = slice(indptr[i], indptr[i + 1]), keys[i]
        slots = tables.slots[tables.table_of[dataset[i]]]
        n, total = _gather(indices[row], counts[row], slots, n_genes, s)
        shown, shown_total = _thin(key, n, total, s, c)
        n_shown = _values_shown(n, shown, shown_total, s)
        _drop(key, n_shown, c.max_genes, s)
        _select(key, may_be_zero[tables.list_of[dataset[i]]], c, s)
        n_tokens = N_SPECIALS + _count_either(s.is_shown, s.selected)
        if out.offsets[i] + n_tokens > len(out.gene_ids):
            return False
        at = _place_depths(i, total, shown_total, ids, out)
        is_hidden[at - N_SPECIALS : at] = False
        _place_genes(key, at, total, n_shown, ids[2], s, out, is_hidden, c)
        out.offsets[i + 1] = out.offsets[i] + n_tokens
    return True


@compiled
def _count_either(one, other):
    """How many bits are set in either."""
    n = 0
    for w in range(len(one)):
        n += popcount(one[w] | other[w])
    return n


@compiled
def _gather(indices, counts, slots, n_genes, s):
    """Genes and counts of one cell in vocabulary order: how many, and their total."""
    s.expressed[:] = ZERO
    n = gather_cell(
        indices, counts, slots, n_genes, s.expressed, s.expressed_before, s.genes, s.counts
    )
    s.expressed[n_genes >> 6] ^= ONE << np.uint64(n_genes & 63)  # the outside gene: of no use here
    return n, s.counts[:n].sum()


@compiled
def _thin(key, n, total, s, c):
    """The counts to show, and their total."""
    stream = open_stream(key, DEPTH)
    rate = draw_rate(stream, c.downsample_probability, c.downsample_min_counts, total)
    if rate != UNTHINNED:
        thinned_total = thin_counts(s.counts, n, rate, stream, s.lanes, s.thinned)
        if thinned_total > 0:
            return s.thinned, thinned_total
    return s.counts, total


@compiled
def _values_shown(n, shown, shown_total, s):
    """Fill the shown genes' bits and values; returns how many they are."""
    is_shown, shown_values, genes, table = s.is_shown, s.shown_values, s.genes, s.shown_table
    is_shown[:] = ZERO
    fill_table(shown_total, table)
    n_shown = 0
    for r in range(n):
        shown_values[n_shown] = tabled_value(shown[r], shown_total, table)
        if shown[r] > 0:
            set_bit(is_shown, genes[r])
            n_shown += 1
    return n_shown


@compiled
def _drop(key, n_shown, max_genes, s):
    """Bits of the shown genes that are too many."""
    s.dropped[:] = ZERO
    if n_shown <= max_genes:
        return
    choose(max_genes, n_shown, open_stream(key, SUBSET), s.kept)
    at = 0
    for w in range(len(s.is_shown)):
        left = s.is_shown[w]
        while left != ZERO:
            lowest = left & (ZERO - left)
            if not has_bit(s.kept, at):
                s.dropped[w] |= lowest
            left ^= lowest
            at += 1


@compiled
def _select(key, may_be_zero, c, s):
    """Bits of the genes to be guessed. Every 64 genes have draws of their own."""
    of_expressed, of_zeros = open_stream(key, TARGETS), open_stream(key, ZEROS)
    selected, dropped = s.selected, s.dropped
    expressed = s.expressed if c.expressed_by_raw else s.is_shown
    for w in range(len(selected)):
        drawn = expressed[w] & lane_word(c.expressed_rate, of_expressed, 64 * w)[0]
        zeros = may_be_zero[w] & ~expressed[w]
        drawn |= zeros & lane_word(c.zero_rate, of_zeros, 64 * w)[0]
        selected[w] = drawn & ~dropped[w]


@compiled
def _place_depths(i, total, shown_total, ids, out):
    """Write a cell's depths and their tokens; returns the place after them."""
    # a cell without a count has depth 0: minus infinity would poison a batch
    out.target_depth[i] = math.log10(max(total, 1))
    out.source_depth[i] = math.log10(max(shown_total, 1))
    out.library_size[i] = total
    at = out.offsets[i]
    out.gene_ids[at], out.gene_ids[at + 1] = ids[0], ids[1]
    out.values[at], out.values[at + 1] = out.target_depth[i], out.source_depth[i]
    out.is_target[at : at + 2] = False
    out.target_values[at : at + 2] = 0
    return at + N_SPECIALS


@compiled
def _place_genes(key, at, total, n_shown, gene_start, s, out, is_hidden, c):
    """Write the shown and the selected genes of a cell, ascending."""
    # arrays by name: numba counts references at every access to a tuple's field
    is_shown, selected, dropped = s.is_shown, s.selected, s.dropped
    expressed, expressed_before, counts = s.expressed, s.expressed_before, s.counts
    shown_values, raw_table = s.shown_values, s.raw_table
    gene_ids, values = out.gene_ids, out.values
    is_targets, target_values = out.is_target, out.target_values
    corruption, random_values = open_stream(key, CORRUPTION), open_stream(key, RANDOM_VALUES)
    fill_table(total, raw_table)
    own = 0  # place among the shown
    for w in range(len(is_shown)):
        left = is_shown[w] | selected[w]
        while left != ZERO:
            lowest = left & (ZERO - left)
            left ^= lowest
            gene = 64 * w + popcount(lowest - ONE)
            has_value, is_target = is_shown[w] & lowest != ZERO, selected[w] & lowest != ZERO
            hidden, target_value = dropped[w] & lowest != ZERO, np.float32(0)
            value = shown_values[own] if has_value and not hidden else np.float32(0)
            if is_target:
                place = own if has_value else -1
                drawn = uniform(corruption, gene)
                value, hidden = _corrupt(
                    drawn, value, place, shown_values, n_shown, gene, random_values, c
                )
                if has_bit(expressed, gene):
                    r = rank(expressed, expressed_before, gene)
                    target_value = tabled_value(counts[r], total, raw_table)
            gene_ids[at], values[at], is_hidden[at] = gene_start + gene, value, hidden
            is_targets[at], target_values[at] = is_target, target_value
            own += has_value
            at += 1


@compiled
def _corrupt(drawn, value, own, shown_values, n_shown, gene, random_values, c):
    """(value, whether it is hidden) of a gene to be guessed; ``own`` is its place, -1 for none."""
    if drawn < c.replace_share:
        return np.float32(0), True
    if drawn < c.replace_share + c.random_share:
        n_others = n_shown - (own >= 0)
        if n_others == 0:  # a cell without another value to take: nothing wrong could be shown
            return np.float32(0), True
        if c.random_from_cell:
            other = below(random_values, gene << 6, n_others)[0]
            value = shown_values[other + (own >= 0 and other >= own)]
        else:
            largest = shown_values[:n_shown].max()
            value = np.float32((1 - uniform(random_values, gene << 6)) * largest)
    return value, not c.corrupted_in_encoder and value > 0
