"""Prompts with a gene taken out or put in: what an in-silico perturbation shows the model.

in   annotation prompts: a cell's genes in their order, then a task word
out  the prompts that this changed, and which cells they are of
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from scfm.batch import CellBatch
from scfm.tokens.vocab import GeneVocab


def without_genes(
    prompts: CellBatch, genes: Sequence[int]
) -> tuple[CellBatch, Bool[np.ndarray, " cell"]]:
    """The prompts that name one of these token ids, without it; True for their cells."""
    is_named = np.isin(prompts.gene_ids, genes)
    cell = _cell_of(prompts)
    is_changed = np.bincount(cell[is_named], minlength=prompts.n_cells) > 0
    return _kept(prompts, ~is_named & is_changed[cell], is_changed), is_changed


def with_genes(
    prompts: CellBatch, genes: Sequence[int], value: float, vocab: GeneVocab, *, descending: bool
) -> tuple[CellBatch, Bool[np.ndarray, " cell"]]:
    """The prompts that these token ids change at value bin ``value``, and True for their cells.

    A gene that is there gets the value; one that is not comes in where the order of ids
    (``descending``, as released, or ascending) has it. Unchanged are the cells that have all of
    them at that value.
    """
    cell, at = _cell_of(prompts), np.isin(prompts.gene_ids, genes)
    right = np.bincount(cell[at & (prompts.values == value)], minlength=prompts.n_cells)
    is_changed = right < len(set(genes))
    others = _kept(prompts, ~at & is_changed[cell], is_changed)
    return _with_tokens(others, sorted(set(genes)), value, vocab, descending), is_changed


def with_words(
    prompts: CellBatch, words: Int[np.ndarray, " cell"], values: np.ndarray
) -> CellBatch:
    """Prompts that go on with one more word each, of these values."""
    ends = np.asarray(prompts.offsets[1:])
    return replace(
        prompts,
        gene_ids=np.insert(prompts.gene_ids, ends, words),
        values=np.insert(prompts.values, ends, values.astype(np.float32)),
        offsets=(prompts.offsets + np.arange(len(prompts.offsets))).astype(prompts.offsets.dtype),
        is_target=np.insert(prompts.is_target, ends, False),
        target_values=np.insert(prompts.target_values, ends, np.float32(0)),
    )


def _with_tokens(
    prompts: CellBatch, genes: Sequence[int], value: float, vocab: GeneVocab, descending: bool
) -> CellBatch:
    """Genes that no prompt has, put where the order has them; words that are no genes stay last."""
    n_cells, n_new = prompts.n_cells, len(genes)
    ids = np.append(prompts.gene_ids, np.tile(np.asarray(genes, np.int64), n_cells))
    cell = np.append(_cell_of(prompts), np.repeat(np.arange(n_cells), n_new))
    is_gene = (ids >= vocab.gene_start) & (ids < vocab.gene_start + vocab.n_genes)
    place = np.where(is_gene, -ids if descending else ids, np.iinfo(np.int64).max)
    order = np.lexsort((place, cell))  # stable: what was in order stays so
    new = n_cells * n_new
    return replace(
        prompts,
        gene_ids=ids[order],
        values=np.append(prompts.values, np.full(new, value, np.float32))[order],
        offsets=(prompts.offsets + n_new * np.arange(n_cells + 1)).astype(prompts.offsets.dtype),
        is_target=np.append(prompts.is_target, np.zeros(new, bool))[order],
        target_values=np.append(prompts.target_values, np.zeros(new, np.float32))[order],
    )


def _kept(
    prompts: CellBatch, is_kept: Bool[np.ndarray, " token"], cells: Bool[np.ndarray, " cell"]
) -> CellBatch:
    """Some tokens of some cells; none may be kept of the other cells."""
    length = np.bincount(_cell_of(prompts)[is_kept], minlength=prompts.n_cells)[cells]
    return CellBatch(
        gene_ids=prompts.gene_ids[is_kept],
        values=prompts.values[is_kept],
        offsets=np.append(0, np.cumsum(length)).astype(prompts.offsets.dtype),
        is_target=prompts.is_target[is_kept],
        target_values=prompts.target_values[is_kept],
        library_size=prompts.library_size[cells],
        source_depth=prompts.source_depth[cells],
        target_depth=prompts.target_depth[cells],
        cell_index=prompts.cell_index[cells],
        labels={key: codes[cells] for key, codes in prompts.labels.items()},
    )


def _cell_of(prompts: CellBatch) -> Int[np.ndarray, " token"]:
    return np.repeat(np.arange(prompts.n_cells), np.diff(prompts.offsets))
