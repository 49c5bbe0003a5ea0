"""The linear probe: a frozen model's features -> the classifier's weights, by a solver.

in   features of the training and validation cells (n_cells, n_features), their types
out  Probe: mean and scale of the features, weight and bias; what each penalty gave

scikit-learn's logistic regression rather than the trainer: with frozen features the problem is
convex, so a solver finds the one answer, with no learning rate, in seconds. The penalty is the one
of least loss on the validation cells. It is also where the other methods begin (a probe first, then
the weights below it: Kumar et al. 2022, arXiv:2202.10054), so that none of them can end below it on
the cells that choose.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from scfm.objectives.classification import Balance, type_balance, type_loss

PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C
MAX_ITERATIONS = 2_000
LEAST_SCALE = 1e-3  # of the typical feature's, below which one counts as constant


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes
    ----------
    inverse_penalty
        scikit-learn's C that was chosen.
    losses
        Loss of the validation cells by C.
    """

    mean: Float[np.ndarray, " feature"] = field(repr=False)
    scale: Float[np.ndarray, " feature"] = field(repr=False)
    weight: Float[np.ndarray, "type feature"] = field(repr=False)
    bias: Float[np.ndarray, " type"] = field(repr=False)
    inverse_penalty: float
    losses: dict[str, float]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Mean, scale, weight and bias, for the classifier."""
        arrays = (self.mean, self.scale, self.weight, self.bias)
        return tuple(torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in arrays)

    def scores(self, features: Float[np.ndarray, "cell feature"]) -> np.ndarray:
        return (features - self.mean) / self.scale @ self.weight.T + self.bias


def fit_probe(
    features: Float[np.ndarray, "cell feature"],
    types: Int[np.ndarray, " cell"],
    validation: Float[np.ndarray, "held feature"],
    validation_types: Int[np.ndarray, " held"],
    n_types: int,
    balance: Balance,
    penalties: tuple[float, ...] = PENALTIES,
) -> Probe:
    """Fit with each penalty and keep what is best on the validation cells."""
    features, validation = (np.asarray(x, dtype=np.float64) for x in (features, validation))
    mean, scale = features.mean(0), spread_of(features)
    seen, held = (features - mean) / scale, (validation - mean) / scale
    n_cells = np.bincount(types, minlength=n_types)
    weighing = type_balance(torch.from_numpy(n_cells), balance)
    # "logits": fitted as the cells come, then the shares are taken out of the scores
    gain = weighing.gain.double().numpy()
    truth = torch.from_numpy(validation_types)
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    losses = {}
    for inverse_penalty in penalties:
        weight, bias = _solved(seen, types, n_types, inverse_penalty, balance == "weights")
        scores = held @ weight.T + (bias - gain)
        loss = float(type_loss(torch.from_numpy(scores).float(), truth, weighing))
        losses[f"{inverse_penalty:g}"] = loss
        if best is None or loss < best[0]:
            best = (loss, inverse_penalty, weight, bias - gain)
    assert best is not None, "one penalty at least"
    return Probe(mean, scale, best[2], best[3], best[1], losses)


def spread_of(features: Float[np.ndarray, "cell feature"]) -> Float[np.ndarray, " feature"]:
    """Standard deviation of each feature; 1 for one that is constant but for rounding."""
    spread = features.std(0)
    return np.where(spread > LEAST_SCALE * np.median(spread) + 1e-12, spread, 1.0)


def _solved(
    seen: Float[np.ndarray, "cell feature"],
    types: Int[np.ndarray, " cell"],
    n_types: int,
    inverse_penalty: float,
    is_weighted: bool,
) -> tuple[Float[np.ndarray, "type feature"], Float[np.ndarray, " type"]]:
    weights: Any = "balanced" if is_weighted else None
    solver = LogisticRegression(C=inverse_penalty, class_weight=weights, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # nearly at the bottom is good enough: the validation cells judge it
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(seen, types)
    weight, bias = np.asarray(solver.coef_), np.asarray(solver.intercept_)
    if n_types == 2:  # one score: half to either side
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
