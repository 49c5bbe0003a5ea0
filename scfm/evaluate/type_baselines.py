"""Typing cells without a model: neighbours, regressions, CellTypist's recipe, the majority class.

in   a Reference: log1p(1e4) of labelled cells
out  BASELINES, Methods that every model is judged beside

Each measures novelty by itself, too: by the angle from the nearest class mean in components, by
the energy of its logits on genes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Shaped
from scipy.special import expit, logsumexp
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from scfm.evaluate.type_methods import (
    Cells,
    Features,
    Fitted,
    Reference,
    components,
    n_components,
)
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.type_probabilities import TypeProbabilities

N_NEIGHBOURS = 15
MAX_ITERATIONS = 2_000
TOP_GENES = 300  # of each class, that CellTypist's second round learns from
CLIP = 10.0  # standard deviations beyond which CellTypist cuts scaled expression


@dataclass(frozen=True)
class Baseline:
    """A method that is a function of the cells alone."""

    key: str
    name: str
    note: str
    learn: Callable[[Reference], Fitted]
    kind: Literal["model", "untrained", "baseline"] = "baseline"
    own_calibration: ProbabilityCalibration | None = None

    def fit(self, reference: Reference) -> Fitted:
        return self.learn(reference)


@dataclass(frozen=True)
class FittedClassifier:
    """scikit-learn's classifier behind a representation of the cells.

    ``novelty`` says how unlike all it learned a cell is, where the classifier can tell.
    """

    represent: Callable[[Cells], Features]
    classifier: LogisticRegression | KNeighborsClassifier
    novelty: Callable[[Features], Float[np.ndarray, " cell"]] | None = None

    def predict(self, cells: Cells) -> TypeProbabilities:
        seen = self.represent(cells)
        found = np.asarray(self.classifier.predict_proba(seen), dtype=np.float64)
        if isinstance(self.classifier, KNeighborsClassifier):
            n_neighbours = self.classifier.n_neighbors
            assert n_neighbours is not None
            found = with_doubt(found, n_neighbours)
        return TypeProbabilities(
            classes=tuple(map(str, self.classifier.classes_)),
            probabilities=found / found.sum(1, keepdims=True),
            is_outlier=np.zeros(len(found), dtype=bool),
            novelty=self.novelty(seen) if self.novelty else None,
        )


@dataclass(frozen=True)
class FittedShares:
    """The same answer for every cell: the labels' shares among those learned from."""

    classes: tuple[str, ...]
    shares: Float[np.ndarray, " class"]

    def predict(self, cells: Cells) -> TypeProbabilities:
        n = len(cells)
        return TypeProbabilities(self.classes, np.tile(self.shares, (n, 1)), np.zeros(n, bool))


def majority(reference: Reference) -> Fitted:
    """The most frequent label for every cell."""
    classes, n_cells = np.unique(reference.labels, return_counts=True)
    return FittedShares(tuple(map(str, classes)), n_cells / n_cells.sum())


def uncentred_neighbours(reference: Reference) -> Fitted:
    """50 uncentred components (truncated SVD) and the vote of 15 neighbours by cosine.

    Uncentred, the first component is the mean cell, which blunts the cosine: centring is worth
    seven points from sorted PBMC to PBMC3k. Kept because scikit-learn's usual answer to a sparse
    matrix does this, and it is often quoted. The components are exact (ARPACK) and so do not hang
    on a seed; scikit-learn's randomised ones move macro-F1 by up to a point.
    """
    counts = reference.cells.log_counts
    svd = TruncatedSVD(n_components(counts), algorithm="arpack", random_state=0).fit(counts)
    return neighbours_in(lambda cells: svd.transform(cells.log_counts), reference)


def principal_neighbours(reference: Reference) -> Fitted:
    """50 principal components of all genes and the vote of 15 neighbours by cosine."""
    pca = reference.principal
    return neighbours_in(lambda cells: pca.transform(cells.log_counts), reference)


def variable_neighbours(reference: Reference) -> Fitted:
    """2,000 most variable genes, 50 principal components, the vote of 15 neighbours by cosine."""
    columns = reference.variable
    pca = components(reference.cells.log_counts[:, columns])
    return neighbours_in(lambda cells: pca.transform(cells.log_counts[:, columns]), reference)


def principal_logistic(reference: Reference) -> Fitted:
    """50 principal components, not scaled, and balanced logistic regression."""
    pca = reference.principal
    return _logistic(lambda cells: pca.transform(cells.log_counts), reference, 1.0)


def variable_logistic(reference: Reference) -> Fitted:
    """Balanced logistic regression on the 2,000 most variable genes, not scaled.

    C = 0.01: with two thousand genes and C = 1 it learns the reference's study (macro-F1 .816 from
    sorted PBMC to PBMC3k).
    """
    columns = reference.variable
    return _logistic(lambda cells: cells.log_counts[:, columns], reference, 0.01)


def raw_logistic(reference: Reference) -> Fitted:
    """Balanced logistic regression on all genes, not scaled, C = 0.01."""
    # the others' weights would stay 0, at the cost of carrying them
    expressed = np.flatnonzero(reference.cells.log_counts.getnnz(0))
    return _logistic(lambda cells: cells.log_counts[:, expressed], reference, 0.01)


