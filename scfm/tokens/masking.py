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
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt64

from scfm.batch import CellBatch
from scfm.data.bits import n_words
from scfm.data.counts import CountRows
from scfm.tokens.gather import csr_arrays, longest_row
from scfm.tokens.masked_cells import (
    N_SPECIALS,
    MaskSettings,
    new_mask_scratch,
    shown_cells,
    training_cells,
)
from scfm.tokens.packed import CellTokenizer, as_batch, new_tokens
from scfm.tokens.tables import Alignment, DatasetAlignment
from scfm.tokens.vocab import GeneVocab


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
        duplicates: str = "sum",
    ):
        super().__init__(vocab, alignments, config or MaskConfig(), duplicates)
        self._ids = (vocab.target_depth_id, vocab.source_depth_id, vocab.gene_start)
        self._settings = _settings_of(self.config)
        self._may_be_zero = self._bits_of_zeros()

    def shown(
        self, rows: CountRows, target_depth: float | Float[np.ndarray, " cell"] | None = None
    ) -> CellBatch:
        indptr, indices, counts = csr_arrays(self._one_a_gene(rows))
        scratch = new_mask_scratch(longest_row(indptr), self.n_genes, counts)
        out = new_tokens(rows.n_cells, int(indptr[-1]) + N_SPECIALS * rows.n_cells)
        tables = (self.tables, self._datasets(rows), self.n_genes)
        shown_cells(indptr, indices, counts, *tables, self._ids, scratch, out)
        if target_depth is not None:
            out.target_depth[:] = target_depth
            out.values[out.offsets[:-1]] = target_depth
        return as_batch(out, rows)

    def training(self, rows: CountRows, keys: UInt64[np.ndarray, " cell"]) -> CellBatch:
        assert len(keys) == rows.n_cells, "one key a cell"
        rows = self._whole(self._one_a_gene(rows), keys)
        indptr, indices, counts = csr_arrays(rows)
        scratch = new_mask_scratch(longest_row(indptr), self.n_genes, counts)
        room = int(self.most_tokens(np.diff(indptr)).sum())
        out, is_hidden = new_tokens(rows.n_cells, room), np.empty(room, np.bool_)
        tables = (self.tables, self._datasets(rows), self.n_genes)
        has_room = training_cells(
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


def _settings_of(config: MaskConfig) -> MaskSettings:
    return MaskSettings(
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
