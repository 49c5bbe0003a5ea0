"""How far a method's type probabilities can be trusted, from cells whose type is known.

in   TypeProbabilities of cells that had no vote on themselves, their true labels
out  ProbabilityCalibration: a temperature, and the confidence below which a cell is unknown

The temperature divides log-probabilities; it is the one of least log loss of the true label
(Guo et al. 2017, arXiv:1706.04599) over these cells and one more, like them, that is wrong: without
it n cells that are all right would call for certainty, with it for n / (n + 1). It changes no
label. The threshold is the lowest at which named cells are right as often as was asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from scipy.optimize import minimize_scalar

from scfm.errors import ConfigError
from scfm.metrics import expected_calibration_error
from scfm.tasks.calibration import (
    LEAST_CALLED,
    TEMPERATURES,
    Threshold,
    lowest_threshold,
    wilson,
)
from scfm.tasks.type_probabilities import TypeProbabilities

FLOOR = 1e-12  # probability that a class without any is given before logarithms are taken
PRECISION = 0.9  # of the cells that get a name
LEAST_THRESHOLD = 0.5  # a name that is more likely wrong than right is not given


@dataclass(frozen=True, kw_only=True)
class ProbabilityCalibration:
    """What turns a method's probabilities into ones that can be taken at their word.

    Attributes
    ----------
    temperature
        Log-probabilities are divided by it.
    threshold
        A cell of lower confidence is unknown.
    facts
        What it was fitted on and what was found there; empty for one that was not fitted.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")

    def apply(self, found: TypeProbabilities) -> TypeProbabilities:
        """The same cells' probabilities, tempered. Rows of zeros stay so; 1 changes nothing."""
        if self.temperature == 1.0:
            return found
        return replace(found, probabilities=tempered(found.probabilities, self.temperature))


def fit_probability_calibration(
    found: TypeProbabilities,
    truth: Shaped[np.ndarray, " cell"],
    precision: float = PRECISION,
) -> ProbabilityCalibration:
    """Temperature and threshold. Cells of which nothing is said, or of an unknown class, are out.

    Where no threshold reaches ``precision`` the one of best precision is taken, and
    ``facts["precision"]`` says which that is. Raises ConfigError where no cell is left.
    """
    code = {name: at for at, name in enumerate(found.classes)}
    true = np.array([code.get(str(label), -1) for label in truth], dtype=np.int64)
    usable = np.flatnonzero((true >= 0) & (found.confidence > 0))
    if not len(usable):
        raise ConfigError(
            f"None of {len(truth):,} cells with a known type is of a class that was learned "
            f"({', '.join(found.classes[:5])}); wanted some to calibrate on."
        )
    temperature = _fit_temperature(found.probabilities[usable], true[usable])
    confidence = tempered(found.probabilities[usable], temperature).max(1)
    is_right = found.probabilities[usable].argmax(1) == true[usable]
    chosen = _threshold(confidence, is_right, precision)
    facts = {
        "n_cells": len(usable),
        "accuracy": float(is_right.mean()),
        "precision_wanted": precision,
        "precision": chosen.precision,
        "precision_interval": list(wilson(chosen.precision, round(len(usable) * chosen.coverage))),
        "coverage": chosen.coverage,
        "calibration_error_before": expected_calibration_error(is_right, found.confidence[usable]),
        "calibration_error": expected_calibration_error(is_right, confidence),
    }
    return ProbabilityCalibration(temperature=temperature, threshold=chosen.confidence, facts=facts)


def tempered(
    probabilities: Float[np.ndarray, "cell type"], temperature: float
) -> Float[np.ndarray, "cell type"]:
    """Probabilities to the power 1 / temperature, made to sum to 1 again; rows of zeros stay."""
    logs = np.log(np.maximum(probabilities, FLOOR)) / temperature
    weight = np.exp(logs - logs.max(1, keepdims=True))
    is_said = probabilities.sum(1, keepdims=True) > 0
    return np.where(is_said, weight / weight.sum(1, keepdims=True), 0.0)


def _fit_temperature(probabilities: Float[np.ndarray, "cell type"], true: np.ndarray) -> float:
    cells, best = np.arange(len(true)), probabilities.argmax(1)

    def log_loss(log_temperature: float) -> float:
        found = tempered(probabilities, float(np.exp(log_temperature)))
        loss = -np.log(np.maximum(found[cells, true], FLOOR)).sum()
        found[cells, best] = 0.0
        one_wrong = -np.log(np.maximum(found.sum(1), FLOOR)).mean()
        return float(loss + one_wrong) / (len(true) + 1)

    bounds = tuple(np.log(TEMPERATURES))
    found: Any = minimize_scalar(log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _threshold(confidence: np.ndarray, is_right: np.ndarray, precision: float) -> Threshold:
    """The lowest that reaches the precision; where none does, the one that comes nearest."""
    try:
        return lowest_threshold(confidence, is_right, precision)
    except ConfigError:
        order = np.argsort(-confidence, kind="stable")
        sorted_, n_called = confidence[order], np.arange(1, len(order) + 1)
        is_last = np.append(sorted_[1:] < sorted_[:-1], True)  # cells of one confidence go together
        allowed = np.flatnonzero(is_last & (n_called >= min(LEAST_CALLED, len(order))))
        share = np.cumsum(is_right[order]) / n_called
        best = int(allowed[np.argmax(share[allowed])])
        return Threshold(
            float(confidence[order[best]]), float(share[best]), (best + 1) / len(order)
        )
