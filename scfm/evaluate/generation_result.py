"""What an evaluation of generated cells found: metrics.json, a table, one sentence.

in   scores with intervals by method, per type and over types
out  text and plain data
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from scfm.evaluate.generation_scores import LOWER_IS_BETTER, SCORES
from scfm.evaluate.results import Interval

GENERATED = "generated"
NAMES = {
    GENERATED: "generated cells",
    "noisy": "real cells, sequenced again",
    "negative_binomial": "negative binomial per gene",
    "binned": "real cells through the bins",
    "real": "real cells",
}
RIVALS = ("noisy", "negative_binomial")  # the others are real cells: bounds, nothing to beat
PRIMARY = "mmd2"  # chosen before any result was seen: it compares whole distributions
HEADINGS = {
    "mmd2": "MMD²",
    "mean_r": "r of means",
    "variance_r": "r of variances",
    "auroc": "AUROC",
    "zero_gap": "zeros off",
    "margin": "own \N{MINUS SIGN} other",
}

Scores = Mapping[str, Mapping[str, Interval]]  # [method][score]


@dataclass(frozen=True)
class GenerationResult:
    """The whole evaluation.

    Attributes
    ----------
    scores, versus
        Mean over types; and of the generated cells minus each other method, paired over the same
        resamples of the real cells.
    per_type
        ``[type][method][score]``.
    described
        ``[type][method]``, "held_out" among them: median genes a cell, share of zeros.
    own_and_other
        Pearson's r of the means of generated cells of a type with real ones of every type.
    means
        Per type the means of the judged genes, real and generated, for the drawing.
    """

    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    generator: Mapping[str, Any]
    scores: Scores
    versus: Scores
    per_type: Mapping[str, Mapping[str, Mapping[str, float]]]
    described: Mapping[str, Mapping[str, Mapping[str, float]]]
    own_and_other: Mapping[str, Mapping[str, float]]
    means: Mapping[str, tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]] = field(
        repr=False
    )

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(self.per_type)

    @property
    def rival(self) -> str:
        """The baseline that is best by the first score."""
        return self.best(PRIMARY, among=RIVALS)

    def best(self, score: str, *, among: tuple[str, ...]) -> str:
        """The method that is best by a score."""
        sign = 1 if score in LOWER_IS_BETTER else -1
        return min(among, key=lambda method: sign * self.scores[method][score].value)

    @property
    def verdict(self) -> str:
        """Who is nearer to real cells, by how much, and whether the difference is clear."""
        ours, theirs = (self.scores[m][PRIMARY].value for m in (GENERATED, self.rival))
        gap = self.versus[self.rival][PRIMARY]
        name = NAMES[self.rival]
        found = f"difference {gap.value:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f}"
        ceiling = f"Real cells against real cells have {self.scores['real'][PRIMARY].value:.4f}."
        if gap.low <= 0 <= gap.high:
            return (
                f"No clear winner: generated cells (MMD² {ours:.4f}) and the best baseline, "
                f"{name} ({theirs:.4f}), are as far from real cells as each other ({found}). "
                f"{ceiling}"
            )
        if gap.value < 0:
            return (
                f"Generated cells win: MMD² from real cells {ours:.4f} against {theirs:.4f} of the "
                f"best baseline, {name} ({found}). {ceiling}"
            )
        return (
            f"The best baseline, {name}, wins: MMD² from real cells {theirs:.4f} against "
            f"{ours:.4f} of the generated cells ({found}). {ceiling}"
        )

    @property
    def n_own_first(self) -> int:
        """Types whose generated means correlate best with the real ones of that very type."""
        return sum(
            max(row, key=lambda t: row[t]) == label for label, row in self.own_and_other.items()
        )

    @property
    def by_type(self) -> str:
        """Whether a generated type is nearest to its own real type."""
        if len(self.types) < 2:
            return f"One type was generated ({', '.join(self.types)}): none to confuse it with."
        return (
            f"Of {self.n_own_first} of {len(self.types)} generated types, the gene means correlate "
            "best with the real cells of that very type."
        )

    @property
    def by_other_scores(self) -> str:
        """Which of the generated cells and the baselines each of the other scores puts first."""
        first: dict[str, list[str]] = {}
        for score in SCORES:
            if score != PRIMARY and math.isfinite(self.scores[GENERATED][score].value):
                best = self.best(score, among=(GENERATED, *RIVALS))
                first.setdefault(NAMES[best], []).append(HEADINGS[score])
        return "By " + "; by ".join(f"{', '.join(by)}: {name}" for name, by in first.items()) + "."

    def typical(self, method: str) -> dict[str, float]:
        """Genes a cell and share of zeros, the mean over types."""
        found = [self.described[label][method] for label in self.types]
        return {key: float(np.mean([one[key] for one in found])) for key in found[0]}

    def table(self) -> str:
        """The verdict, what was judged, all scores; * marks the best of what is to be ranked."""
        best = {score: self.best(score, among=(GENERATED, *RIVALS)) for score in SCORES}
        lines = [
            f"{self.verdict} {self.by_type} {self.by_other_scores}",
            self._judged(),
            "",
            _row("", *HEADINGS.values(), "genes", "zeros"),
        ]
        for method, scores in self.scores.items():
            shown = [_shown(scores[s].value, best[s] == method, s) for s in SCORES]
            lines.append(_row(NAMES[method], *shown, *self._typical(method)))
        blank = [""] * len(SCORES)
        lines.append(_row("(held-out real cells)", *blank, *self._typical("held_out")))
        return "\n".join(lines)

    def _typical(self, method: str) -> tuple[str, str]:
        found = self.typical(method)
        return f"{found['genes']:,.0f} ", f"{found['zero_share']:.3f} "

    def _judged(self) -> str:
        found = self.data
        n_cells = sum(found["cells_per_type"].values())
        left_out = found["left_out"]
        note = f" Not judged: {'; '.join(f'{k} ({v})' for k, v in left_out.items())}." * bool(
            left_out
        )
        n_empty = found["generated_cells_without_expression"]
        note += f" {n_empty:,} generated cells express nothing and are not judged." * bool(n_empty)
        return (
            f"{n_cells:,} generated cells of {len(self.types)} types against as many held-out real "
            f"cells of {found['real']}, {found['judged_genes']:,} of {found['shared_genes']:,} "
            f"shared genes.{note}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "verdict": self.verdict,
            "by_type": self.by_type,
            "by_other_scores": self.by_other_scores,
            "primary": PRIMARY,
            "lower_is_better": list(LOWER_IS_BETTER),
            "baselines": list(RIVALS),
            "methods": NAMES,
            "data": dict(self.data),
            "settings": dict(self.settings),
            "generator": dict(self.generator),
            "scores": {m: _plain(found) for m, found in self.scores.items()},
            "generated_minus_method": {m: _plain(found) for m, found in self.versus.items()},
            "per_type": {t: {m: dict(f) for m, f in by.items()} for t, by in self.per_type.items()},
            "described": {t: dict(by) for t, by in self.described.items()},
            "own_and_other": {t: dict(row) for t, row in self.own_and_other.items()},
            "types_nearest_to_their_own": self.n_own_first,
        }


def _plain(found: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(interval) for name, interval in found.items()}


def _shown(value: float, is_best: bool, score: str) -> str:
    if not math.isfinite(value):
        return "- "
    return f"{value:.{4 if score == PRIMARY else 3}f}{'*' if is_best else ' '}"


def _row(method: str, *values: str) -> str:
    return f"{method:<28}" + "".join(f"{value:>15}" for value in values)
