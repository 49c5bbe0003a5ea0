"""What an evaluation found, as plain data: metrics.json in, metrics.json out.

in   scores of several methods on the same cells
out  Evaluation: ``to_dict`` is metrics.json, ``verdict`` the report's first sentence
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """How one label fared."""

    precision: float
    recall: float
    f1: float
    n_cells: int


@dataclass(frozen=True)
class MethodResult:
    """One method on the query's cells.

    Attributes
    ----------
    key, name
        ``"scfm"``, ``"untrained"``, ``"pca_knn"`` ... and what a reader is shown.
    kind
        ``"model"`` is what is being judged; the rest it is judged against.
    predicted
        One label a query cell, in the query's order; "unknown" is a label like any other.
    """

    key: str
    name: str
    kind: Literal["model", "untrained", "baseline"]
    macro_f1: Interval
    accuracy: Interval
    balanced_accuracy: Interval
    per_class: Mapping[str, ClassScore]
    predicted: np.ndarray = field(repr=False)
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Several methods on one reference and one query.

    Attributes
    ----------
    truth
        The query's labels, one a cell; ``labels`` are those that occur in it, sorted.
    versus
        Per baseline key, macro-F1 of the model minus the baseline's, paired over the same
        bootstrap resamples.
    """

    reference: Mapping[str, Any]  # name, n_cells, n_genes, label_key, classes
    query: Mapping[str, Any]
    labels: Sequence[str]
    truth: np.ndarray = field(repr=False)
    methods: Sequence[MethodResult]
    versus: Mapping[str, Interval]
    verdict: str
    n_bootstrap: int
    seed: int
    resampled: str = "cells"  # what the intervals are over: cells, or whole groups of a column

    def method(self, key: str) -> MethodResult:
        return next(m for m in self.methods if m.key == key)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the per-cell arrays."""
        methods = []
        for method in self.methods:
            entry = {k: v for k, v in vars(method).items() if k != "predicted"}
            entry |= {k: asdict(entry[k]) for k in ("macro_f1", "accuracy", "balanced_accuracy")}
            entry["per_class"] = {k: asdict(v) for k, v in method.per_class.items()}
            methods.append(entry)
        return {
            "verdict": self.verdict,
            "reference": dict(self.reference),
            "query": dict(self.query),
            "labels": list(self.labels),
            "methods": methods,
            "model_minus_baseline_macro_f1": {k: asdict(v) for k, v in self.versus.items()},
            "bootstrap": {"resamples": self.n_bootstrap, "over": self.resampled, "seed": self.seed},
        }
