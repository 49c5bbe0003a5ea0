"""Predicted against measured mean profiles of perturbed cells: scores, intervals, who wins.

in   measured and predicted profiles of held-out perturbations, log1p(cp10k)
out  PerturbationEvaluation: ``to_dict`` is metrics.json, ``verdict`` its first sentence

Intervals are over perturbations: they speak for more perturbations of these same cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scfm.evaluate.intervals import ScoreDraws
from scfm.evaluate.results import Interval

N_TOP = 20
JUDGED_BY = "mse_top20"
SCORES = {  # what a reader is shown; and whether more is better
    "mse_top20": ("MSE over the top 20 DE genes", False),
    "mse": ("MSE over all genes", False),
    "pearson_change": ("Pearson of the change over genes", True),
}


class Method(NamedTuple):
    """What is compared; of kind "model" the first is judged."""

    key: str
    name: str
    kind: Literal["model", "untrained", "baseline"]


METHODS = (
    Method("head", "Perturbation head", "model"),
    Method("head_random", "The same on random weights", "untrained"),
    Method("no_change", "No change", "baseline"),
    Method("mean_change", "Mean of training perturbations", "baseline"),
    Method("linear_genes", "Linear, gene components", "baseline"),
    Method("linear_embeddings", "Linear, the model's embeddings", "baseline"),
)


@dataclass(frozen=True)
class PerturbationEvaluation:
    """Several methods on the same held-out perturbations.

    Attributes
    ----------
    table
        One row a perturbation and method: its scores, means over repeats.
    scores
        ``[method][score]``, means over perturbations with 95 % intervals.
    versus
        ``[method][score]``: the head minus that method, paired over perturbations.
    facts
        Data, split and settings, as they are.
    """

    table: pd.DataFrame = field(repr=False)
    scores: Mapping[str, Mapping[str, Interval]]
    versus: Mapping[str, Mapping[str, Interval]]
    verdict: str
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the verdict comes first."""
        return {
            "verdict": self.verdict,
            "scores": _plain(self.scores),
            "head_minus_method": _plain(self.versus),
            "intervals": "95 % bootstrap over perturbations",
            **self.facts,
            "perturbations": self.table.to_dict(orient="records"),
        }


def score_profile(
    predicted: Float[np.ndarray, " gene"],
    measured: Float[np.ndarray, " gene"],
    start: Float[np.ndarray, " gene"],
    reference: Float[np.ndarray, " gene"],
    top: Int[np.ndarray, " top"],
) -> dict[str, float]:
    """The scores of one prediction.

    The predicted change is from ``start``, the control profile it was made from; the measured one
    from ``reference``, that of control cells no method has seen. ``top`` are the columns of the
    most differentially expressed genes.
    """
    squared = (predicted - measured) ** 2
    return {
        "mse_top20": float(squared[top].mean()),
        "mse": float(squared.mean()),
        "pearson_change": pearson(predicted - start, measured - reference),
    }


def pearson(a: Float[np.ndarray, " gene"], b: Float[np.ndarray, " gene"]) -> float:
    """Pearson's r; 0 where one of the two does not vary: no change tells nothing of any."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 1e-12 else 0.0


def evaluate_scores(
    rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], *, seed: int = 0, n: int = 2000
) -> PerturbationEvaluation:
    """Rows of (perturbation, method, repeat, scores) -> means, paired intervals, one sentence."""
    table = pd.DataFrame(rows).drop(columns="repeat")
    table = table.groupby(["perturbation", "method"], sort=True).mean().reset_index()
    keys = [method.key for method in METHODS if method.key in set(table["method"])]
    draws = _draws(table, keys, seed, n)
    scores = {key: {s: draws[key][s].interval() for s in SCORES} for key in keys}
    versus = {
        key: {s: draws["head"][s].minus(draws[key][s]) for s in SCORES}
        for key in keys
        if key != "head"
    }
    verdict = verdict_on(scores, versus, n_perturbations=len(set(table["perturbation"])))
    return PerturbationEvaluation(table, scores, versus, verdict, facts)


def verdict_on(
    scores: Mapping[str, Mapping[str, Interval]],
    versus: Mapping[str, Mapping[str, Interval]],
    *,
    n_perturbations: int,
) -> str:
    """Who wins and by how much: the head against the best baseline.

    A winner is named only where the interval of the difference excludes zero.
    """
    baselines = [m for m in METHODS if m.kind == "baseline" and m.key in scores]
    best = min(baselines, key=lambda m: scores[m.key][JUDGED_BY].value)
    ours, theirs = scores["head"][JUDGED_BY].value, scores[best.key][JUDGED_BY].value
    apart = versus[best.key][JUDGED_BY]
    what = f"{SCORES[JUDGED_BY][0]} of {n_perturbations} held-out perturbations"
    numbers = f"{ours:.4f} against {theirs:.4f}"
    by = f"difference {apart.value:+.4f}, 95 % {apart.low:+.4f} to {apart.high:+.4f}"
    name = f"{best.name[0].lower()}{best.name[1:]}"
    if apart.high < 0:
        return f"The head wins over the best baseline, {name}: {what} {numbers} ({by})."
    if apart.low > 0:
        return f"A baseline wins, {name}: {what}, the head's {numbers} ({by})."
    return (
        f"Neither wins: the head and the best baseline, {name}, cannot be told "
        f"apart; {what} {numbers} ({by})."
    )


def _draws(
    table: pd.DataFrame, keys: Sequence[str], seed: int, n: int
) -> dict[str, dict[str, ScoreDraws]]:
    """Each score's mean over perturbations, and over the same resamples of them."""
    n_perturbations = len(set(table["perturbation"]))
    rng = np.random.default_rng(seed)
    chosen = rng.integers(n_perturbations, size=(n, n_perturbations))
    found: dict[str, dict[str, ScoreDraws]] = {}
    for key in keys:
        own = table.loc[table["method"] == key].sort_values(by="perturbation")
        assert len(own) == n_perturbations, f"{key} lacks perturbations"
        columns = {score: own[score].to_numpy(dtype=np.float64) for score in SCORES}
        found[key] = {
            score: ScoreDraws(float(values.mean()), values[chosen].mean(1))
            for score, values in columns.items()
        }
    return found


def _plain(found: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, Any]]:
    return {k: {s: asdict(i) for s, i in scores.items()} for k, scores in found.items()}
