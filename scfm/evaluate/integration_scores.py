"""How well an embedding keeps cell types apart and batches together: the scores of scIB.

in   embeddings, cell types and batches of the same cells
out  one number a score, each in [0, 1], 1 the best; their means

Definitions are scIB's (Luecken et al. 2022, doi:10.1038/s41592-021-01336-8), computed with
scikit-learn and igraph; kBET, principal component regression and isolated labels are not among
them, so totals are not those of a scIB table.
"""

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Num, Shaped
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples
from sklearn.neighbors import NearestNeighbors

N_NEIGHBOURS = 15  # of the graph that is clustered and whose connectivity is measured
LISI_NEIGHBOURS = 90
PERPLEXITY = LISI_NEIGHBOURS / 3
RESOLUTIONS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
BISECTIONS = 60

BIOLOGICAL = ("silhouette_label", "clisi", "nmi", "ari")
BATCH = ("silhouette_batch", "ilisi", "graph_connectivity")
BIO_WEIGHT = 0.6  # of the total, as in scIB; the rest is the batch scores'
HEADINGS = {
    "total": "Total",
    "biological": "Types kept",
    "batch": "Batches mixed",
    "silhouette_label": "Silhouette, type",
    "clisi": "cLISI",
    "nmi": "NMI",
    "ari": "ARI",
    "silhouette_batch": "Silhouette, batch",
    "ilisi": "iLISI",
    "graph_connectivity": "Connectivity",
}

Codes = Int[np.ndarray, " cell"]


