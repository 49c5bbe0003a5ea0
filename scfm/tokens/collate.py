"""CSR rows of raw counts -> CellBatch, for inference and for training.

in   CountRows of a source, and which of its columns is which gene of the vocabulary; in a source of
     several data sets, for each of them
out  CellBatch: [CELL], [T], [S], then genes ascending; with targets in training

The steps live in scfm.tokens.gather, depth, targets and values; here they are fused, cell by cell,
so that nothing the size of the batch is made but the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from scfm.batch import CellBatch
from scfm.data.bits import ALL, ZERO, count_before, has_bit, n_words, rank
from scfm.data.compiled import compiled
from scfm.data.counts import CountRows
from scfm.tokens.depth import UNTHINNED, draw_rate, thin_counts
from scfm.tokens.gather import csr_arrays, gather_cell, longest_row, new_sums
from scfm.tokens.packed import CellTokenizer, as_batch, new_tokens
from scfm.tokens.rng import DEPTH, open_stream
from scfm.tokens.tables import Alignment, DatasetAlignment
from scfm.tokens.targets import choose_kept_and_targets, choose_zeros
from scfm.tokens.values import TABLED, fill_table, tabled_value
from scfm.tokens.vocab import GeneVocab

N_SPECIALS = 3  # [CELL], [T], [S]


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """How a training example is made of a cell."""

    max_genes: int = 2048  # expressed genes of a cell; of more, a uniform subset is kept
    target_share: float = 0.3  # of the kept genes, hidden to be guessed
    zero_ratio: float = 1.0  # drawn zeros per hidden gene
    downsample_probability: float = 0.5  # that a cell is shown thinned
    downsample_min_counts: int = 1000  # cells of fewer molecules are never thinned

    def __post_init__(self) -> None:
        if self.max_genes < 1:
            raise ValueError(f"tokens.max_genes must be at least 1, got {self.max_genes}")
        if not 0 < self.target_share < 1:
            raise ValueError(f"tokens.target_share must be in (0, 1), got {self.target_share}")
        if not 0 <= self.zero_ratio <= 100:
            raise ValueError(f"tokens.zero_ratio must be in [0, 100], got {self.zero_ratio}")
        if not 0 <= self.downsample_probability <= 1:
            found = self.downsample_probability
            raise ValueError(f"tokens.downsample_probability must be in [0, 1], got {found}")
        if self.downsample_min_counts < 1:
            found = self.downsample_min_counts
            raise ValueError(f"tokens.downsample_min_counts must be at least 1, got {found}")


class Tokenizer(CellTokenizer):
    """The tokens of the scfm family: [CELL], [T], [S], the genes shown, and those to guess."""

    n_specials = N_SPECIALS

    def __init__(
        self,
        vocab: GeneVocab,
        alignments: Alignment | Sequence[DatasetAlignment],
        config: TokenConfig | None = None,
        duplicates: str = "sum",
    ):
        super().__init__(vocab, alignments, config or TokenConfig(), duplicates)
        self._ids = (vocab.cell_id, vocab.target_depth_id, vocab.source_depth_id, vocab.gene_start)

    def shown(
        self, rows: CountRows, target_depth: float | Float[np.ndarray, " cell"] | None = None
    ) -> CellBatch:
        indptr, indices, counts = csr_arrays(self._one_a_gene(rows))
        scratch = _new_scratch(longest_row(indptr), self.n_genes, counts)
        out = new_tokens(rows.n_cells, int(indptr[-1]) + N_SPECIALS * rows.n_cells)
        tables = (self.tables, self._datasets(rows), self.n_genes)
        _shown_cells(indptr, indices, counts, *tables, self._ids, scratch, out)
        if target_depth is not None:
            out.target_depth[:] = target_depth
            out.values[out.offsets[:-1] + 1] = target_depth
        return as_batch(out, rows)

    def training(self, rows: CountRows, keys: UInt64[np.ndarray, " cell"]) -> CellBatch:
        assert len(keys) == rows.n_cells, "one key a cell"
        rows = self._whole(self._one_a_gene(rows), keys)
        indptr, indices, counts = csr_arrays(rows)
        scratch = _new_scratch(longest_row(indptr), self.n_genes, counts)
        out = new_tokens(rows.n_cells, int(self.most_tokens(np.diff(indptr)).sum()) + 1)
        settings = _Settings(**asdict(self.config))
        tables = (self.tables, self._datasets(rows), self.n_genes)
        _training_cells(
            *(indptr, indices, counts, *tables, self._ids, scratch, out),
            *(np.ascontiguousarray(keys), settings),
        )
        return as_batch(out, rows)

    def most_tokens(self, n_expressed: Int[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """A bound on the tokens of each cell's training example; see also `_place_genes`."""
        kept = np.minimum(n_expressed, self.config.max_genes)
        targets = self.config.target_share * kept + 1
        return (N_SPECIALS + kept + np.ceil(self.config.zero_ratio * targets) + 1).astype(np.int64)


