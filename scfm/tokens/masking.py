"""CSR rows of raw counts -> CellBatch as scFoundation has it: [T], [S], then genes ascending.

in   CountRows of a source, and which of its columns is which gene of the vocabulary
out  CellBatch with ``is_hidden``: what the encoder sees, what it must not, what is to be guessed

Counts, totals and depths are of the vocabulary's genes alone: those outside it are neither thinned
nor part of a total, as in the released inference code. The steps of a training example are

1. read-depth down-sampling of the whole cell (`scfm.tokens.depth`);
2. genes selected to be guessed, each by itself: expressed ones with one probability, zeros with
   another. What is drawn for a gene is a function of the cell's key and the gene;
3. most of the selected are hidden, some shown with a wrong value, the rest with their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from scfm.batch import CellBatch
from scfm.data.bits import ONE, ZERO, has_bit, n_words, popcount, rank, set_bit
from scfm.data.compiled import compiled
from scfm.data.counts import CountRows
from scfm.tokens.depth import UNTHINNED, draw_rate, lane_word, thin_counts
from scfm.tokens.gather import csr_arrays, gather_cell, longest_row, new_sums
from scfm.tokens.packed import CellTokenizer, as_batch, new_tokens
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
from scfm.tokens.tables import Alignment, DatasetAlignment
from scfm.tokens.targets import choose
from scfm.tokens.values import TABLED, fill_table, tabled_value
from scfm.tokens.vocab import GeneVocab

N_SPECIALS = 2  # [T], [S]


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How a training example is made of a cell, for scFoundation.

    The shares are those of the released training settings. What these leave open is an option:

    Attributes
    ----------
    max_genes
        Expressed genes of a cell that the encoder may get; of more a uniform subset is kept, the
        others are hidden and not asked for.
    mask_expressed, mask_zero
        Probability that an expressed gene, or one without a count, is to be guessed. Of 2,000
        expressed genes and the 17,264 others these are 600 and 518: about as many zeros.
    replace_share, random_share
        Of the genes to be guessed, those hidden, and those shown with a wrong value; the rest
        keep their own.
    expressed_by
        Which genes count as expressed when the first two are drawn, where down-sampling left
        nothing of a gene: "shown" (the default) takes it for a zero, as the model must; "raw" for
        expressed. With "raw" such a gene is hidden ten times as often as a true zero, so the mask
        itself tells the model which zeros are lost molecules, which nothing tells it in use.
    zeros_from
        Which genes without a count may be asked for: those the data set "measured" (the default),
        or "all" of the vocabulary, those it does not measure taken for zero, as where a matrix is
        padded. The truth of those is not known: with "all" the model learns which genes an assay
        lacks.
    random_value
        A wrong value: "cell" (the default), that of another expressed gene drawn from the cell, so
        that no value by itself looks wrong; or "uniform" between 0 and the cell's largest, which
        is easier to tell.
    corrupted_in_encoder
        Whether genes to be guessed that are not hidden go through the encoder, as in BERT, from
        which the shares come (True, the default): else nothing keeps the encoder from trusting
        every value, which wrong values are for. With False only the decoder sees their values.
    downsample_probability, downsample_min_counts
        How often a cell is shown thinned, and from how many counts on.

    Source: training_hyperparameter.txt of biomap-research/scFoundation and Hao et al. 2024,
    doi:10.1038/s41592-024-02305-7; shares of 80, 10 and 10 %: Devlin et al. 2019, arXiv:1810.04805.
    """

    max_genes: int = 15_000
    mask_expressed: float = 0.3
    mask_zero: float = 0.03
    replace_share: float = 0.8
    random_share: float = 0.1
    expressed_by: Literal["shown", "raw"] = "shown"
    zeros_from: Literal["measured", "all"] = "measured"
    random_value: Literal["cell", "uniform"] = "cell"
    corrupted_in_encoder: bool = True
    downsample_probability: float = 0.5
    downsample_min_counts: int = 1000

    def __post_init__(self) -> None:
        if self.max_genes < 1:
            raise ValueError(f"tokens.max_genes must be at least 1, got {self.max_genes}")
        if not 0 < self.mask_expressed < 1:
            raise ValueError(f"tokens.mask_expressed must be in (0, 1), got {self.mask_expressed}")
        if not 0 <= self.mask_zero < 1:
            raise ValueError(f"tokens.mask_zero must be in [0, 1), got {self.mask_zero}")
        shares = (self.replace_share, self.random_share)
        if not (min(shares) >= 0 and sum(shares) <= 1 + 1e-9):
            raise ValueError(
                "tokens.replace_share and random_share must be at least 0 and together at most 1, "
                f"got {shares[0]} and {shares[1]}"
            )
        if not 0 <= self.downsample_probability <= 1:
            found = self.downsample_probability
            raise ValueError(f"tokens.downsample_probability must be in [0, 1], got {found}")
        if self.downsample_min_counts < 1:
            found = self.downsample_min_counts
            raise ValueError(f"tokens.downsample_min_counts must be at least 1, got {found}")


