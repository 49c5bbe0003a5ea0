"""What a perturbation head must beat: no change, the mean change, and a linear model.

in   mean changes of the training perturbations (perturbation, gene), features of perturbed genes
out  the change a held-out perturbation is predicted to make (gene,)

Simple baselines were found to do as well as deep models: Ahlmann-Eltze, Huber & Anders 2025,
doi:10.1038/s41592-025-02772-6. None of them is fitted on a held-out perturbation's cells.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

N_COMPONENTS = 10
RIDGE = 0.1  # the paper's, on singular vectors scaled as below


class LinearModel(NamedTuple):
    """``change = G (W p) + b``: p what is known of the perturbation, G the genes' components."""

    components: Float[np.ndarray, "gene k"]  # G
    weights: Float[np.ndarray, "k feature"]  # W
    mean: Float[np.ndarray, " gene"]  # b

    def predict(self, feature: Float[np.ndarray, " feature"]) -> Float[np.ndarray, " gene"]:
        return self.components @ (self.weights @ feature) + self.mean


def fit_linear(
    changes: Float[np.ndarray, "perturbation gene"],
    features: Float[np.ndarray, "perturbation feature"],
    components: Float[np.ndarray, "gene k"],
    *,
    ridge: float = RIDGE,
) -> LinearModel:
    """Least squares of ``Y ~ G W P^T + b`` with a ridge on both sides.

    ``W = (G^T G + r)^-1 G^T (Y - b) P (P^T P + r)^-1`` and b the mean of Y over perturbations.
    Source: Ahlmann-Eltze et al. 2025, doi:10.1038/s41592-025-02772-6, Methods.
    """
    mean = changes.mean(0)
    left = components.T @ components + ridge * np.eye(components.shape[1])
    right = features.T @ features + ridge * np.eye(features.shape[1])
    between = components.T @ (changes - mean).T @ features
    weights = np.linalg.solve(right, np.linalg.solve(left, between).T).T
    return LinearModel(components, weights, mean)


def gene_components(
    profiles: Float[np.ndarray, "perturbation gene"], n_components: int = N_COMPONENTS
) -> Float[np.ndarray, "gene k"]:
    """Principal components of the genes, over the training perturbations and the control.

    Scores of each gene, of unit variance: the ridge then means the same for any data.
    """
    return unit_scores(profiles.T, n_components)


def unit_scores(
    rows: Float[np.ndarray, "row column"], n_components: int
) -> Float[np.ndarray, "row k"]:
    """PCA scores of the rows divided by the first one's standard deviation."""
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    k = min(n_components, int((s > 1e-8 * max(s[0], 1e-300)).sum()))
    scores = u[:, :k] * s[:k]
    return scores / scores[:, 0].std() if k else np.zeros((len(rows), 1))


def sum_features(
    table: Float[np.ndarray, "vocabulary k"], combinations: list[tuple[int, ...]]
) -> Float[np.ndarray, "perturbation k"]:
    """Of each combination the sum over its genes' rows."""
    return np.stack([table[list(genes)].sum(0) for genes in combinations])


def of_measured(
    components: Float[np.ndarray, "gene k"], genes: Int[np.ndarray, " gene"], n_vocabulary: int
) -> Float[np.ndarray, "vocabulary k"]:
    """Components by the vocabulary's genes; zero for one that is not measured.

    A perturbation of genes that are not measured then is predicted the mean change.
    """
    table = np.zeros((n_vocabulary, components.shape[1]))
    table[genes] = components
    return table