class _Settings(NamedTuple):
    """TokenConfig as the kernels take it."""

    max_genes: int
    target_share: float
    zero_ratio: float
    downsample_probability: float
    downsample_min_counts: int


class _Scratch(NamedTuple):
    """Working space of one cell: bits by gene, bits by rank, and an entry an expressed gene."""

    expressed: np.ndarray  # bits by gene; all zero between cells, as is `zeros`
    zeros: np.ndarray  # bits by gene
    expressed_before: np.ndarray  # bits set in earlier words
    zeros_before: np.ndarray
    kept: np.ndarray  # bits by rank among the expressed
    targets: np.ndarray  # bits by rank among the expressed
    marks: np.ndarray  # bits of a draw
    genes: np.ndarray
    counts: np.ndarray
    thinned: np.ndarray
    lanes: np.ndarray
    placed: np.ndarray  # tokens of expressed genes before this one
    zero_genes: np.ndarray
    raw_table: np.ndarray
    shown_table: np.ndarray


def _new_scratch(longest: int, n_genes: int, counts: np.ndarray) -> _Scratch:
    words, longest = n_words.py_func(n_genes + 1), longest + 2
    bits = [np.zeros(words, np.uint64) for _ in range(5)]
    return _Scratch(
        expressed=bits[0],
        zeros=bits[1],
        expressed_before=np.zeros(words, np.int64),
        zeros_before=np.zeros(words, np.int64),
        kept=bits[2],
        targets=bits[3],
        marks=bits[4],
        genes=np.empty(longest, np.int32),
        counts=new_sums(longest, counts),
        thinned=new_sums(longest, counts),
        lanes=np.empty(longest, np.uint64),
        placed=np.empty(longest, np.int64),
        zero_genes=np.empty(n_genes + 1, np.int32),
        raw_table=np.empty(TABLED, np.float32),
        shown_table=np.empty(TABLED, np.float32),
    )


@compiled
def _shown_cells(indptr, indices, counts, tables, dataset, n_genes, ids, scratch, out):
    scratch.targets[:] = ZERO
    for i in range(len(indptr) - 1):
        row, slots = slice(indptr[i], indptr[i + 1]), tables.slots[tables.table_of[dataset[i]]]
        n, total = _gather(indices[row], counts[row], slots, n_genes, scratch)
        scratch.kept[: n_words(n)] = ALL
        _place_cell(i, n, total, scratch.counts, total, ids, scratch, out)
        scratch.expressed[:] = ZERO


@compiled
def _training_cells(
    indptr, indices, counts, tables, dataset, n_genes, ids, scratch, out, keys, settings
):
    s = scratch
    for i in range(len(indptr) - 1):
        row, key = slice(indptr[i], indptr[i + 1]), keys[i]
        slots, list_of = tables.slots[tables.table_of[dataset[i]]], tables.list_of[dataset[i]]
        measured = tables.measured[tables.bounds[list_of] : tables.bounds[list_of + 1]]
        n, total = _gather(indices[row], counts[row], slots, n_genes, s)
        shown, shown_total = _thin(key, n, total, s, settings)
        n_targets = choose_kept_and_targets(
            key, n, settings.max_genes, settings.target_share, s.kept, s.targets, s.marks
        )
        wanted = round(settings.zero_ratio * n_targets)
        choose_zeros(key, wanted, measured, s.expressed, n, s.zeros, s.marks, s.zero_genes)
        _place_cell(i, n, total, shown, shown_total, ids, s, out)
        s.expressed[:] = ZERO
        s.zeros[:] = ZERO


