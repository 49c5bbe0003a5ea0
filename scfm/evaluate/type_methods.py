"""What every way of typing cells looks like to an evaluation.

in   labelled cells to learn from, cells to judge: log1p(1e4) in CSR on the same genes
out  TypeProbabilities of the judged cells

A Method learns from some cells and answers for others; nothing is fitted on what is judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Shaped
from sklearn.decomposition import PCA

from scfm.evaluate.log_counts import variable_genes
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.type_probabilities import TypeProbabilities

Features = Float[np.ndarray, "cell feature"] | sp.csr_matrix
N_COMPONENTS = 50
N_VARIABLE_GENES = 2_000


@dataclass(frozen=True)
class Embedded:
    """A model's vectors of some cells, and the log10 of the depth each was seen at."""

    vectors: Float[np.ndarray, "cell d"] = field(repr=False)
    depth: Float[np.ndarray, " cell"] = field(repr=False)

    def part(self, rows: Int[np.ndarray, " some"]) -> "Embedded":
        return Embedded(self.vectors[rows], self.depth[rows])


@dataclass(frozen=True)
class Cells:
    """Some cells as methods see them.

    Attributes
    ----------
    log_counts
        log1p of counts per 10,000 over all the file's genes, on the genes shared.
    embedded
        What models made of the cells, by the method's key.
    given
        Answers that hang on no reference (a fine-tuned head, words), by the method's key.
    rows
        Rows of the evaluation's table, for a method that reads the cells themselves.
    """

    log_counts: sp.csr_matrix = field(repr=False)
    embedded: Mapping[str, Embedded] = field(default_factory=dict, repr=False)
    given: Mapping[str, TypeProbabilities] = field(default_factory=dict, repr=False)
    rows: Int[np.ndarray, " cell"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.log_counts.indptr) - 1

    def part(self, rows: Int[np.ndarray, " some"]) -> "Cells":
        return Cells(
            self.log_counts[rows],
            {key: found.part(rows) for key, found in self.embedded.items()},
            {key: found.part(rows) for key, found in self.given.items()},
            None if self.rows is None else self.rows[rows],
        )


@dataclass(frozen=True)
class Reference:
    """Cells to learn from, with their labels; what several methods fit alike is fitted once."""

    cells: Cells
    labels: Shaped[np.ndarray, " cell"] = field(repr=False)
    seed: int = 0

    def part(self, rows: Int[np.ndarray, " some"]) -> "Reference":
        return Reference(self.cells.part(rows), self.labels[rows], self.seed)

    @cached_property
    def principal(self) -> PCA:
        """Principal components of all genes."""
        return components(self.cells.log_counts)

    @cached_property
    def variable(self) -> Int[np.ndarray, " gene"]:
        """Columns of the most variable genes."""
        return variable_genes(self.cells.log_counts, N_VARIABLE_GENES)


@runtime_checkable
class Fitted(Protocol):
    """A method that has learned."""

    def predict(self, cells: Cells) -> TypeProbabilities: ...


@runtime_checkable
class Method(Protocol):
    """A way of typing cells; ``key`` names it in files, ``name`` in a table."""

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Literal["model", "untrained", "baseline"]: ...

    @property
    def note(self) -> str: ...

    @property
    def own_calibration(self) -> ProbabilityCalibration | None:
        """Of a method that learned elsewhere and answers calibrated; None: it learns here."""
        ...

    def fit(self, reference: Reference) -> Fitted: ...


def components(counts: sp.csr_matrix) -> PCA:
    """The first 50 principal components, exact and the same in every run."""
    # ARPACK takes a sparse matrix as it is: the mean is subtracted inside the products
    return PCA(n_components(counts), svd_solver="arpack", random_state=0).fit(counts)


def n_components(counts: sp.csr_matrix) -> int:
    """50, or as many as the matrix has."""
    n_cells, n_genes = sp.csr_matrix.get_shape(counts)
    return min(N_COMPONENTS, min(n_cells, n_genes) - 1)
