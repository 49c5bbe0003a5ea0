"""What a denoising model must beat: methods that see many cells' thinned counts, no more.

in   thinned counts (CSR, cells by genes), which cells and genes are judged
out  log1p of counts per 10,000 of the judged cells and genes, by each method

A cell's total is over all of the model's genes that the data measures, judged or not.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from scfm.evaluate.log_counts import SCALE, log1p_cp10k

N_COMPONENTS = 30
N_NEIGHBOURS = 30  # itself included
N_CLUSTERS = 10


@dataclass(frozen=True)
class ThinnedCells:
    """What every baseline is given.

    Attributes
    ----------
    counts
        Thinned counts; no row is empty.
    judged, genes
        Rows and columns to predict.
    labels
        Code of each cell's type, -1 for none; None: clusters of the thinned cells stand in.
    """

    counts: sp.csr_matrix
    judged: Int[np.ndarray, " judged"]
    genes: Int[np.ndarray, " gene"]
    labels: Int[np.ndarray, " cell"] | None
    seed: int

    @cached_property
    def total(self) -> Float[np.ndarray, " cell"]:
        return np.asarray(self.counts.sum(1), dtype=np.float64).ravel()

    @cached_property
    def cp10k(self) -> sp.csr_matrix:
        """Counts per 10,000."""
        scaled = sp.csr_matrix(self.counts, dtype=np.float64, copy=True)
        scaled.data *= np.repeat(SCALE / self.total, np.diff(scaled.indptr))
        return scaled

    @cached_property
    def coordinates(self) -> Float[np.ndarray, "cell pc"]:
        """Principal components of the thinned log1p(cp10k), all genes, centred, not scaled."""
        n_genes = sp.csr_matrix.get_shape(self.counts)[1]
        n = min(N_COMPONENTS, min(len(self.total), n_genes) - 1)
        pca = PCA(n, svd_solver="arpack", random_state=self.seed)
        return pca.fit_transform(log1p_cp10k(self.counts, np.arange(n_genes)))


def no_op(cells: ThinnedCells) -> Float[np.ndarray, "judged gene"]:
    """The thinned profile itself."""
    return log1p_cp10k(cells.counts[cells.judged], cells.genes).toarray()


def neighbour_mean(cells: ThinnedCells) -> Float[np.ndarray, "judged gene"]:
    """Mean cp10k of the 30 nearest cells, itself included, by Euclid on 30 components; then log1p.

    MAGIC's idea with one step and equal weights. Source: van Dijk et al. 2018,
    doi:10.1016/j.cell.2018.05.061.
    """
    k = min(N_NEIGHBOURS, len(cells.total))
    finder = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(cells.coordinates)
    near = finder.kneighbors(cells.coordinates[cells.judged], return_distance=False)
    weights = sp.csr_matrix(
        (np.full(near.size, 1 / k), near.ravel(), np.arange(0, near.size + 1, k)),
        shape=(len(near), len(cells.total)),
    )
    return np.log1p((weights @ cells.cp10k[:, cells.genes]).toarray())


def type_mean(cells: ThinnedCells) -> Float[np.ndarray, "judged gene"]:
    """The pooled thinned profile of the cell's type, or of its k-means cluster (10, same PCA).

    Counts of all the type's cells over all their counts, times 10,000, then log1p. Cells without a
    label are a type of their own.
    """
    codes = _clusters(cells) if cells.labels is None else cells.labels
    _, types = np.unique(codes, return_inverse=True)
    members = sp.csr_matrix((np.ones(len(types)), (types, np.arange(len(types)))))
    pooled = (members @ cells.counts[:, cells.genes]).toarray() / (members @ cells.total)[:, None]
    return np.log1p(SCALE * pooled)[types[cells.judged]]


def _clusters(cells: ThinnedCells) -> Int[np.ndarray, " cell"]:
    n = min(N_CLUSTERS, len(cells.total))
    with warnings.catch_warnings():
        # thinned cells may be equal, and then there are fewer clusters, as there should be
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(n, n_init=5, random_state=cells.seed)  # pyright: ignore[reportArgumentType]
        return means.fit_predict(cells.coordinates)


BASELINES: dict[str, Callable[[ThinnedCells], Float[np.ndarray, "judged gene"]]] = {
    "no_op": no_op,
    "neighbours": neighbour_mean,
    "type_mean": type_mean,
}


def run_baselines(cells: ThinnedCells) -> dict[str, Float[np.ndarray, "judged gene"]]:
    """Predictions of all baselines."""
    with threadpool_limits(
        1
    ):  # as in scfm.evaluate.celltype_protocol: threads only wait at these sizes
        return {key: method(cells) for key, method in BASELINES.items()}
