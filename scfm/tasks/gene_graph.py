"""One vector a gene -> modules: a graph of nearest neighbours by cosine, and Leiden on it.

in   (n_genes, d), centred however suits them
out  module of each gene, 0 the largest

Source: Traag, Waltman & van Eck 2019, doi:10.1038/s41598-019-41695-z, by igraph through scanpy.
"""

import importlib.util

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from sklearn.neighbors import NearestNeighbors

from scfm.errors import ConfigError


def neighbour_graph(vectors: Float[np.ndarray, "gene d"], n_neighbours: int) -> sp.csr_matrix:
    """Symmetric graph of cosine similarities; an edge where either gene is the other's neighbour.

    Exact. Opposite genes (similarity below 0) have no edge, nor has a gene whose vector is zero.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 1e-12, length, np.inf)
    k = min(n_neighbours, len(unit) - 1)
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(unit)
    graph = search.kneighbors_graph(mode="distance")  # without an argument: not itself
    graph.data = np.maximum(1 - graph.data, 0)
    graph = graph.maximum(graph.T).tocsr()
    graph.eliminate_zeros()
    return graph


def leiden_modules(
    vectors: Float[np.ndarray, "gene d"], *, n_neighbours: int, resolution: float, seed: int
) -> Int[np.ndarray, " gene"]:
    """Module of each gene, numbered by size. Raises ConfigError where igraph is missing."""
    if importlib.util.find_spec("igraph") is None:
        raise ConfigError(
            "Leiden needs igraph, which is not installed: pip install 'scfm[modules]'."
        )
    if n_neighbours < 1 or not resolution > 0:
        raise ConfigError(
            f"n_neighbours is {n_neighbours} and resolution {resolution:g}; both must be positive."
        )
    # imported here: loading scanpy takes seconds
    import anndata as ad
    import scanpy as sc

    table = ad.AnnData(sp.csr_matrix((len(vectors), 0)))
    sc.tl.leiden(
        table,
        resolution=resolution,
        random_state=seed,
        adjacency=neighbour_graph(vectors, n_neighbours),
        directed=False,
        flavor="igraph",
        n_iterations=-1,
    )
    return by_size(table.obs["leiden"].cat.codes.to_numpy().astype(np.int64))


def by_size(modules: Int[np.ndarray, " gene"]) -> Int[np.ndarray, " gene"]:
    """The same modules, numbered from the largest; of equal ones the first gene's comes first."""
    _, first, codes, sizes = np.unique(
        modules, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -sizes))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes]
