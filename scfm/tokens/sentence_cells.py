"""The inner loops of scfm.tokens.sentence: one cell after the other into the arrays of a batch.

in   CSR rows, tables of columns and genes, word ids a cell, a key a cell, settings
out  the filled arrays of scfm.tokens.packed
"""

import math
from typing import NamedTuple

import numpy as np

from scfm.data.bits import ZERO, has_bit, n_words
from scfm.data.compiled import compiled
from scfm.tokens.gather import gather_cell, new_sums
from scfm.tokens.rng import GENE_ORDER, SENTENCE, SUBSET, WORD_SUBSET, below, open_stream, uniform
from scfm.tokens.targets import choose
from scfm.tokens.value_bins import bins_of_counts
from scfm.tokens.values import TABLED

NO_ID = -1  # where a cell has no word
SORTED, REVERSED, SHUFFLED = range(3)
_ANNOTATE, _GENERATE, _COMPLETE = range(3)


class SentenceSettings(NamedTuple):
    """What the kernels know of the vocabulary and of SentenceConfig."""

    n_genes: int
    gene_start: int
    end_id: int
    annotate_id: int
    generate_id: int
    complete_id: int
    n_bins: int
    max_genes: int
    order: int
    annotate_share: float
    generate_share: float


class SentenceScratch(NamedTuple):
    """Working space of one cell."""

    bits: np.ndarray  # by gene
    before: np.ndarray  # bits set in earlier words
    kept: np.ndarray  # bits by rank among the expressed genes
    genes: np.ndarray
    counts: np.ndarray
    bins: np.ndarray
    order: np.ndarray  # ranks of the genes said, as they are said
    table: np.ndarray  # bins of small counts
    words: np.ndarray  # the cell's words, each once


def new_sentence_scratch(
    longest: int, n_genes: int, n_columns: int, counts: np.ndarray
) -> SentenceScratch:
    words, longest = n_words.py_func(n_genes + 1), longest + 2
    return SentenceScratch(
        bits=np.zeros(words, np.uint64),
        before=np.zeros(words, np.int64),
        kept=np.zeros(words, np.uint64),
        genes=np.empty(longest, np.int32),
        counts=new_sums(longest, counts),
        bins=np.empty(longest, np.int64),
        order=np.empty(longest, np.int64),
        table=np.zeros(TABLED, np.int64),
        words=np.empty(n_columns + 1, np.int64),
    )


@compiled
def prompt_cells(
    indptr, indices, counts, tables, dataset, words, task_id, has_genes, settings, s, out
):
    """Prompts: genes (or none), words and the task word; nothing is to be said."""
    c = settings
    for i in range(len(indptr) - 1):
        row, slots = slice(indptr[i], indptr[i + 1]), tables.slots[tables.table_of[dataset[i]]]
        n = _gather(i, indices[row], counts[row], slots, c, s, out)
        at = out.offsets[i]
        if has_genes:
            _arrange(n, c.order, s)
            at = _place_genes(at, n, False, c.gene_start, s, out)
        for w in range(_distinct(words[i], s)):
            at = _place_word(at, s.words[w], False, out)
        out.offsets[i + 1] = _place_word(at, task_id, False, out)


@compiled
def training_cells(indptr, indices, counts, tables, dataset, words, types, settings, s, out, keys):
    """Sentences with their prompt and what is to be said after it."""
    c = settings
    for i in range(len(indptr) - 1):
        row, slots = slice(indptr[i], indptr[i + 1]), tables.slots[tables.table_of[dataset[i]]]
        key, at = keys[i], out.offsets[i]
        n = _gather(i, indices[row], counts[row], slots, c, s, out)
        n_said = _choose_genes(key, n, c, s)
        n_own = _distinct(words[i], s)
        kind = _sentence_of(key, words[i], types, n_own, c)
        if kind == _ANNOTATE:
            at = _place_genes(at, n_said, False, c.gene_start, s, out)
            at = _place_word(at, c.annotate_id, False, out)
            at = _place_types(at, words[i], types, out)
        elif kind == _GENERATE:
            subset = _word_subset(key, n_own, False)
            at = _place_words(at, n_own, subset, True, False, s, out)
            at = _place_word(at, c.generate_id, False, out)
            at = _place_genes(at, n_said, True, c.gene_start, s, out)
        else:
            subset = _word_subset(key, n_own, True)
            at = _place_genes(at, n_said, False, c.gene_start, s, out)
            at = _place_words(at, n_own, subset, True, False, s, out)
            at = _place_word(at, c.complete_id, False, out)
            at = _place_words(at, n_own, subset, False, True, s, out)
        out.offsets[i + 1] = _place_word(at, c.end_id, True, out)