def selected_logistic(reference: Reference) -> Fitted:
    """CellTypist's two rounds: the genes with the largest weights, then a regression on these.

    Round one is one-against-rest logistic regression by stochastic gradient on all scaled genes;
    the 300 genes of largest absolute weight of each class go to round two. Expression is divided
    by its standard deviation and cut at 10; it is not centred, which would make it dense.
    Source: Dominguez Conde et al. 2022, doi:10.1126/science.abl5197; own implementation.
    """
    scale = StandardScaler(with_mean=False).fit(reference.cells.log_counts)

    def scaled(cells: Cells) -> sp.csr_matrix:
        found = sp.csr_matrix(scale.transform(cells.log_counts))
        found.data = np.minimum(found.data, CLIP)
        return found

    settings = {"loss": "log_loss", "alpha": 1e-3, "max_iter": 200, "tol": 1e-3}
    first = SGDClassifier(**settings, random_state=reference.seed)
    first.fit(scaled(reference.cells), reference.labels)
    weight = np.abs(np.asarray(first.coef_))
    top = np.argsort(-weight, axis=1, kind="stable")[:, :TOP_GENES]
    columns = np.unique(top)
    return _logistic(lambda cells: scaled(cells)[:, columns], reference, 0.01)


BASELINES = (
    Baseline("majority", "Majority class", "always the most frequent label", majority),
    Baseline(
        *("pca_knn", "PCA-50 (uncentred) + 15 neighbours"),
        *("truncated SVD of all genes; cosine; unknown by angle", uncentred_neighbours),
    ),
    Baseline(
        *("pca_centred_knn", "PCA-50 + 15 neighbours"),
        *("all genes; cosine; unknown by angle", principal_neighbours),
    ),
    Baseline(
        *("hvg_pca_knn", "HVG + PCA-50 + 15 neighbours"),
        *("2,000 most variable genes; centred; cosine; unknown by angle", variable_neighbours),
    ),
    Baseline(
        *("pca_logistic", "PCA-50 + logistic regression"),
        *("classes weighted equally, C = 1; unknown by angle", principal_logistic),
    ),
    Baseline(
        *("hvg_logistic", "Logistic regression, 2,000 variable genes"),
        *("classes weighted equally, C = 0.01; unknown by energy", variable_logistic),
    ),
    Baseline(
        *("raw_logistic", "Logistic regression, all genes"),
        *("classes weighted equally, C = 0.01; unknown by energy", raw_logistic),
    ),
    Baseline(
        *("celltypist", "CellTypist-style logistic regression"),
        *(
            "two rounds, 300 genes a class; own implementation; unknown by energy",
            selected_logistic,
        ),
    ),
)


def neighbours_in(represent: Callable[[Cells], Features], reference: Reference) -> Fitted:
    """The vote of 15 neighbours by cosine in some representation of the cells."""
    k = min(N_NEIGHBOURS, len(reference.labels))
    seen = represent(reference.cells)
    voters = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    voters.fit(seen, reference.labels)
    return FittedClassifier(represent, voters, angle_from_means(seen, reference.labels))


def _logistic(
    represent: Callable[[Cells], Features], reference: Reference, inverse_penalty: float
) -> Fitted:
    seen = represent(reference.cells)
    model = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=MAX_ITERATIONS)
    model.fit(seen, reference.labels)
    is_dense = isinstance(seen, np.ndarray)
    novelty = angle_from_means(seen, reference.labels) if is_dense else low_energy(model)
    return FittedClassifier(represent, model, novelty)


def with_doubt(
    votes: Float[np.ndarray, "cell type"], n_neighbours: int
) -> Float[np.ndarray, "cell type"]:
    """Shares of the vote after one more vote, which all classes share.

    Fifteen cells of one mind are no certainty, and a temperature cannot mend a probability of 0:
    without this it is fitted to the few cells whose neighbours all err.
    """
    n_classes = votes.shape[1]
    return (votes * n_neighbours + 1 / n_classes) / (n_neighbours + 1)


def angle_from_means(
    seen: Features, labels: Shaped[np.ndarray, " cell"]
) -> Callable[[Features], Float[np.ndarray, " cell"]]:
    """(1 - cosine) / 2 to the nearest class mean: of the scores tried on principal components, the
    best at telling types left out of sorted PBMC (docs/LOG.md), far ahead of 1 - confidence.
    """
    means = np.stack([np.asarray(seen[labels == c].mean(0)).ravel() for c in np.unique(labels)])
    means = np.asarray(normalize(means))

    def novelty(asked: Features) -> Float[np.ndarray, " cell"]:
        cosine = np.asarray(normalize(asked)) @ means.T
        return np.clip((1 - cosine.max(1)) / 2, 0.0, 1.0)

    return novelty


def low_energy(model: LogisticRegression) -> Callable[[Features], Float[np.ndarray, " cell"]]:
    """1 / (1 + sum of exp(logit)): high where no class has evidence.

    Source: Liu et al. 2020, arXiv:2010.03759 (the energy, here through a monotone map to [0, 1]).
    """

    def novelty(asked: Features) -> Float[np.ndarray, " cell"]:
        logits = np.asarray(model.decision_function(asked), dtype=np.float64)
        if logits.ndim == 1:  # two classes: one logit
            logits = np.stack([-logits / 2, logits / 2], axis=1)
        return expit(-logsumexp(logits, axis=1))

    return novelty
