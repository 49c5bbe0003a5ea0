"""What a model must beat: the usual linear methods, on the same cells, from raw counts to labels.

in   raw counts (CSR) of a labelled reference and of a query, and their gene names
out  one Prediction a baseline: labels for the query's cells

All see log1p of counts per 10,000 on the genes both sets name. A cell's total is taken over all its
genes, shared or not. Nothing is fitted on the query and nothing of full size is made dense.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Shaped
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from scfm.errors import GeneCoverageError, LabelError
from scfm.evaluate.celltype import Prediction

N_COMPONENTS = 50
N_NEIGHBOURS = 15
N_VARIABLE_GENES = 2_000
SCALE = 1e4
MAX_ITERATIONS = 2_000


@dataclass(frozen=True)
class CountTable:
    """Raw counts in CSR, cells by genes, and the genes' names in the terms both sets share."""

    counts: sp.csr_matrix
    genes: Sequence[str]

    @property
    def n_cells(self) -> int:
        return len(self.counts.indptr) - 1


@dataclass(frozen=True)
class TransferData:
    """Both sets in log1p(1e4) on their shared genes, and what the reference's cells are called."""

    reference: sp.csr_matrix
    query: sp.csr_matrix
    labels: Shaped[np.ndarray, " reference"]
    seed: int

    @property
    def n_query(self) -> int:
        return len(self.query.indptr) - 1

    @property
    def n_components(self) -> int:
        n_cells = len(self.reference.indptr) - 1
        return min(N_COMPONENTS, min(n_cells, _n_genes(self.reference)) - 1)

    @cached_property
    def principal(self) -> tuple[Float[np.ndarray, "reference pc"], Float[np.ndarray, "cell pc"]]:
        """Reference and query on the reference's principal components."""
        # ARPACK takes a sparse matrix as it is: the mean is subtracted inside the products
        pca = PCA(self.n_components, svd_solver="arpack", random_state=self.seed)
        return pca.fit_transform(self.reference), pca.transform(self.query)


def baseline_predictions(
    reference: CountTable,
    labels: Shaped[np.ndarray, " reference"],
    query: CountTable,
    *,
    seed: int = 0,
    keys: Sequence[str] | None = None,
) -> dict[str, Prediction]:
    """Run the baselines (all of ``BASELINES``, or those named in ``keys``).

    With the bundled cells (3,874 sorted PBMC as reference, 2,592 of PBMC3k as query, 16,782 shared
    symbols, five labels) they reach, macro-F1 / accuracy: majority .125/.455; pca_knn .765/.679;
    pca_centred_knn .841/.817; pca_logistic .834/.848; hvg_logistic .859/.838.
    Raises GeneCoverageError where no gene is shared, LabelError where a cell has no label.
    """
    names = np.asarray(labels, dtype=object)
    if len(names) != reference.n_cells or any(not isinstance(n, str) for n in names):
        raise LabelError(
            f"the baselines need a text label for each of {reference.n_cells:,} reference "
            f"cells, got {sum(isinstance(n, str) for n in names):,} in {len(names):,}. "
            "Leave out the cells without a label first."
        )
    ours, theirs = shared_genes(reference.genes, query.genes)
    data = TransferData(
        reference=log1p_cp10k(reference.counts, ours),
        query=log1p_cp10k(query.counts, theirs),
        labels=names.astype(str),
        seed=seed,
    )
    chosen = list(BASELINES) if keys is None else list(keys)
    # At these sizes threads wait for each other: one is several times cheaper and no slower.
    with threadpool_limits(1):
        return {key: BASELINES[key](data) for key in chosen}


def shared_genes(
    reference: Sequence[str], query: Sequence[str]
) -> tuple[Int[np.ndarray, " gene"], Int[np.ndarray, " gene"]]:
    """Columns of the genes both sets name, in the reference's order; the first of equal names."""
    first = {gene: at for at, gene in reversed(list(enumerate(query)))}
    seen: dict[str, int] = {}
    for at, gene in enumerate(reference):
        if gene in first:
            seen.setdefault(gene, at)
    if not seen:
        raise GeneCoverageError(
            f"no gene is named in both sets: the reference has {', '.join(list(reference)[:3])}, "
            f"the query {', '.join(list(query)[:3])}. Give both sets symbols, or both Ensembl ids."
        )
    return np.array(list(seen.values())), np.array([first[gene] for gene in seen])


def log1p_cp10k(counts: sp.csr_matrix, columns: Int[np.ndarray, " gene"]) -> sp.csr_matrix:
    """log1p of counts per 10,000, in nats, on ``columns``; a cell's total is over all its genes."""
    shared = sp.csr_matrix(counts)[:, columns].astype(np.float64)
    total = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    scale = SCALE / np.maximum(total, 1.0)
    shared.data = np.log1p(shared.data * np.repeat(scale, np.diff(shared.indptr)))
    return shared


