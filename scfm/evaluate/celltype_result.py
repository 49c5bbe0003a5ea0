"""What an evaluation of cell typing found, as plain data.

in   scores of methods on the same judged cells
out  CelltypeResult: ``to_dict`` is metrics.json, ``verdict`` the report's first sentence
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from scfm.evaluate.contamination import Contamination
from scfm.evaluate.results import Evaluation, Interval


@dataclass(frozen=True)
class ReliabilityBin:
    """Cells of about one confidence: how sure the method was, and how often right."""

    confidence: float
    accuracy: float
    n_cells: int


@dataclass(frozen=True)
class CalibrationScores:
    """How far a method's probabilities can be taken at their word.

    Attributes
    ----------
    error, error_before
        Expected calibration error after and before the temperature.
    temperatures, thresholds
        One a fold, fitted on cells learned from.
    share_named, accuracy_named
        Judged cells at or above the threshold, and the share of them that is right.
    """

    error: Interval
    error_before: float
    bins: tuple[ReliabilityBin, ...]
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    share_named: float
    accuracy_named: float


@dataclass(frozen=True)
class CelltypeResult:
    """Everything an evaluation of cell typing says.

    Attributes
    ----------
    evaluation
        Labels right and wrong: all methods, the model that did best first.
    calibration
        By method.
    unknown
        By method and left-out label: AUROC of telling its cells from those of known labels.
    per_fold, per_seed
        Macro-F1 of each fold and of each seed, by method.
    split, resampled
        Sentences on how cells were split and resampled.
    notes
        What else a reader must know.
    """

    evaluation: Evaluation
    calibration: Mapping[str, CalibrationScores]
    unknown: Mapping[str, Mapping[str, Interval]]
    per_fold: Mapping[str, Sequence[float]]
    per_seed: Mapping[str, Sequence[float]]
    split: Mapping[str, Any]
    resampled: str
    settings: Mapping[str, Any]
    contamination: Mapping[str, Contamination] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        return self.evaluation.verdict

    def mean_unknown(self, key: str) -> float:
        """Mean AUROC over the labels left out; NaN where nothing was."""
        found = [score.value for score in self.unknown.get(key, {}).values()]
        known = [value for value in found if math.isfinite(value)]
        return float(np.mean(known)) if known else math.nan

    @property
    def unknown_verdict(self) -> str:
        """Which method tells cells of a type it never saw, in one sentence; "" where not asked."""
        means = {key: self.mean_unknown(key) for key in self.unknown}
        means = {key: value for key, value in means.items() if math.isfinite(value)}
        if not means:
            return ""
        best = max(means, key=lambda key: means[key])
        name = self.evaluation.method(best).name
        model = self.evaluation.methods[0]
        sentence = (
            f"Cells of a type that was left out are told best by {name} "
            f"(AUROC {means[best]:.3f}, mean over {len(self.unknown[best])} types left out in turn)"
        )
        if best != model.key and model.key in means:
            sentence += f"; {model.name} reaches {means[model.key]:.3f}"
        return sentence + "."

    @property
    def calibration_verdict(self) -> str:
        """How far the model's probabilities are off, in one sentence."""
        model = self.evaluation.methods[0]
        found = self.calibration[model.key]
        return (
            f"{model.name}'s probabilities are off by {found.error.value:.3f} on average "
            f"(expected calibration error; {found.error_before:.3f} before calibration); "
            f"{found.share_named:.1%} of the cells get a name, of which {found.accuracy_named:.1%} "
            "are right."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return self.evaluation.to_dict() | {
            "unknown_verdict": self.unknown_verdict,
            "calibration_verdict": self.calibration_verdict,
            "calibration": {key: asdict(found) for key, found in self.calibration.items()},
            "unknown_auroc": {
                key: {label: asdict(score) for label, score in found.items()}
                for key, found in self.unknown.items()
            },
            "macro_f1_per_fold": {key: list(v) for key, v in self.per_fold.items()},
            "macro_f1_per_seed": {key: list(v) for key, v in self.per_seed.items()},
            "split": dict(self.split),
            "resampled": self.resampled,
            "settings": dict(self.settings),
            "contamination": {key: found.to_dict() for key, found in self.contamination.items()},
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """All methods, best macro-F1 first, for a terminal."""
        methods = sorted(self.evaluation.methods, key=lambda method: -method.macro_f1.value)
        width = max(len(method.name) for method in methods)
        lines = [f"{'':<{width}}  macro-F1 (95 % interval)   accuracy    ECE  unknown"]
        for method in methods:
            f1, unknown = method.macro_f1, self.mean_unknown(method.key)
            shown = f"{unknown:7.3f}" if math.isfinite(unknown) else "      -"
            lines.append(
                f"{method.name:<{width}}     {f1.value:.3f} ({f1.low:.3f} to {f1.high:.3f})"
                f"      {method.accuracy.value:.3f}  {self.calibration[method.key].error.value:.3f}"
                f"  {shown}"
            )
        sentences = (self.verdict, self.calibration_verdict, self.unknown_verdict)
        return "\n".join([*filter(None, sentences), *lines])