@compiled
def _gather(indices, counts, slots, n_genes, s):
    """Genes and counts of one cell in vocabulary order: how many genes, and the library size."""
    n = gather_cell(
        indices, counts, slots, n_genes, s.expressed, s.expressed_before, s.genes, s.counts
    )
    return n, s.counts[: n + 1].sum()


@compiled
def _thin(key, n, total, s, settings):
    """The counts to show, and their total with those outside the vocabulary."""
    stream = open_stream(key, DEPTH)
    rate = draw_rate(stream, settings.downsample_probability, settings.downsample_min_counts, total)
    if rate != UNTHINNED:
        thinned_total = thin_counts(s.counts, n + 1, rate, stream, s.lanes, s.thinned)
        if thinned_total > 0:
            return s.thinned, thinned_total
    return s.counts, total


@compiled
def _place_cell(i, n, total, shown, shown_total, ids, s, out):
    """Write all of cell i behind the cells before it."""
    cell_id, target_depth_id, source_depth_id, gene_start = ids
    # a cell without a count has depth 0: minus infinity would poison a batch
    out.target_depth[i] = math.log10(max(total, 1))
    out.source_depth[i] = math.log10(max(shown_total, 1))
    out.library_size[i] = total
    first = out.offsets[i]
    last = first + N_SPECIALS
    out.gene_ids[first:last] = (cell_id, target_depth_id, source_depth_id)
    out.values[first:last] = (np.float32(0), out.target_depth[i], out.source_depth[i])
    out.is_target[first:last] = False
    out.target_values[first:last] = 0
    out.offsets[i + 1] = _place_genes(n, total, shown, shown_total, gene_start, s, out, last)


@compiled
def _place_genes(n, total, shown, shown_total, gene_start, s, out, at):
    """Write a cell's genes, expressed and zeros merged by id; returns the place after them.

    Each gene's place is counted, not sorted for. Every expressed gene is written, and one that
    stays out (dropped, or thinned to nothing) is overwritten by what follows: no branch to guess.
    So the very last cell may touch one place too many.
    """
    # arrays by name: numba counts references at every access to a tuple's field
    genes, counts, placed, kept, targets = s.genes, s.counts, s.placed, s.kept, s.targets
    zeros, zeros_before = s.zeros, s.zeros_before
    expressed, expressed_before = s.expressed, s.expressed_before
    raw_table, shown_table = s.raw_table, s.shown_table
    gene_ids, values = out.gene_ids, out.values
    is_targets, target_values = out.is_target, out.target_values
    fill_table(total, raw_table)
    fill_table(shown_total, shown_table)
    n_zeros = count_before(zeros, zeros_before)
    for r in range(n):
        is_kept, is_target = has_bit(kept, r), has_bit(targets, r)
        value = tabled_value(shown[r], shown_total, shown_table)
        target_value = tabled_value(counts[r], total, raw_table)
        place = np.uint64(at + rank(zeros, zeros_before, genes[r]))
        gene_ids[place] = gene_start + genes[r]
        values[place] = np.float32(0) if is_target else value
        is_targets[place] = is_target
        target_values[place] = target_value if is_target else np.float32(0)
        placed[r] = at
        at += is_target | (is_kept & (shown[r] > 0))
    placed[n] = at
    for gene in s.zero_genes[:n_zeros]:
        first_after = np.uint64(rank(expressed, expressed_before, gene))
        place = np.uint64(placed[first_after] + rank(zeros, zeros_before, gene))
        gene_ids[place] = gene_start + gene
        values[place] = np.float32(0)
        is_targets[place] = True
        target_values[place] = np.float32(0)
    return at + n_zeros
