"""How far a score could be off by the luck of which cells were sampled: bootstrap over query cells.

in   true labels and several methods' predictions for the same cells
out  intervals of each method's scores, and of differences between methods on the same resamples

The interval speaks for more cells of these same samples, and says nothing of other donors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num, Shaped

from scfm.evaluate.results import Interval
from scfm.metrics import (
    accuracy_of,
    balanced_accuracy_of,
    codes_of,
    confusion_matrix,
    labels_in,
    macro_f1_of,
)

SCORES = {
    "macro_f1": macro_f1_of,
    "accuracy": accuracy_of,
    "balanced_accuracy": balanced_accuracy_of,
}
LEVEL = 95.0  # percent
DRAWN_AT_ONCE = 1 << 23  # resampled counts held at a time, 64 MB


@dataclass(frozen=True)
class ScoreDraws:
    """One score of one method: on the cells as they are, and on each resample."""

    value: float
    draws: Float[np.ndarray, " resample"]

    def interval(self) -> Interval:
        """The value with the middle 95 % of the resamples.

        Source: percentile bootstrap, Efron & Tibshirani 1993, ch. 13.
        """
        low, high = np.percentile(self.draws, [50 - LEVEL / 2, 50 + LEVEL / 2])
        return Interval(value=self.value, low=float(low), high=float(high))

    def minus(self, other: "ScoreDraws") -> Interval:
        """This score minus the other's, paired: both are taken on the same resamples."""
        return ScoreDraws(self.value - other.value, self.draws - other.draws).interval()


def bootstrap_scores(
    truth: Shaped[np.ndarray, " cell"],
    predictions: Mapping[str, Shaped[np.ndarray, " cell"]],
    *,
    n_bootstrap: int = 1_000,
    seed: int = 0,
) -> dict[str, dict[str, ScoreDraws]]:
    """Every score in ``SCORES`` of every method, with its resamples: ``[method][score]``.

    Resampling n cells with replacement draws a multinomial over the distinct (truth, prediction
    of each method) combinations, so the work grows with those few and not with the cells. It is the
    same distribution, and the order of the cells cannot matter.
    """
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap must be at least 1, got {n_bootstrap}")
    labels = labels_in(truth)
    observed = {key: confusion_matrix(truth, p, labels) for key, p in predictions.items()}
    columns = [codes_of(truth, labels), *(codes_of(p, labels) for p in predictions.values())]
    combinations, n_cells = np.unique(np.stack(columns, 1), axis=0, return_counts=True)

    resampled = _resampled_confusions(combinations, n_cells, len(labels), n_bootstrap, seed)
    return {
        key: {
            name: ScoreDraws(float(score(observed[key])), score(confusions))
            for name, score in SCORES.items()
        }
        for key, confusions in zip(predictions, resampled, strict=True)
    }


def _resampled_confusions(
    combinations: Num[np.ndarray, "combination column"],
    n_cells: Num[np.ndarray, " combination"],
    n_labels: int,
    n_bootstrap: int,
    seed: int,
) -> list[Float[np.ndarray, "resample label label+1"]]:
    """One stack of confusion matrices a method, all from the same draws."""
    rng = np.random.default_rng(seed)
    total, n_methods = int(n_cells.sum()), combinations.shape[1] - 1
    n_entries = n_labels * (n_labels + 1)
    entry = combinations[:, :1] * (n_labels + 1) + combinations[:, 1:]
    stacks = np.empty((n_methods, n_bootstrap, n_entries))
    step = max(1, DRAWN_AT_ONCE // len(combinations))
    for start in range(0, n_bootstrap, step):
        rows = slice(start, min(start + step, n_bootstrap))
        draws = rng.multinomial(total, n_cells / total, size=rows.stop - start)
        for method in range(n_methods):
            for at in range(n_entries):
                stacks[method, rows, at] = draws[:, entry[:, method] == at].sum(1)
    return list(stacks.reshape(n_methods, n_bootstrap, n_labels, n_labels + 1))
