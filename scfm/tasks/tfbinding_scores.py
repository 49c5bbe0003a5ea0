"""Logits and labels -> how well each TF's bound windows are ranked.

in   logits and labels (n, task); -1 is left out
out  AUPR, AUROC and prevalence a task, and their means over tasks that can be judged
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from sklearn.metrics import average_precision_score, roc_auc_score


@dataclass(frozen=True)
class TaskScores:
    """Scores a task; not a number where a task has not both bound and unbound windows.

    AUPR is average precision. Oracle: scikit-learn.
    """

    tasks: tuple[str, ...]
    aupr: Float[np.ndarray, " task"]
    auroc: Float[np.ndarray, " task"]
    prevalence: Float[np.ndarray, " task"]
    n_known: Int[np.ndarray, " task"]

    @property
    def n_judged(self) -> int:
        """Tasks that the means are over."""
        return int(np.isfinite(self.aupr).sum())

    @property
    def mean_aupr(self) -> float:
        return _mean(self.aupr)

    @property
    def mean_auroc(self) -> float:
        return _mean(self.auroc)

    @property
    def mean_prevalence(self) -> float:
        """Of the tasks that are judged: the AUPR of guessing."""
        return _mean(np.where(np.isfinite(self.aupr), self.prevalence, np.nan))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: None where there is no number."""
        columns = (self.aupr, self.auroc, self.prevalence, self.n_known)
        rows = zip(self.tasks, *columns, strict=True)
        return {
            "aupr": _json(self.mean_aupr),
            "auroc": _json(self.mean_auroc),
            "prevalence": _json(self.mean_prevalence),
            "n_tasks_judged": self.n_judged,
            "tasks": {
                task: {
                    "aupr": _json(aupr),
                    "auroc": _json(auroc),
                    "prevalence": _json(prevalence),
                    "n_known": int(n_known),
                }
                for task, aupr, auroc, prevalence, n_known in rows
            },
        }


def task_scores(
    scores: Num[np.ndarray, "window task"],
    labels: Int[np.ndarray, "window task"],
    tasks: tuple[str, ...],
) -> TaskScores:
    """How well scores rank known labels, task by task."""
    found = np.full((3, len(tasks)), np.nan)
    n_known = (labels >= 0).sum(0)
    for task in range(len(tasks)):
        is_known = labels[:, task] >= 0
        truth, own = labels[is_known, task], scores[is_known, task]
        if not len(truth):
            continue
        found[2, task] = truth.mean()
        if 0 < truth.mean() < 1:
            found[:2, task] = average_precision_score(truth, own), roc_auc_score(truth, own)
    aupr, auroc, prevalence = found
    return TaskScores(tasks, aupr, auroc, prevalence, n_known)


def _mean(values: Float[np.ndarray, " task"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