def integration_scores(
    embedding: Num[np.ndarray, "cell d"],
    labels: Shaped[np.ndarray, " cell"],
    batches: Shaped[np.ndarray, " cell"],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Every score of ``BIOLOGICAL`` and ``BATCH``, their means, and the total.

    Labels and batches have at least two values each. NMI and ARI are of Leiden clusters at the
    resolution of highest NMI, for every embedding alike.
    """
    x = np.asarray(embedding, dtype=np.float64)
    label, batch = (np.unique(v.astype(str), return_inverse=True)[1] for v in (labels, batches))
    k = min(LISI_NEIGHBOURS, len(x) - 1)
    distance, neighbour = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    graph = knn_graph(neighbour[:, :N_NEIGHBOURS])
    nmi, ari = cluster_agreement(graph, label, seed)
    found = {
        "silhouette_label": (1 + float(silhouettes(x, label).mean())) / 2,
        "clisi": scaled_clisi(lisi(distance, neighbour, label), label),
        "nmi": nmi,
        "ari": max(ari, 0.0),
        "silhouette_batch": silhouette_batch(x, label, batch),
        "ilisi": scaled_ilisi(lisi(distance, neighbour, batch), batch),
        "graph_connectivity": graph_connectivity(graph, label),
    }
    return found | summary(found)


def summary(found: Mapping[str, float]) -> dict[str, float]:
    """Means of the two groups of scores, and 0.6 of the first plus 0.4 of the second."""
    biological = float(np.mean([found[name] for name in BIOLOGICAL]))
    batch = float(np.mean([found[name] for name in BATCH]))
    total = BIO_WEIGHT * biological + (1 - BIO_WEIGHT) * batch
    return {"biological": biological, "batch": batch, "total": total}


def lisi(
    distance: Float[np.ndarray, "cell k"], neighbour: Int[np.ndarray, "cell k"], codes: Codes
) -> Float[np.ndarray, " cell"]:
    """How many categories a cell's neighbourhood holds in effect: inverse Simpson index, 1 to n.

    Neighbours weigh exp(-beta d), beta such that their entropy is log of the perplexity, 30 of 90.
    Source: Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0. Oracle: harmonypy.compute_lisi.
    """
    weight = _weights(distance, min(PERPLEXITY, distance.shape[1] / 3))
    found = np.zeros(len(distance))
    for code in range(int(codes.max()) + 1):
        found += (weight * (codes[neighbour] == code)).sum(1) ** 2
    return 1 / found


def _weights(distance: Float[np.ndarray, "cell k"], perplexity: float) -> np.ndarray:
    """Shares of exp(-beta d) with the entropy log(perplexity), by bisection on log beta."""
    gap = distance - distance[:, :1]
    typical = np.maximum(gap.mean(1, keepdims=True), 1e-12)
    low, high = np.full((len(gap), 1), -30.0), np.full((len(gap), 1), 30.0)
    share = np.full_like(gap, 1 / gap.shape[1])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        weight = np.exp(-np.exp(middle) * gap / typical)
        share = weight / weight.sum(1, keepdims=True)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(1, keepdims=True)
        is_flat = entropy > np.log(perplexity)
        low, high = np.where(is_flat, middle, low), np.where(is_flat, high, middle)
    return share


def scaled_clisi(found: Float[np.ndarray, " cell"], codes: Codes) -> float:
    """1 where neighbourhoods hold one type, 0 where they hold all."""
    n = len(np.unique(codes))
    return float((n - np.median(found)) / (n - 1))


def scaled_ilisi(found: Float[np.ndarray, " cell"], codes: Codes) -> float:
    """1 where neighbourhoods hold all batches alike, 0 where they hold one."""
    return float((np.median(found) - 1) / (len(np.unique(codes)) - 1))


def silhouette_batch(x: Float[np.ndarray, "cell d"], label: Codes, batch: Codes) -> float:
    """1 - |silhouette of the batches| within each type, its mean over types.

    Types of one batch say nothing and are left out; NaN where none is left.
    """
    means = []
    for code in np.unique(label):
        here = label == code
        n_batches = len(np.unique(batch[here]))
        if 1 < n_batches < here.sum():
            means.append(float((1 - np.abs(silhouettes(x[here], batch[here]))).mean()))
    return float(np.mean(means)) if means else float("nan")


def silhouettes(x: Float[np.ndarray, "cell d"], codes: Codes) -> Float[np.ndarray, " cell"]:
    """scikit-learn's, by Euclidean distance."""
    return np.asarray(silhouette_samples(x, codes), dtype=np.float64)


def graph_connectivity(graph: sp.csr_matrix, label: Codes) -> float:
    """Share of a type's cells that are in its largest connected piece, its mean over types."""
    shares = []
    for code in np.unique(label):
        rows = np.flatnonzero(label == code)
        _, piece = connected_components(graph[rows][:, rows], directed=False)
        shares.append(np.bincount(piece).max() / len(rows))
    return float(np.mean(shares))


def knn_graph(neighbour: Int[np.ndarray, "cell k"]) -> sp.csr_matrix:
    """An edge from each cell to each of its neighbours."""
    n_cells, k = neighbour.shape
    rows = np.repeat(np.arange(n_cells), k)
    return sp.csr_matrix((np.ones(n_cells * k), (rows, neighbour.ravel())), (n_cells, n_cells))


def cluster_agreement(graph: sp.csr_matrix, label: Codes, seed: int) -> tuple[float, float]:
    """NMI and ARI of Leiden clusters with the types, at the resolution of highest NMI."""
    # imported here: loading scanpy takes seconds; it needs igraph, of the extra "integration"
    import anndata as ad
    import scanpy as sc

    table = ad.AnnData(sp.csr_matrix((len(label), 0)))
    best = (-1.0, 0.0)
    for resolution in RESOLUTIONS:
        sc.tl.leiden(
            table,
            resolution=resolution,
            random_state=seed,
            adjacency=graph.maximum(graph.T).tocsr(),
            directed=False,
            flavor="igraph",
            n_iterations=2,
        )
        clusters = table.obs["leiden"].cat.codes.to_numpy()
        nmi = float(normalized_mutual_info_score(label, clusters))
        best = max(best, (nmi, float(adjusted_rand_score(label, clusters))))
    return best
