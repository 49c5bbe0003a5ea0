"""How far a model's confidence in its type words can be trusted, from cells whose types are known.

in   logits over type words of labelled cells, which of them the model names rightly
out  Calibration: a temperature, and the confidence below which a cell is unknown; calibration.json

The temperature makes the confidence the share of cells that are named rightly (least log loss;
Guo et al. 2017, arXiv:1706.04599). The threshold is the lowest at which the cells that are named
are right as often as was asked for.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar

from scfm.data.write import atomic_path
from scfm.errors import ConfigError, ModelError
from scfm.metrics import expected_calibration_error
from scfm.model.base import CellModel
from scfm.model.folder import CALIBRATION
from scfm.tasks.type_calls import TypeLogits, call_types

LEAST_CALLED = 50  # cells: a precision of fewer says little
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns logits into an answer or "unknown".

    Attributes
    ----------
    temperature
        Logits are divided by it.
    threshold
        A cell of lower confidence is unknown.
    weights_sha256
        The weights this was fitted for; "" for a model that was never saved.
    facts
        What it was fitted on and what was found there; empty for one that was not fitted.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    weights_sha256: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"calibration.temperature must be above 0, got {self.temperature}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"calibration.threshold must lie in [0, 1], got {self.threshold}")

    @property
    def is_fitted(self) -> bool:
        return bool(self.facts)

    def __str__(self) -> str:
        if not self.is_fitted:
            return f"not calibrated: unknown below {self.threshold:.3g}"
        facts = self.facts
        low, high = facts["precision_interval"]
        return (
            f"temperature {self.temperature:.3g}; unknown below {self.threshold:.3g}: "
            f"{facts['coverage']:.1%} of {facts['n_cells']:,} cells get a name, "
            f"{facts['precision']:.1%} of these the right one (95 % interval {low:.1%} to "
            f"{high:.1%}); of all cells {facts['accuracy']:.1%}\n"
            f"expected calibration error {facts['calibration_error_before']:.3f} -> "
            f"{facts['calibration_error']:.3f}"
        )

    def save(self, folder: str | Path) -> Path:
        """Write calibration.json into a model's folder."""
        out = Path(folder) / CALIBRATION
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return out

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, model: CellModel) -> "Calibration":
        """A model's own, or the plain one of a model without: temperature 1, threshold 0.5."""
        return cls() if model.calibration is None else cls.read(model.calibration)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "Calibration":
        """From the mapping in calibration.json. Raises ModelError where it is none."""
        try:
            unknown = set(found) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
            return cls(**found)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{CALIBRATION} in the model's folder is no calibration ({error}). Remove it, or "
                "write it again: scfm calibrate CELLS --model MODEL --label COLUMN."
            ) from error


class Threshold(NamedTuple):
    """A confidence, and what holds of the labelled cells at or above it."""

    confidence: float
    precision: float
    coverage: float  # share of the cells


def fit_calibration(
    logits: TypeLogits, is_correct: Bool[np.ndarray, " cell"], precision: float = 0.9
) -> Calibration:
    """Temperature and threshold for cells of which it is known whether their type is right.

    Raises ConfigError where no threshold reaches the precision, ValueError for one outside (0, 1].
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must lie in (0, 1], got {precision}")
    temperature = fit_temperature(logits, is_correct)
    before = call_types(logits).confidence
    confidence = call_types(logits, temperature).confidence
    chosen = lowest_threshold(confidence, is_correct, precision)
    n_cells = len(is_correct)
    facts = {
        "n_cells": n_cells,
        "accuracy": float(is_correct.mean()),
        "precision_wanted": precision,
        "precision": chosen.precision,
        "precision_interval": list(wilson(chosen.precision, round(n_cells * chosen.coverage))),
        "coverage": chosen.coverage,
        "calibration_error_before": expected_calibration_error(is_correct, before),
        "calibration_error": expected_calibration_error(is_correct, confidence),
    }
    return Calibration(temperature=temperature, threshold=chosen.confidence, facts=facts)


def fit_temperature(logits: TypeLogits, is_correct: Bool[np.ndarray, " cell"]) -> float:
    """The temperature of least log loss of "the call is right", in `TEMPERATURES`.

    Which call is made does not hang on it, so whether it is right is known beforehand. One more
    cell, like these, counts as wrong: n that are all right call for n / (n + 1), not for certainty.
    """

    def log_loss(log_temperature: float) -> float:
        sure = call_types(logits, float(np.exp(log_temperature))).confidence
        sure = np.clip(sure, 1e-12, 1 - 1e-12)
        loss = -np.where(is_correct, np.log(sure), np.log1p(-sure)).sum()
        return float(loss - np.log1p(-sure).mean()) / (len(sure) + 1)

    low, high = np.log(TEMPERATURES)
    # The loss need not have one valley: the best of a grid first, then the bottom beside it.
    grid = np.linspace(low, high, 61)
    best = int(np.argmin([log_loss(t) for t in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found: Any = minimize_scalar(log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def lowest_threshold(
    confidence: Float[np.ndarray, " cell"], is_correct: Bool[np.ndarray, " cell"], precision: float
) -> Threshold:
    """The lowest confidence at or above which cells are right as often as asked.

    At least `LEAST_CALLED` of them, or all where there are fewer. It lies midway between two
    cells' confidences, so that rounding moves no cell across; 0 where all cells are right enough.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_, right = confidence[order], np.cumsum(is_correct[order])
    n_called = np.arange(1, len(order) + 1)
    is_last = np.append(sorted_[1:] < sorted_[:-1], True)  # cells of one confidence go together
    allowed = is_last & (n_called >= min(LEAST_CALLED, len(order)))
    reached = np.flatnonzero(allowed & (right >= precision * n_called))
    if not reached.size:
        best = np.flatnonzero(allowed)[np.argmax((right / n_called)[allowed])]
        raise ConfigError(
            f"No threshold makes {precision:.0%} of the named cells right: the best, "
            f"{sorted_[best]:.3f}, makes it {right[best] / n_called[best]:.0%} of "
            f"{n_called[best]:,} cells. Ask for less with precision= (--precision)."
        )
    last = int(reached[-1])
    at = 0.0 if last + 1 == len(order) else float((sorted_[last] + sorted_[last + 1]) / 2)
    return Threshold(at, float(right[last] / n_called[last]), float(n_called[last] / len(order)))


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval (95 %) in which the share lies that ``n`` cells gave ``share`` of.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    middle, spread = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + (z / n / 2) ** 2)
    scale = 1 + z**2 / n
    return float((middle - spread) / scale), float((middle + spread) / scale)
