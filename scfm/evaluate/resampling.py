"""How far a score could be off by the luck of who was sampled: bootstrap over donors, or cells.

in   tallies: what each cell adds to the sums that a score is made of
out  ScoreDraws: the score as it is and on each resample, the same resamples for every score

A score of sums (a confusion matrix, bins of confidence, counts at each rank) needs no cell again
once the sums of every donor are known. Cells of one donor are alike, so where donors are named they
are drawn whole: an interval over cells would speak for more cells of the same donors only.
Source: cluster bootstrap, Davison & Hinkley 1997, ch. 3.8.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int, Num, Shaped

from scfm.evaluate.intervals import SCORES, ScoreDraws
from scfm.metrics import codes_of

KEPT_WEIGHTS = 1 << 25  # resamples x units of which the weights stay in memory, 64 MB
DRAWN_AT_ONCE = 1 << 22
FEW_GROUPS = 10  # donors below which an interval over them is itself uncertain
N_BINS = 15


@dataclass(frozen=True)
class Resampling:
    """Who is drawn with replacement, and how often.

    Attributes
    ----------
    unit
        Number of the donor (or cell) that each cell belongs to.
    over
        What a unit is: "cells", or the obs column that names them.
    """

    unit: Int[np.ndarray, " cell"] = field(repr=False)
    n_units: int
    over: str
    n_bootstrap: int
    seed: int

    @classmethod
    def of(
        cls,
        n_cells: int,
        groups: Shaped[np.ndarray, " cell"] | None = None,
        *,
        over: str = "cells",
        n_bootstrap: int = 1_000,
        seed: int = 0,
    ) -> "Resampling":
        """Over the groups where there are at least two, else over cells."""
        if n_bootstrap < 1:
            raise ValueError(f"n_bootstrap must be at least 1, got {n_bootstrap}")
        if groups is not None:
            names, unit = np.unique(np.asarray(groups).astype(str), return_inverse=True)
            if len(names) > 1:
                return cls(unit.astype(np.int64), len(names), over, n_bootstrap, seed)
        return cls(np.arange(n_cells), n_cells, "cells", n_bootstrap, seed)

    @property
    def sentence(self) -> str:
        """What the intervals are over, for a reader."""
        if self.over == "cells":
            return (
                f"Intervals come from {self.n_bootstrap:,} resamples of the cells: no donors were "
                "named, or there is only one, so they leave out how donors differ and are too "
                "narrow for another donor's cells."
            )
        few = ", too few for intervals one can lean on" if self.n_units < FEW_GROUPS else ""
        return (
            f"Intervals come from {self.n_bootstrap:,} resamples of the {self.n_units} groups of "
            f"'{self.over}', each drawn whole{few}."
        )

    def draws(
        self,
        tally: Num[np.ndarray, "cell sum"] | sp.csr_matrix,
        score: Callable[[Float[np.ndarray, "resample sum"]], Float[np.ndarray, " resample"]],
    ) -> ScoreDraws:
        """``score`` of the sums of ``tally`` over all cells, and over each resample's."""
        per_unit = self._membership @ sp.csr_matrix(tally, dtype=np.float64)
        value = float(score(np.asarray(per_unit.sum(0)).reshape(1, -1))[0])
        found = [score(np.asarray((per_unit.T @ w.T).T)) for w in self.weights()]
        return ScoreDraws(value, np.concatenate(found))

    @cached_property
    def _membership(self) -> sp.csr_matrix:
        n_cells = len(self.unit)
        ones = np.ones(n_cells)
        return sp.csr_matrix((ones, (self.unit, np.arange(n_cells))), (self.n_units, n_cells))

    def weights(self) -> Iterator[Num[np.ndarray, "resample unit"]]:
        """How often each unit was drawn, some resamples at a time; every call gives the same."""
        if self.n_bootstrap * self.n_units <= KEPT_WEIGHTS:
            yield from self._kept
        else:
            yield from self._drawn()

    @cached_property
    def _kept(self) -> list[Num[np.ndarray, "resample unit"]]:
        return list(self._drawn())

    def _drawn(self) -> Iterator[Num[np.ndarray, "resample unit"]]:
        rng = np.random.default_rng(self.seed)
        even = np.full(self.n_units, 1 / self.n_units)
        step = max(1, DRAWN_AT_ONCE // self.n_units)
        for start in range(0, self.n_bootstrap, step):
            n = min(step, self.n_bootstrap - start)
            yield rng.multinomial(self.n_units, even, size=n).astype(np.int16)


def label_draws(
    truth: Shaped[np.ndarray, " cell"],
    predicted: Shaped[np.ndarray, " cell"],
    labels: list[str],
    resampling: Resampling,
) -> dict[str, ScoreDraws]:
    """Macro-F1, accuracy and balanced accuracy, each with its resamples."""
    shape = (len(labels), len(labels) + 1)
    entry = codes_of(truth, labels) * shape[1] + codes_of(predicted, labels)
    tally = one_hot(entry, shape[0] * shape[1])
    return {
        name: resampling.draws(tally, lambda sums, of=of: of(sums.reshape(-1, *shape)))
        for name, of in SCORES.items()
    }


def ece_draws(
    is_correct: Bool[np.ndarray, " cell"],
    confidence: Float[np.ndarray, " cell"],
    resampling: Resampling,
    n_bins: int = N_BINS,
) -> ScoreDraws:
    """Expected calibration error with its resamples, as scfm.metrics defines it."""
    bins = confidence_bins(confidence, n_bins)
    gap = one_hot(bins, n_bins).multiply((is_correct - confidence)[:, None])
    tally = sp.csr_matrix(sp.hstack([gap, np.ones((len(bins), 1))]))
    return resampling.draws(tally, lambda sums: np.abs(sums[:, :-1]).sum(1) / sums[:, -1])


def auroc_draws(
    is_positive: Bool[np.ndarray, " cell"],
    score: Float[np.ndarray, " cell"],
    resampling: Resampling,
) -> ScoreDraws:
    """How often a positive cell scores above another, ties counting half, with its resamples.

    NaN where there are no cells of one of the two kinds; resamples without either are left out.
    Source: Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747. Oracle: scikit-learn's
    ``roc_auc_score``.
    """
    _, rank = np.unique(score, return_inverse=True)
    n_ranks = int(rank.max(initial=-1)) + 1
    tally = one_hot(rank + n_ranks * np.asarray(is_positive, dtype=np.int64), 2 * n_ranks)

    def auroc(sums: Float[np.ndarray, "resample sum"]) -> Float[np.ndarray, " resample"]:
        others, positives = sums[:, :n_ranks], sums[:, n_ranks:]
        below = np.cumsum(others, axis=1) - others / 2
        pairs = positives.sum(1) * others.sum(1)
        won = (positives * below).sum(1)
        return np.divide(won, pairs, out=np.full(len(sums), np.nan), where=pairs > 0)

    found = resampling.draws(tally, auroc)
    exists = ~np.isnan(found.draws)
    return ScoreDraws(found.value, found.draws[exists] if exists.any() else found.draws)


def confidence_bins(
    confidence: Float[np.ndarray, " cell"], n_bins: int = N_BINS
) -> Int[np.ndarray, " cell"]:
    """Which of the equal bins ``(i / n, (i + 1) / n]`` each confidence lies in, 0 in the first."""
    return np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)


def one_hot(codes: Int[np.ndarray, " cell"], n: int) -> sp.csr_matrix:
    """A one in column ``codes[i]`` of row i."""
    n_cells = len(codes)
    return sp.csr_matrix((np.ones(n_cells), (np.arange(n_cells), codes)), (n_cells, n))