@compiled
def _gather(i, indices, counts, slots, c, s, out):
    """Genes of a cell ascending, with their bins: how many. Writes the cell's depths."""
    s.bits[:] = ZERO
    n = gather_cell(indices, counts, slots, c.n_genes, s.bits, s.before, s.genes, s.counts)
    total = s.counts[: n + 1].sum()
    bins_of_counts(s.counts, n, total, c.n_bins, s.table, s.bins)
    out.library_size[i] = total
    # a cell without a count has depth 0: minus infinity would poison a batch
    out.source_depth[i] = out.target_depth[i] = math.log10(max(total, 1))
    return n


@compiled
def _arrange(n, order, s):
    """All ranks, ascending or descending."""
    for k in range(n):
        s.order[k] = n - 1 - k if order == REVERSED else k


@compiled
def _choose_genes(key, n, c, s):
    """Ranks of the genes of a training example, in their order; returns how many."""
    n_said = min(n, c.max_genes)
    if c.order == SHUFFLED:
        _arrange(n, SORTED, s)
        stream, counter = open_stream(key, GENE_ORDER), 0
        # the first places of a random permutation: a uniform subset in uniform order
        for k in range(n_said):
            other, counter = below(stream, counter, n - k)
            s.order[k], s.order[k + other] = s.order[k + other], s.order[k]
        return n_said
    choose(n_said, n, open_stream(key, SUBSET), s.kept)
    at = 0
    for r in range(n):
        if has_bit(s.kept, r):
            s.order[n_said - 1 - at if c.order == REVERSED else at] = r
            at += 1
    return n_said


@compiled
def _distinct(words, s):
    """The cell's words, each once, in the order of the columns; returns how many."""
    n = 0
    for word in words:
        if word != NO_ID and not (s.words[:n] == word).any():
            s.words[n] = word
            n += 1
    return n


@compiled
def _sentence_of(key, words, types, n_own, c):
    """Which sentence a cell becomes: the one drawn, or the next it has the words for."""
    drawn = uniform(open_stream(key, SENTENCE), 0)
    if drawn < c.annotate_share:
        kind = _ANNOTATE
    else:
        kind = _GENERATE if drawn < c.annotate_share + c.generate_share else _COMPLETE
    if kind == _ANNOTATE:
        knows_types = len(types) > 0
        for column in types:
            knows_types &= words[column] != NO_ID
        if not knows_types:
            kind = _COMPLETE
    return _GENERATE if kind == _COMPLETE and n_own == 0 else kind


@compiled
def _word_subset(key, n, is_proper):
    """Bits of a subset of n words, every (proper) one equally likely."""
    n_subsets = (1 << n) - (1 if is_proper else 0)
    return below(open_stream(key, WORD_SUBSET), 0, n_subsets)[0]


@compiled
def _place_word(at, word, is_target, out):
    out.gene_ids[at], out.values[at] = word, 0
    out.is_target[at], out.target_values[at] = is_target, 0
    return at + 1


@compiled
def _place_words(at, n, subset, is_in, is_target, s, out):
    """Those of the cell's words that are in the subset, or those that are not."""
    for w in range(n):
        if ((subset >> w) & 1 == 1) == is_in:
            at = _place_word(at, s.words[w], is_target, out)
    return at


@compiled
def _place_types(at, words, types, out):
    """The cell's types, coarse first; one that is both is said once."""
    first = at
    for column in types:
        if not (out.gene_ids[first:at] == words[column]).any():
            at = _place_word(at, words[column], True, out)
    return at


@compiled
def _place_genes(at, n, is_target, gene_start, s, out):
    genes, bins, order = s.genes, s.bins, s.order
    gene_ids, values = out.gene_ids, out.values
    is_targets, target_values = out.is_target, out.target_values
    for k in range(n):
        r = order[k]
        value = np.float32(bins[r])
        gene_ids[at], values[at] = gene_start + genes[r], value
        is_targets[at], target_values[at] = is_target, value if is_target else np.float32(0)
        at += 1
    return at
