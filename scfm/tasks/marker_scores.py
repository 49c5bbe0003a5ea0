"""Counts -> how far each cell expresses the markers of each type. NumPy and SciPy; no model.

in   CSR rows of raw counts; which columns are which types' markers
out  scores in [0, 1], and TypeProbabilities

The score is UCell's: the genes of a cell are ranked by count, and the Mann-Whitney U of a type's
markers among the first 1,500 is scaled to [0, 1]. It hangs on the cell's own ranks alone, so not
on depth by a factor, nor on which other cells there are, as scanpy's score_genes does; hence any
number of cells at a time. Source: Andreatta & Carmona 2021, doi:10.1016/j.csbj.2021.06.043.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.stats import rankdata

from scfm.data.counts import CountRows
from scfm.tasks.type_probabilities import TypeProbabilities

MAX_RANK = 1500  # UCell's: further down, ranks are of genes seen once
# Scores are divided by it before they are made probabilities. A guess, which calibration mends
# where there are labelled cells to calibrate on.
SHARPNESS = 0.1


@dataclass(frozen=True)
class MarkerScorer:
    """Scores of some types over the columns of one data set.

    Attributes
    ----------
    classes
        Names of the types, sorted.
    gene_of_column
        Which gene each column counts; columns of one gene are summed.
    positive, negative
        Genes by type: 1 where a gene speaks for it, or against it.
    """

    classes: tuple[str, ...]
    gene_of_column: Int[np.ndarray, " column"] = field(repr=False)
    positive: Float[np.ndarray, "gene type"] = field(repr=False)
    negative: Float[np.ndarray, "gene type"] = field(repr=False)

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        gene_of_column: Int[np.ndarray, " column"],
        positive: Sequence[Sequence[int]],
        negative: Sequence[Sequence[int]],
    ) -> "MarkerScorer":
        """From the numbers of each type's genes."""
        n_genes = int(gene_of_column.max(initial=-1)) + 1
        tables = []
        for side in (positive, negative):
            table = np.zeros((n_genes, len(classes)))
            for at, genes in enumerate(side):
                table[list(genes), at] = 1.0
            tables.append(table)
        return cls(tuple(classes), gene_of_column, tables[0], tables[1])

    @property
    def max_rank(self) -> int:
        return min(MAX_RANK, len(self.positive))

    def scores(self, rows: CountRows) -> Float[np.ndarray, "cell type"]:
        """What speaks for each type less what speaks against it, at least 0."""
        reward = self._rewards(rows)
        for_ = u_scores(reward @ self.positive, self.positive.sum(0), self.max_rank)
        against = u_scores(reward @ self.negative, self.negative.sum(0), self.max_rank)
        return np.maximum(for_ - against, 0.0)

    def probabilities(self, scores: Float[np.ndarray, "cell type"]) -> TypeProbabilities:
        """Softmax of the scores. A cell that scores 0 everywhere has no probabilities."""
        is_nothing = scores.max(1) == 0
        weight = np.exp((scores - scores.max(1, keepdims=True)) / SHARPNESS)
        shares = weight / weight.sum(1, keepdims=True)
        return TypeProbabilities(
            classes=self.classes,
            probabilities=np.where(is_nothing[:, None], 0.0, shares),
            is_outlier=is_nothing,
            novelty=1.0 - scores.max(1),
        )

    def _rewards(self, rows: CountRows) -> sp.csr_matrix:
        """How far above ``max_rank + 1`` each expressed gene ranks in its cell, cells by genes."""
        shape = (len(self.gene_of_column), len(self.positive))
        column = np.arange(shape[0])
        summed = sp.csr_matrix((np.ones(shape[0]), (column, self.gene_of_column)), shape)
        counts = sp.csr_matrix((rows.counts, rows.indices, rows.indptr), (rows.n_cells, shape[0]))
        ranked = sp.csr_matrix(counts.astype(np.float64) @ summed)
        values = np.asarray(ranked.data, dtype=np.float64)
        for first, last in zip(ranked.indptr[:-1], ranked.indptr[1:], strict=True):
            rank = np.asarray(rankdata(-values[first:last], method="average"), dtype=np.float64)
            values[first:last] = np.maximum(self.max_rank + 1 - rank, 0.0)
        return sp.csr_matrix((values, ranked.indices, ranked.indptr), ranked.shape)


def u_scores(
    reward: Float[np.ndarray, "cell type"], n_genes: Float[np.ndarray, " type"], max_rank: int
) -> Float[np.ndarray, "cell type"]:
    """1 - U / (n max_rank) of sets of n genes whose ranks lie ``reward`` above max_rank + 1.

    0 where none of the genes is among the first ``max_rank``, and for a set of none.
    """
    n = np.maximum(n_genes, 1.0)
    u = n * (max_rank + 1) - reward - n * (n + 1) / 2
    return np.where(reward > 0, 1.0 - u / (n * max_rank), 0.0)