def majority(data: TransferData) -> Prediction:
    """The reference's most frequent label, for every cell."""
    classes, n_cells = np.unique(data.labels, return_counts=True)
    most = classes[n_cells.argmax()]
    predicted = np.full(data.n_query, most, dtype=object)
    return Prediction("Majority class", "baseline", predicted, f"always {most}")


def pca_knn(data: TransferData) -> Prediction:
    """50 uncentred components (truncated SVD) and the vote of 15 neighbours by cosine.

    Uncentred, the first component is the mean cell, which blunts the cosine: centring is worth
    seven points here (``pca_centred_knn``). Kept because scikit-learn's usual answer to a sparse
    matrix does this, and it is often quoted. The components are exact (ARPACK) and so do not hang
    on a seed; scikit-learn's randomised ones move macro-F1 by up to a point.
    """
    svd = TruncatedSVD(data.n_components, algorithm="arpack", random_state=data.seed)
    coordinates = svd.fit_transform(data.reference), svd.transform(data.query)
    predicted = _neighbour_vote(*coordinates, data.labels)
    note = "components fitted on the reference, not centred; cosine"
    return Prediction("PCA-50 (uncentred) + 15 neighbours", "baseline", predicted, note)


def pca_centred_knn(data: TransferData) -> Prediction:
    """50 principal components of the reference and the vote of 15 neighbours by cosine."""
    predicted = _neighbour_vote(*data.principal, data.labels)
    note = "components fitted on the reference; cosine"
    return Prediction("PCA-50 + 15 neighbours", "baseline", predicted, note)


def pca_logistic(data: TransferData) -> Prediction:
    """50 principal components of the reference, not scaled, and balanced logistic regression."""
    predicted = _logistic(*data.principal, data.labels, 1.0)
    note = "components fitted on the reference; classes weighted equally, C = 1"
    return Prediction("PCA-50 + logistic regression", "baseline", predicted, note)


def hvg_logistic(data: TransferData) -> Prediction:
    """Balanced logistic regression on the reference's 2,000 most variable genes, not scaled.

    C = 0.01: with two thousand genes and C = 1 it learns the reference's study (macro-F1 .816).
    """
    columns = variable_genes(data.reference, N_VARIABLE_GENES)
    predicted = _logistic(data.reference[:, columns], data.query[:, columns], data.labels, 0.01)
    note = "genes chosen on the reference; classes weighted equally, C = 0.01"
    return Prediction("Logistic regression, 2,000 genes", "baseline", predicted, note)


BASELINES: dict[str, Callable[[TransferData], Prediction]] = {
    "majority": majority,
    "pca_knn": pca_knn,
    "pca_centred_knn": pca_centred_knn,
    "pca_logistic": pca_logistic,
    "hvg_logistic": hvg_logistic,
}


def variable_genes(log_counts: sp.csr_matrix, n_genes: int) -> Int[np.ndarray, " gene"]:
    """Columns of the most variable genes by scanpy's "seurat" flavour, ascending.

    Dispersion of the unlogged values, standardised within 20 bins of mean expression.
    Source: Satija et al. 2015, doi:10.1038/nbt.3192.
    """
    # imported here: loading scanpy takes seconds, which only this baseline should cost
    import anndata as ad
    import scanpy as sc

    table = ad.AnnData(log_counts.astype(np.float32))
    sc.pp.highly_variable_genes(
        table, n_top_genes=min(n_genes, _n_genes(log_counts)), flavor="seurat"
    )
    return np.flatnonzero(table.var["highly_variable"].to_numpy())


def _n_genes(counts: sp.csr_matrix) -> int:
    _, n_genes = sp.csr_matrix.get_shape(counts)
    return n_genes


def _neighbour_vote(
    reference: Float[np.ndarray, "reference pc"],
    query: Float[np.ndarray, "cell pc"],
    labels: Shaped[np.ndarray, " reference"],
) -> Shaped[np.ndarray, " cell"]:
    k = min(N_NEIGHBOURS, len(reference))
    voters = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    return voters.fit(reference, labels).predict(query)


def _logistic(
    reference: Float[np.ndarray, "reference feature"] | sp.csr_matrix,
    query: Float[np.ndarray, "cell feature"] | sp.csr_matrix,
    labels: Shaped[np.ndarray, " reference"],
    inverse_penalty: float,
) -> Shaped[np.ndarray, " cell"]:
    model = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=MAX_ITERATIONS)
    return model.fit(reference, labels).predict(query)
