"""Bulk samples, and values that come log-normalised -> CellBatch, by the original's recipes.

in   CSR of counts or of log-normalised values, which column is which gene, the name of a recipe
out  CellBatch for inference: [T], [S], genes ascending, nothing hidden

Single cells with raw counts do not come this way: `scfm.tokens.masking.MaskedTokenizer.shown`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

from scfm.batch import CellBatch
from scfm.data.matrices import RawRows
from scfm.errors import ConfigError, CountsError, EmptyCellError
from scfm.tokens.vocab import GeneVocab

LARGEST_LOG = 25.0  # ln(1 + 7e10): no log-normalised value is larger, most bulk counts are


@dataclass(frozen=True)
class Recipe:
    """What the values are and how deep they are said to be.

    Attributes
    ----------
    from_counts
        Counts are given, to be normalised here; else values are log1p of normalised counts.
    logs_sum
        The source depth S is log10 of the sum of a cell's log-normalised values; else the sum.
    target_depth
        T; None: S.
    source
        Where the original does this, in biomap-research/scFoundation.
    """

    from_counts: bool
    logs_sum: bool
    target_depth: float | None
    source: str


RECIPES = {
    # The sum, not the total count, is what the original takes the log10 of: so bulk samples come
    # to S of 4 to 5, within what single cells have taught the model.
    "bulk": Recipe(True, True, None, "model/get_embedding.py:101-105,144-152, pre_normalized=F"),
    # The sum goes in as it is, some 1e4 where the model was trained on 2 to 5. For what was
    # published with it; "scad_bulk" takes the same values.
    "deepcdr": Recipe(False, False, None, "DeepCDR/prog/run_pytorch_embedding.py:78-79"),
    "scad_bulk": Recipe(False, True, None, "SCAD, its bulk samples; issue 8"),
    "scad_cell": Recipe(False, True, 4.0, "SCAD/run_embedding_sc.py"),
}


def cells_by_recipe(
    indptr: Int[np.ndarray, " bound"],
    indices: Int[np.ndarray, " nonzero"],
    values: Num[np.ndarray, " nonzero"],
    column_to_gene: Int[np.ndarray, " column"],
    vocab: GeneVocab,
    recipe: str,
    *,
    scale: float = 1e4,
    cell_index: Int[np.ndarray, " cell"] | None = None,
) -> CellBatch:
    """Cells or bulk samples of given values, at the depths a recipe gives them.

    Parameters
    ----------
    indptr, indices, values
        CSR rows: counts or log-normalised values in nats, as the recipe wants.
    column_to_gene
        For each column its position among the vocabulary's genes, -1 where unused
        (`scfm.data.genes.align`). Columns of one gene are summed before the logarithm.
    recipe
        One of `RECIPES`: "bulk" from counts; "deepcdr", "scad_bulk" and "scad_cell" from
        log-normalised values.
    scale
        What counts are normalised to, for "bulk". The original's is the median of the data set's
        totals (`median_total`), as scanpy's normalize_total() has it by default: then a sample's
        values hang on the samples beside it. 1e4, what the model was trained on, hangs on nothing.

    Raises
    ------
    ConfigError
        No such recipe.
    CountsError
        A value is negative or no number, or too large for a logarithm where one is wanted.
    EmptyCellError
        Cells without a value above 0 on the vocabulary's genes.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"recipe is '{recipe}'; known are {', '.join(RECIPES)}.")
    how = RECIPES[recipe]
    if cell_index is None:
        cell_index = np.arange(len(indptr) - 1)
    _check(values, how)
    amounts = values.astype(np.float64)
    amounts = amounts if how.from_counts else np.expm1(amounts)
    bounds, genes, amounts = _by_gene(indptr, indices, amounts, column_to_gene)
    totals = _row_sums(bounds, amounts)
    _refuse_empty(cell_index[totals == 0])
    if how.from_counts:
        amounts = amounts * np.repeat(scale / totals, np.diff(bounds))
    shown = np.log1p(amounts)
    sums = _row_sums(bounds, shown)
    source_depth = np.log10(sums) if how.logs_sum else sums
    target_depth = (
        source_depth if how.target_depth is None else np.full(len(sums), how.target_depth)
    )
    library_size = totals if how.from_counts else sums
    return from_values(
        bounds, genes, shown, source_depth, target_depth, vocab, cell_index, library_size
    )


