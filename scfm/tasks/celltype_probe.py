"""The linear probe: a frozen model's vectors and the genes' values -> a classifier's weights.

in   Seen of the training and validation cells, their types
out  Probe: the classifier's weights, by a solver; what each penalty gave

scikit-learn's logistic regression rather than the trainer: with a frozen model the problem is
convex, so a solver finds the one answer, with no learning rate, in seconds. The penalty is the
strongest whose loss on the validation cells is within a standard error of the least (Breiman et al.
1984): validation cells are from the study that was learned from, whose differences they cannot
tell from those of types, and a weaker penalty takes both up.

The other methods begin with the probe (Kumar et al. 2022, arXiv:2202.10054), and none of them can
end below it on the cells that choose.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from scfm.objectives.classification import Balance, type_balance, type_losses
from scfm.tasks.celltype_features import Seen

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # scikit-learn's C
MAX_ITERATIONS = 300
LEAST_SCALE = 1e-3  # of the typical number's spread, below which one counts as constant


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes
    ----------
    weights
        By the names they have in `scfm.model.classifier.CellClassifier`.
    inverse_penalty
        scikit-learn's C that was chosen.
    losses
        Loss of the validation cells by C.
    """

    weights: dict[str, Float[np.ndarray, "..."]] = field(repr=False)
    inverse_penalty: float
    losses: dict[str, float]

    def tensors(self) -> dict[str, torch.Tensor]:
        """For the classifier."""
        return {name: torch.from_numpy(w).float() for name, w in self.weights.items()}

    def scores(self, seen: Seen) -> Float[np.ndarray, "cell type"]:
        """What the classifier would say."""
        own, found = self.weights, self.weights["bias"][None]
        if "linear.weight" in own:
            found = found + (seen.vectors - own["mean"]) / own["scale"] @ own["linear.weight"].T
        if "gene_weight.weight" in own:
            found = found + seen.values @ own["gene_weight.weight"]
        return found


def fit_probe(
    seen: Seen,
    types: Int[np.ndarray, " cell"],
    validation: Seen,
    validation_types: Int[np.ndarray, " held"],
    n_types: int,
    balance: Balance,
    penalties: tuple[float, ...] = PENALTIES,
) -> Probe:
    """Fit with each penalty and keep the strongest that the validation cells find good."""
    d = seen.vectors.shape[1]
    mean, scale = seen.vectors.mean(0, dtype=np.float64), spread_of(seen.vectors)
    n_tokens = seen.n_tokens
    columns = np.flatnonzero(seen.values.getnnz(0)) if n_tokens else np.arange(0)
    x, held = (_design(one, mean, scale, columns) for one in (seen, validation))
    weighing = type_balance(torch.from_numpy(np.bincount(types, minlength=n_types)), balance)
    # "logits": fitted as the cells come, then the shares are taken out of the scores
    gain, truth = weighing.gain.double().numpy(), torch.from_numpy(validation_types)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    losses: list[np.ndarray] = []
    for inverse_penalty in penalties:
        weight, bias = _solved(x, types, n_types, inverse_penalty, balance == "weights")
        scores = torch.from_numpy(np.asarray(held @ weight.T) + bias - gain)
        losses.append(type_losses(scores, truth, weighing).numpy())
        found.append((weight, bias - gain))
    chosen = strongest(penalties, losses)
    weight, bias = found[chosen]
    weights = {"bias": bias}
    if d:
        weights |= {"mean": mean, "scale": scale, "linear.weight": weight[:, :d]}
    if n_tokens:
        of_genes = np.zeros((n_tokens, n_types))
        of_genes[columns] = weight[:, d:].T
        weights["gene_weight.weight"] = of_genes
    means = {f"{c:g}": float(loss.mean()) for c, loss in zip(penalties, losses, strict=True)}
    return Probe(weights, penalties[chosen], means)


def strongest(
    inverse_penalties: Sequence[float], losses: Sequence[Float[np.ndarray, " held"]]
) -> int:
    """Place of the strongest penalty whose mean loss is within a standard error of the least."""
    means = np.array([loss.mean() for loss in losses])
    best = int(means.argmin())
    allowed = means[best] + losses[best].std() / np.sqrt(len(losses[best]))
    near = np.flatnonzero(means <= allowed).tolist()
    return min(near, key=lambda at: inverse_penalties[at])


def spread_of(vectors: Float[np.ndarray, "cell d"]) -> Float[np.ndarray, " d"]:
    """Standard deviation of each number; 1 for one that is constant but for rounding."""
    if not vectors.shape[1]:
        return np.ones(0)
    spread = vectors.std(0, dtype=np.float64)
    return np.where(spread > LEAST_SCALE * np.median(spread) + 1e-12, spread, 1.0)


def _design(
    seen: Seen,
    mean: Float[np.ndarray, " d"],
    scale: Float[np.ndarray, " d"],
    columns: Int[np.ndarray, " gene"],
) -> Any:
    """Standardised vectors beside gene values; dense where there are no genes."""
    standard = (seen.vectors - mean) / scale
    if not len(columns):
        return standard
    values = seen.values[:, columns]
    return sp.hstack([sp.csr_matrix(standard), values], format="csr") if len(mean) else values


def _solved(
    x: Any, types: Int[np.ndarray, " cell"], n_types: int, inverse_penalty: float, is_weighted: bool
) -> tuple[Float[np.ndarray, "type feature"], Float[np.ndarray, " type"]]:
    weights: Any = "balanced" if is_weighted else None
    solver = LogisticRegression(C=inverse_penalty, class_weight=weights, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # nearly at the bottom is good enough: the validation cells judge it
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(x, types)
    weight, bias = np.asarray(solver.coef_), np.asarray(solver.intercept_)
    if n_types == 2:  # one score: half to either side
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
