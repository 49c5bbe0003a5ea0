"""What an evaluation of TF binding found, as plain data: metrics.json, and the report's sentences.

in   scores of every method on the quadrants {seen, held-out cell} x {seen, held-out chromosome}
out  BindingEvaluation: ``to_dict`` is metrics.json, ``verdict`` the report's first sentence
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scfm.evaluate.results import Interval
from scfm.evaluate.tfbinding_baselines import Kind

Side = Literal["seen", "held-out"]
HEADINGS = {
    "aupr": "AUPR",
    "auroc": "AUROC",
    "enrichment": "AUPR / prevalence",
    "precision_at_10": "Precision at recall 0.1",
    "precision_at_50": "Precision at recall 0.5",
}


@dataclass(frozen=True)
class BindingScores:
    """One method in one quadrant: means over the (TF, cells) pairs it says something of."""

    key: str
    name: str
    kind: Kind
    note: str
    n_pairs: int
    scores: Mapping[str, Interval]  # by the keys of HEADINGS


@dataclass(frozen=True)
class Quadrant:
    """One of the four: how cells and chromosomes stand to the training.

    Attributes
    ----------
    versus
        AUPR of the model minus that of each other method, over the pairs both have and the same
        resamples; with how many pairs these are.
    per_pair
        AUPR by pair and method, with the prevalence and the number of known regions.
    """

    cell: Side
    chromosome: Side
    n_regions: int
    n_chromosomes: int
    prevalence: float
    methods: Sequence[BindingScores]
    versus: Mapping[str, Interval]
    n_shared: Mapping[str, int]
    per_pair: Mapping[str, Mapping[str, float]] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.cell} cells, {self.chromosome} chromosomes"

    def method(self, key: str) -> BindingScores:
        return next(method for method in self.methods if method.key == key)


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error of the model's probabilities, a mean over pairs."""

    before: float
    after: float
    n_pairs: int
    bins: Sequence[tuple[float, float, int]]  # mean probability, share bound, labels: after


@dataclass(frozen=True)
class CellScores:
    """How clusters of one representation agree with the cells' types.

    ``ari`` and ``nmi`` are of k-means with as many clusters as types, intervals over its starts;
    ``leiden`` are both of Leiden clusters at the resolution of highest NMI, None without igraph.
    """

    key: str
    name: str
    note: str
    ari: Interval
    nmi: Interval
    leiden: tuple[float, float] | None = None


@dataclass(frozen=True)
class BindingEvaluation:
    """All quadrants there are, and the cells where there are some."""

    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    quadrants: Sequence[Quadrant]
    calibration: Calibration | None
    cells: Sequence[CellScores] = ()
    resampled: str = ""
    notes: Sequence[str] = ()

    @property
    def headline(self) -> Quadrant:
        """Held-out cells on held-out chromosomes, or the hardest there is."""
        hard = {"held-out": 1, "seen": 0}
        return max(self.quadrants, key=lambda q: (hard[q.chromosome], hard[q.cell]))

    @property
    def model(self) -> BindingScores:
        """What is judged, in the headline quadrant."""
        return next(method for method in self.headline.methods if method.kind == "model")

    @property
    def verdict(self) -> str:
        """One sentence: the model against the strongest baseline, by AUPR over shared pairs."""
        here, model = self.headline, self.model
        baselines = [m for m in here.methods if m.kind == "baseline" and m.key in here.versus]
        if not baselines:
            return f"{model.name} reaches AUPR {model.scores['aupr'].value:.3f}; no baseline."
        best = min(baselines, key=lambda method: here.versus[method.key].value)
        gap, n = here.versus[best.key], here.n_shared[best.key]
        spread = f"difference {gap.value:+.3f}, {gap.low:+.3f} to {gap.high:+.3f}"
        where = f"on {here.name}, over {n} pair{'s' * (n != 1)} of TF and cells"
        if gap.low == gap.high:
            ahead = "above" if gap.value > 0 else "not above"
            return (
                f"{model.name} is {ahead} every baseline on the one chromosome that was judged, "
                f"which gives no interval: AUPR {gap.value:+.3f} from the nearest, {best.name} "
                f"({where})."
            )
        if gap.low > 0:
            return (
                f"{model.name} wins: its AUPR is above that of every baseline, the nearest being "
                f"{best.name} ({spread}; {where})."
            )
        if gap.high < 0:
            return f"The strongest baseline, {best.name}, beats {model.name} ({spread}; {where})."
        return (
            f"No clear winner between {model.name} and the strongest baseline, {best.name} "
            f"(AUPR, {spread}; {where})."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "verdict": self.verdict,
            "data": dict(self.data),
            "settings": dict(self.settings),
            "quadrants": [asdict(quadrant) for quadrant in self.quadrants],
            "calibration": asdict(self.calibration) if self.calibration else None,
            "cells": [asdict(one) for one in self.cells],
            "resampled": self.resampled,
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Methods of the headline quadrant, best AUPR first, for a terminal."""
        here = self.headline
        ranked = sorted(here.methods, key=lambda m: -m.scores["aupr"].value)
        width = max(len(method.name) for method in ranked)
        names = ("aupr", "auroc", "enrichment")
        head = "  ".join(f"{HEADINGS[name]:>17}" for name in names)
        lines = [f"{here.name}", f"{'':<{width}}  {'pairs':>5}  {head}"]
        for m in ranked:
            values = "  ".join(f"{m.scores[name].value:>17.3f}" for name in names)
            lines.append(f"{m.name:<{width}}  {m.n_pairs:>5}  {values}")
        if self.cells:
            width = max(len("clusters of cells"), *(len(one.name) for one in self.cells))
            head = "  ".join(f"{x:>10}" for x in ("ARI", "NMI", "ARI Leiden", "NMI Leiden"))
            lines += ["", f"{'clusters of cells':<{width}}  {head}"]
            for c in self.cells:
                values = (c.ari.value, c.nmi.value, *(c.leiden or ()))
                lines.append(f"{c.name:<{width}}  " + "  ".join(f"{x:>10.3f}" for x in values))
        return "\n".join([self.verdict, *lines])