def from_values(
    indptr: Int[np.ndarray, " bound"],
    genes: Int[np.ndarray, " expressed"],
    values: Float[np.ndarray, " expressed"],
    source_depth: Float[np.ndarray, " cell"],
    target_depth: Float[np.ndarray, " cell"],
    vocab: GeneVocab,
    cell_index: Int[np.ndarray, " cell"],
    library_size: Float[np.ndarray, " cell"] | None = None,
) -> CellBatch:
    """Cells of these values and depths, whatever they are: no value means anything but itself.

    ``genes`` are positions among the vocabulary's genes, ascending within a cell, and ``values``
    above 0. Where no counts are known, ``library_size`` is the sum of the values.
    """
    n_cells, n_expressed = len(indptr) - 1, np.diff(indptr)
    is_first_or_up = np.diff(genes, prepend=-1) > 0
    is_first_or_up[indptr[:-1][n_expressed > 0]] = True
    assert is_first_or_up.all(), "genes ascend within a cell"
    assert (values > 0).all(), "a gene without a value has no token"
    offsets = (indptr + 2 * np.arange(n_cells + 1)).astype(np.int32)
    at_depths, n_tokens = offsets[:-1], int(offsets[-1])
    is_gene = np.ones(n_tokens, dtype=bool)
    is_gene[at_depths] = is_gene[at_depths + 1] = False
    gene_ids, shown = np.empty(n_tokens, np.int64), np.empty(n_tokens, np.float32)
    gene_ids[is_gene], shown[is_gene] = vocab.gene_start + genes, values
    gene_ids[at_depths], shown[at_depths] = vocab.target_depth_id, target_depth
    gene_ids[at_depths + 1], shown[at_depths + 1] = vocab.source_depth_id, source_depth
    return CellBatch(
        gene_ids=gene_ids,
        values=shown,
        offsets=offsets,
        is_target=np.zeros(n_tokens, dtype=bool),
        target_values=np.zeros(n_tokens, dtype=np.float32),
        library_size=np.asarray(
            _row_sums(indptr, values) if library_size is None else library_size, np.float32
        ),
        source_depth=source_depth.astype(np.float32),
        target_depth=target_depth.astype(np.float32),
        cell_index=np.asarray(cell_index, dtype=np.int64),
    )


def median_total(blocks: Iterable[RawRows], column_to_gene: Int[np.ndarray, " column"]) -> float:
    """Median over cells of their counts on the vocabulary's genes; cells without any left out.

    The target of scanpy.pp.normalize_total() by default, which the original's bulk recipe leaves
    at that.
    """
    is_used = column_to_gene >= 0
    parts = [
        _row_sums(block.indptr, np.where(is_used[block.indices], block.values, 0))
        for block in blocks
    ]
    totals = np.concatenate(parts)
    if not (totals > 0).any():
        _refuse_empty(np.arange(len(totals)))
    return float(np.median(totals[totals > 0]))


def _check(values: np.ndarray, how: Recipe) -> None:
    """Refuse what is neither counts nor log-normalised, or the other of the two."""
    n_wrong = int((~(values >= 0) | ~np.isfinite(values)).sum())
    if n_wrong:
        raise CountsError(
            f"{n_wrong:,} of {len(values):,} values are negative or no number. Wanted "
            f"{'counts' if how.from_counts else 'log1p of normalised counts'}, not scaled ones."
        )
    if not how.from_counts and values.max(initial=0) > LARGEST_LOG:
        raise CountsError(
            f"The largest value is {values.max():,.6g}; this recipe wants log1p of normalised "
            "counts. For raw counts of bulk samples take recipe='bulk'; for those of single cells "
            "scfm.tl.embed."
        )


def _by_gene(
    indptr: np.ndarray, indices: np.ndarray, amounts: np.ndarray, column_to_gene: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indptr, genes, amounts), genes ascending in each cell, columns of one gene summed."""
    n_cells, genes = len(indptr) - 1, column_to_gene[indices].astype(np.int64)
    cell = np.repeat(np.arange(n_cells), np.diff(indptr))
    is_used = (genes >= 0) & (amounts > 0)
    width = int(column_to_gene.max(initial=0)) + 1
    keys, which = np.unique((cell * width + genes)[is_used], return_inverse=True)
    summed = np.bincount(which, weights=amounts[is_used], minlength=len(keys))
    n_expressed = np.bincount(keys // width, minlength=n_cells)
    return np.concatenate([[0], np.cumsum(n_expressed)]), keys % width, summed


def _row_sums(indptr: np.ndarray, values: np.ndarray) -> Float[np.ndarray, " cell"]:
    cell = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.bincount(cell, weights=values, minlength=len(indptr) - 1)


def _refuse_empty(rows: np.ndarray) -> None:
    """How many is not said: these may be a few of the cells."""
    if len(rows):
        raise EmptyCellError(
            f"There are cells with nothing on the genes the model knows (first rows: "
            f"{', '.join(map(str, rows[:3]))}). Leave them out."
        )
