"""What an evaluation of denoising found: metrics.json, a table, one sentence.

in   scores with intervals, by share of counts kept and method
out  text and plain data
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scfm.evaluate.profile_scores import LOWER_IS_BETTER, SCORES
from scfm.evaluate.results import Interval

MODEL = "scfm"
NAMES = {
    MODEL: MODEL,
    "no_op": "no-op (the thinned cell)",
    "neighbours": "kNN smoothing",
    "type_mean": "cell type mean",
}
PRIMARY = "mae"  # chosen before any result was seen: it counts zeros and values alike
PRIMARY_SHARE = 0.1

Scores = Mapping[str, Mapping[str, Interval]]  # [method][score]


@dataclass(frozen=True)
class ShareResult:
    """All methods at one share of the counts.

    Attributes
    ----------
    n_cells, n_empty
        Cells judged, and cells of which no count was left.
    median_counts
        Of the thinned cells.
    versus
        The model minus each baseline, paired over the same resamples.
    """

    share: float
    n_cells: int
    n_empty: int
    median_counts: float
    target_depth: str
    scores: Scores
    versus: Scores

    def best(self, score: str, *, among: tuple[str, ...] | None = None) -> str:
        """The method that is best by a score."""
        sign = 1 if score in LOWER_IS_BETTER else -1
        return min(among or tuple(self.scores), key=lambda m: sign * self.scores[m][score].value)


@dataclass(frozen=True)
class DenoisingResult:
    """The whole evaluation."""

    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    shares: tuple[ShareResult, ...]

    @property
    def primary(self) -> ShareResult:
        """The share that the first sentence speaks of: the nearest to 10 %."""
        return min(self.shares, key=lambda s: abs(math.log(s.share / PRIMARY_SHARE)))

    @property
    def verdict(self) -> str:
        """Who restores profiles best, by how much, and whether the difference is clear."""
        at = self.primary
        rival = at.best(PRIMARY, among=tuple(at.versus))
        ours, theirs = at.scores[MODEL][PRIMARY].value, at.scores[rival][PRIMARY].value
        gap = at.versus[rival][PRIMARY]
        found = f"difference {gap.value:+.3f}, 95 % interval {gap.low:+.3f} to {gap.high:+.3f}"
        where = f"At {at.share:.3g} of the counts"
        if gap.low <= 0 <= gap.high:
            return (
                f"{where} there is no clear winner between {MODEL} (MAE {ours:.3f}) and the best "
                f"baseline, {NAMES[rival]} ({theirs:.3f}; {found}, which includes zero)."
            )
        if gap.value < 0:
            return (
                f"{where} {MODEL} wins: MAE {ours:.3f} against {theirs:.3f} of the best baseline, "
                f"{NAMES[rival]} ({found})."
            )
        return (
            f"{where} the best baseline, {NAMES[rival]}, wins: MAE {theirs:.3f} against {MODEL}'s "
            f"{ours:.3f} ({found})."
        )

    @property
    def by_other_scores(self) -> str:
        """Which method each of the other scores puts first, at the same share."""
        first: dict[str, list[str]] = {}
        for score, heading in zip(SCORES, _HEADINGS, strict=True):
            if score != PRIMARY:
                first.setdefault(NAMES[self.primary.best(score)], []).append(heading)
        return "By " + "; by ".join(f"{', '.join(by)}: {name}" for name, by in first.items()) + "."

    def table(self) -> str:
        """The verdict, what was judged, and all scores; * marks the best of a share."""
        lines = [
            f"{self.verdict} {self.by_other_scores}",
            self._judged(),
            "",
            _row("share", "method", *_HEADINGS),
        ]
        for at in self.shares:
            best = {score: at.best(score) for score in SCORES}
            for method, scores in at.scores.items():
                shown = [
                    f"{scores[score].value:.3f}{'*' if best[score] == method else ' '}"
                    for score in SCORES
                ]
                lines.append(_row(f"{at.share:g}", NAMES[method], *shown))
        return "\n".join(lines)

    def _judged(self) -> str:
        found = self.data
        empty = sum(at.n_empty for at in self.shares)
        note = f" {empty:,} thinned cells had no count left and are not judged." if empty else ""
        return (
            f"{found['judged_cells']:,} of {found['cells']:,} cells of {found['name']}, "
            f"{found['judged_genes']:,} genes expressed in at least "
            f"{self.settings['min_detection']:.0%} of them; the baselines use "
            f"{found['context_cells']:,} cells.{note}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "verdict": self.verdict,
            "by_other_scores": self.by_other_scores,
            "primary": {"score": PRIMARY, "share": self.primary.share},
            "data": dict(self.data),
            "settings": dict(self.settings),
            "lower_is_better": list(LOWER_IS_BETTER),
            "methods": NAMES,
            "shares": [_share_dict(at) for at in self.shares],
        }


_HEADINGS = ("MAE", "MAE > 0", "MRE > 0", "r by cell", "r by gene")


def _row(share: str, method: str, *values: str) -> str:
    return f"{share:<6}{method:<26}" + "".join(f"{value:>11}" for value in values)


def _share_dict(at: ShareResult) -> dict[str, Any]:
    plain = {k: v for k, v in vars(at).items() if k not in ("scores", "versus")}
    return {
        **plain,
        "scores": {m: {k: _finite(v) for k, v in s.items()} for m, s in at.scores.items()},
        "model_minus_baseline": {
            m: {k: _finite(v) for k, v in s.items()} for m, s in at.versus.items()
        },
    }


def _finite(interval: Interval) -> dict[str, float | None]:
    """JSON knows no NaN: a score without a value is null."""
    return {k: v if math.isfinite(v) else None for k, v in asdict(interval).items()}
