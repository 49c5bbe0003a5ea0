"""Do clusters of cells by TF activity agree with their types, and better than those by peaks alone?

in   representations of the same cells, types
out  ARI and NMI of clusters with the types, as many clusters for every representation as types

Clusters are k-means (of at most 20 principal components), several starts of the seed, and Leiden's
of the neighbour graph; never of a picture such as t-SNE, which flatters.
"""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num, Shaped

from scfm.errors import LabelError
from scfm.evaluate.integration_scores import N_NEIGHBOURS, cluster_agreement, knn_graph
from scfm.evaluate.results import Interval
from scfm.evaluate.tfbinding_result import CellScores

N_COMPONENTS = 20
N_RUNS = 10


def cell_scores(
    representations: Mapping[str, tuple[str, str, Num[np.ndarray, "cell _"]]],
    types: Shaped[np.ndarray, " cell"],
    *,
    seed: int = 0,
    n_runs: int = N_RUNS,
) -> list[CellScores]:
    """Scores of each representation (name, note, values by key); intervals span the runs.

    Cells without a type ("") are left out. Raises LabelError for fewer than two types.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    kept = np.asarray(types).astype(str) != ""
    labels = np.asarray(types).astype(str)[kept]
    k = len(set(labels))
    if k < 2:
        raise LabelError(
            f"The cells have {k} type(s); wanted at least two to compare clusters with. Name "
            "another column with --label."
        )
    found = []
    for key, (name, note, values) in representations.items():
        x = _reduced(np.asarray(values, dtype=np.float64)[kept], seed)
        with warnings.catch_warnings():
            # fewer distinct cells than types: fewer clusters, which the scores tell by themselves
            warnings.simplefilter("ignore", ConvergenceWarning)
            runs = [
                KMeans(n_clusters=k, n_init="auto", random_state=seed + run).fit_predict(x)
                for run in range(n_runs)
            ]
        ari = [float(adjusted_rand_score(labels, clusters)) for clusters in runs]
        nmi = [float(normalized_mutual_info_score(labels, clusters)) for clusters in runs]
        leiden = _leiden(x, labels, seed)
        found.append(CellScores(key, name, note, _over_runs(ari), _over_runs(nmi), leiden))
    return found


def unit_rows(values: Float[np.ndarray, "cell d"]) -> Float[np.ndarray, "cell d"]:
    """Rows of length 1, so that distances go by the angle."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _leiden(
    x: Float[np.ndarray, "cell d"], labels: Shaped[np.ndarray, " cell"], seed: int
) -> tuple[float, float] | None:
    """ARI and NMI of Leiden clusters of the neighbour graph."""
    from sklearn.neighbors import NearestNeighbors

    if importlib.util.find_spec("igraph") is None:
        return None
    k = min(N_NEIGHBOURS, len(x) - 1)
    neighbour = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    codes = np.unique(labels, return_inverse=True)[1]
    nmi, ari = cluster_agreement(knn_graph(neighbour), codes, seed)
    return ari, nmi


def standardised(values: Float[np.ndarray, "cell d"]) -> Float[np.ndarray, "cell d"]:
    """Columns of mean 0 and standard deviation 1, for what has units of its own in each.

    0 where a value is not finite, and in constant columns.
    """
    x = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    spread = np.nanstd(x, axis=0)
    scaled = (x - np.nanmean(x, axis=0)) / np.where(spread > 1e-12, spread, np.inf)
    return np.nan_to_num(scaled)


def _reduced(x: Float[np.ndarray, "cell d"], seed: int) -> Float[np.ndarray, "cell reduced"]:
    """The principal components of many columns."""
    from sklearn.decomposition import PCA

    if x.shape[1] <= N_COMPONENTS:
        return x
    return PCA(min(N_COMPONENTS, *x.shape), random_state=seed).fit_transform(x)


def _over_runs(values: Sequence[float]) -> Interval:
    return Interval(float(np.mean(values)), float(np.min(values)), float(np.max(values)))
