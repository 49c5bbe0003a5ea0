"""The arrays of a CellBatch while kernels fill them, and the tokenizers' common part.

in   how many cells and, at most, tokens
out  Tokens, a NamedTuple that numba takes; CellBatch of the part that was used; CellTokenizer
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from scfm.batch import CellBatch
from scfm.data.counts import CountRows
from scfm.tokens.depth import round_expected
from scfm.tokens.shared_columns import SharedColumns
from scfm.tokens.tables import Alignment, DatasetAlignment, GeneTables
from scfm.tokens.target_depth import TargetDepth
from scfm.tokens.vocab import GeneVocab


class CellTokenizer(ABC):
    """Turns one source's cells into tokens of one vocabulary. Holds no state; threads may share it.

    A cell's tokens depend on its counts, its data set (and its key) alone: not on its batch, nor on
    the order of the columns. Where the source holds several data sets, there is one alignment for
    each and `CountRows.dataset` says which a cell uses.
    """

    n_specials: ClassVar[int]  # tokens before a cell's genes

    def __init__(
        self,
        vocab: GeneVocab,
        alignments: Alignment | Sequence[DatasetAlignment],
        config: Any,
        duplicates: str = "sum",
    ):
        self.vocab, self.config = vocab, config
        self.n_genes = vocab.n_genes
        self.tables = GeneTables.of(alignments, self.n_genes)
        means = duplicates == "rounded_mean"
        self._shared = SharedColumns.of(alignments, self.n_genes) if means else None

    @abstractmethod
    def shown(
        self, rows: CountRows, target_depth: float | Float[np.ndarray, " cell"] | None = None
    ) -> CellBatch:
        """Cells as they are: all expressed genes at the raw depth, nothing hidden.

        ``target_depth`` (log10 of a total count, one or one a cell) is the depth asked of the
        model; without it the cell's own.
        """

    @abstractmethod
    def training(self, rows: CountRows, keys: UInt64[np.ndarray, " cell"]) -> CellBatch:
        """Cells as training examples: thinned in half the cases, with genes and zeros to guess.

        ``keys`` come from `scfm.tokens.rng.cell_keys`. Expected counts are rounded to whole
        molecules first (`scfm.tokens.depth.round_expected`).
        """

    @abstractmethod
    def most_tokens(self, n_expressed: Int[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """A bound on the tokens of training examples of cells with so many expressed columns."""

    def asked_for(self, cells: CellBatch, target_depth: TargetDepth) -> CellBatch:
        """The same cells with another depth asked of the model."""
        wanted = target_depth.of(cells.source_depth)
        values = cells.values.copy()
        values[cells.offsets[:-1] + self.n_specials - 2] = wanted  # [T] and [S] go before the genes
        return replace(cells, values=values, target_depth=wanted)

    def _datasets(self, rows: CountRows) -> Int[np.ndarray, " cell"]:
        """The data set of each cell, in the type the kernels are compiled for."""
        if rows.dataset is None:
            return np.zeros(rows.n_cells, dtype=np.int64)
        dataset = np.ascontiguousarray(rows.dataset, dtype=np.int64)
        assert dataset.size == 0 or 0 <= dataset.min() <= dataset.max() < self.tables.n_datasets
        return dataset

    def _one_a_gene(self, rows: CountRows) -> CountRows:
        """Rows whose columns of one gene are settled; where they add up, that is done later."""
        return self._shared.mean(rows, self.tables, self._datasets(rows)) if self._shared else rows

    def _whole(self, rows: CountRows, keys: UInt64[np.ndarray, " cell"]) -> CountRows:
        if np.issubdtype(rows.counts.dtype, np.integer):
            return rows
        assert len(self.tables.slots) == 1, "sources of several data sets hold whole counts only"
        genes = self.tables.slots[0].astype(np.int64)
        return round_expected(rows, np.where(genes == self.n_genes, -1, genes), self.n_genes, keys)


class Tokens(NamedTuple):
    """CellBatch's arrays, being filled."""

    gene_ids: np.ndarray
    values: np.ndarray
    is_target: np.ndarray
    target_values: np.ndarray
    offsets: np.ndarray
    library_size: np.ndarray
    source_depth: np.ndarray
    target_depth: np.ndarray


def new_tokens(n_cells: int, n_tokens: int) -> Tokens:
    assert n_tokens < 2**31, "offsets are int32: hand over fewer cells at a time"
    return Tokens(
        gene_ids=np.empty(n_tokens, np.int64),
        values=np.empty(n_tokens, np.float32),
        is_target=np.empty(n_tokens, np.bool_),
        target_values=np.empty(n_tokens, np.float32),
        offsets=np.zeros(n_cells + 1, np.int32),
        library_size=np.empty(n_cells, np.float32),
        source_depth=np.empty(n_cells, np.float32),
        target_depth=np.empty(n_cells, np.float32),
    )


def as_batch(out: Tokens, rows: CountRows, is_hidden: np.ndarray | None = None) -> CellBatch:
    """The part of the arrays that was used."""
    arrays: dict[str, Any] = out._asdict() | {"is_hidden": is_hidden}
    for name in ("gene_ids", "values", "is_target", "target_values", "is_hidden"):
        arrays[name] = None if arrays[name] is None else arrays[name][: out.offsets[-1]]
    return CellBatch(**arrays, cell_index=np.asarray(rows.cell_index, dtype=np.int64))