class MaskedTokenizer(CellTokenizer):
    """The tokens of the scFoundation family.

    In a training example a gene to be guessed (``is_target``) is hidden, with value 0; or not
    hidden, with a wrong value or its own, which for a zero is 0. Where ``corrupted_in_encoder`` is
    False the latter are hidden from the encoder with their value, for the decoder alone. Genes
    that ``max_genes`` leaves out are hidden and no targets. A zero that is no target has no token.
    """

    n_specials = N_SPECIALS

    def __init__(
        self,
        vocab: GeneVocab,
        alignments: Alignment | Sequence[DatasetAlignment],
        config: MaskConfig | None = None,
    ):
        super().__init__(vocab, alignments, config or MaskConfig())
        self._ids = (vocab.target_depth_id, vocab.source_depth_id, vocab.gene_start)
        self._settings = _Settings.of(self.config)
        self._may_be_zero = self._bits_of_zeros()

    def shown(
        self, rows: CountRows, target_depth: float | Float[np.ndarray, " cell"] | None = None
    ) -> CellBatch:
        indptr, indices, counts = csr_arrays(rows)
        scratch = _new_scratch(longest_row(indptr), self.n_genes, counts)
        out = new_tokens(rows.n_cells, int(indptr[-1]) + N_SPECIALS * rows.n_cells)
        tables = (self.tables, self._datasets(rows), self.n_genes)
        _shown_cells(indptr, indices, counts, *tables, self._ids, scratch, out)
        if target_depth is not None:
            out.target_depth[:] = target_depth
            out.values[out.offsets[:-1]] = target_depth
        return as_batch(out, rows)

    def training(self, rows: CountRows, keys: UInt64[np.ndarray, " cell"]) -> CellBatch:
        assert len(keys) == rows.n_cells, "one key a cell"
        rows = self._whole(rows, keys)
        indptr, indices, counts = csr_arrays(rows)
        scratch = _new_scratch(longest_row(indptr), self.n_genes, counts)
        room = int(self.most_tokens(np.diff(indptr)).sum())
        out, is_hidden = new_tokens(rows.n_cells, room), np.empty(room, np.bool_)
        tables = (self.tables, self._datasets(rows), self.n_genes)
        has_room = _training_cells(
            *(indptr, indices, counts, *tables, self._may_be_zero, self._ids, scratch, out),
            *(is_hidden, np.ascontiguousarray(keys), self._settings),
        )
        assert has_room, "more zeros drawn than most_tokens allows for"
        return as_batch(out, rows, is_hidden)

    def most_tokens(self, n_expressed: Int[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """A bound on the tokens of each cell's training example.

        Zeros are drawn one by one, so their number varies: eight standard deviations are allowed
        for, and a few more, which one cell in 10^15 exceeds.
        """
        p = self.config.mask_zero
        mean, spread = self.n_genes * p, math.sqrt(self.n_genes * p * (1 - p))
        zeros = min(self.n_genes, math.ceil(mean + 8 * spread + 20)) if p else 0
        expressed = np.minimum(n_expressed, self.n_genes)
        return (N_SPECIALS + np.minimum(expressed + zeros, self.n_genes)).astype(np.int64)

    def _bits_of_zeros(self) -> UInt64[np.ndarray, "list word"]:
        """For each list of measured genes, bits of the genes that may be asked for as zeros."""
        if self.config.zeros_from == "all":
            lists = [np.arange(self.n_genes)] * (len(self.tables.bounds) - 1)
        else:
            lists = np.split(self.tables.measured, self.tables.bounds[1:-1])
        bits = np.zeros((len(lists), 64 * n_words.py_func(self.n_genes + 1)), dtype=bool)
        for own, genes in zip(bits, lists, strict=True):
            own[genes] = True
        return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)


class _Settings(NamedTuple):
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

    @classmethod
    def of(cls, config: MaskConfig) -> "_Settings":
        return cls(
            max_genes=config.max_genes,
            expressed_rate=np.uint64(int(config.mask_expressed * 2.0**64)),
            zero_rate=np.uint64(int(config.mask_zero * 2.0**64)),
            replace_share=config.replace_share,
            random_share=config.random_share,
            expressed_by_raw=config.expressed_by == "raw",
            random_from_cell=config.random_value == "cell",
            corrupted_in_encoder=config.corrupted_in_encoder,
            downsample_probability=config.downsample_probability,
            downsample_min_counts=config.downsample_min_counts,
        )


class _Scratch(NamedTuple):
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


def _new_scratch(longest: int, n_genes: int, counts: np.ndarray) -> _Scratch:
    words, longest = n_words.py_func(n_genes + 1), longest + 2
    return _Scratch(
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
def _shown_cells(indptr, indices, counts, tables, dataset, n_genes, ids, s, out):
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
def _training_cells(
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
        n_tokens = N_SPECIALS
        for w in range(len(s.selected)):
            n_tokens += popcount(s.is_shown[w] | s.selected[w])
        if out.offsets[i] + n_tokens > len(out.gene_ids):
            return False
        at = _place_depths(i, total, shown_total, ids, out)
        is_hidden[at - N_SPECIALS : at] = False
        _place_genes(key, at, total, n_shown, ids[2], s, out, is_hidden, c)
        out.offsets[i + 1] = out.offsets[i] + n_tokens
    return True


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
    s.is_shown[:] = ZERO
    fill_table(shown_total, s.shown_table)
    n_shown = 0
    for r in range(n):
        s.shown_values[n_shown] = tabled_value(shown[r], shown_total, s.shown_table)
        if shown[r] > 0:
            set_bit(s.is_shown, s.genes[r])
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
    for w in range(len(s.selected)):
        expressed = s.expressed[w] if c.expressed_by_raw else s.is_shown[w]
        zeros = may_be_zero[w] & ~expressed
        drawn = expressed & lane_word(c.expressed_rate, of_expressed, 64 * w)[0]
        drawn |= zeros & lane_word(c.zero_rate, of_zeros, 64 * w)[0]
        s.selected[w] = drawn & ~s.dropped[w]


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
    corruption, random_values = open_stream(key, CORRUPTION), open_stream(key, RANDOM_VALUES)
    fill_table(total, s.raw_table)
    largest, shown_before = np.float32(0), 0
    for k in range(n_shown):
        largest = max(largest, s.shown_values[k])
    for w in range(len(s.is_shown)):
        left = s.is_shown[w] | s.selected[w]
        while left != ZERO:
            lowest = left & (ZERO - left)
            left ^= lowest
            gene = 64 * w + popcount(lowest - ONE)
            is_shown = s.is_shown[w] & lowest != ZERO
            is_target = s.selected[w] & lowest != ZERO
            value, hidden = np.float32(0), s.dropped[w] & lowest != ZERO
            if is_shown and not hidden:
                value = s.shown_values[shown_before]
            if is_target:
                own = shown_before if is_shown else -1
                drawn = uniform(corruption, gene)
                value, hidden = _corrupt(
                    drawn, value, own, n_shown, largest, gene, random_values, s, c
                )
            out.gene_ids[at] = gene_start + gene
            out.values[at] = value
            out.is_target[at] = is_target
            out.target_values[at] = _raw_value(gene, total, s) if is_target else np.float32(0)
            is_hidden[at] = hidden
            shown_before += is_shown
            at += 1


@compiled
def _corrupt(drawn, value, own, n_shown, largest, gene, random_values, s, c):
    """(value, whether it is hidden) of a gene to be guessed; ``own`` is its place, -1 for none."""
    if drawn < c.replace_share:
        return np.float32(0), True
    if drawn < c.replace_share + c.random_share:
        n_others = n_shown - (own >= 0)
        if n_others == 0:  # a cell without another value to take: nothing wrong could be shown
            return np.float32(0), True
        if c.random_from_cell:
            other = below(random_values, gene << 6, n_others)[0]
            value = s.shown_values[other + (own >= 0 and other >= own)]
        else:
            value = np.float32((1 - uniform(random_values, gene << 6)) * largest)
    return value, not c.corrupted_in_encoder and value > 0


@compiled
def _raw_value(gene, total, s):
    """The value at the cell's raw depth."""
    if not has_bit(s.expressed, gene):
        return np.float32(0)
    r = rank(s.expressed, s.expressed_before, gene)
    return tabled_value(s.counts[r], total, s.raw_table)
