"""scfm.tl.score: what was said of cells against labels that are known.

in   obs columns: true labels, the labels and confidence that `scfm.tl.annotate` wrote
out  LabelReport; the same in uns["scfm"]
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.errors import LabelError
from scfm.evaluate.resampling import Resampling, ece_draws, label_draws
from scfm.evaluate.results import Interval
from scfm.metrics import confusion_matrix, label_scores_of, labels_in

if TYPE_CHECKING:
    from anndata import AnnData

UNKNOWN = "unknown"
NAMES_SHOWN = 5


@dataclass(frozen=True)
class LabelReport:
    """How right the labels are, each score with its 95 % interval.

    Attributes
    ----------
    macro_f1, accuracy, balanced_accuracy
        Over all labelled cells; "unknown" is wrong, as every other label is that is not the true
        one (`scfm.metrics`).
    calibration_error
        Expected calibration error of the confidence, over the cells that got a name; None where
        there is no confidence, or no cell got a name.
    unknown
        Share of the labelled cells that are called unknown.
    n_cells, n_unlabelled
        Cells with a true label, which are judged, and without.
    per_class
        precision, recall, f1 and n_cells of each true label.
    intervals
        What the intervals are over.
    """

    macro_f1: Interval
    accuracy: Interval
    balanced_accuracy: Interval
    calibration_error: Interval | None
    unknown: float
    n_cells: int
    n_unlabelled: int
    per_class: pd.DataFrame = field(repr=False)
    intervals: str

    def __str__(self) -> str:
        lines = [
            f"macro-F1 {_text(self.macro_f1)}, accuracy {_text(self.accuracy)}, balanced accuracy "
            f"{_text(self.balanced_accuracy)} on {self.n_cells:,} labelled cells; "
            f"{self.unknown:.1%} of them are called unknown."
        ]
        if self.calibration_error is not None:
            lines.append(f"Expected calibration error {_text(self.calibration_error)}.")
        return "\n".join([*lines, self.intervals, self.per_class.round(3).to_string()])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as uns and JSON hold it."""
        scores = {
            name: asdict(value) for name, value in vars(self).items() if isinstance(value, Interval)
        }
        counts = {name: getattr(self, name) for name in ("unknown", "n_cells", "n_unlabelled")}
        # by column: a label may hold a slash, which no key of an h5ad may
        table = self.per_class.reset_index()
        per_class = {name: table[name].to_list() for name in table}
        return {**scores, **counts, "per_class": per_class, "intervals": self.intervals}


def score(
    adata: "AnnData",
    *,
    label_key: str,
    key: str = "scfm",
    donor_key: str | None = None,
    n_bootstrap: int = 1_000,
    seed: int = 0,
) -> LabelReport:
    """Judge annotated cells by labels that are known. Counts are not looked at.

    Parameters
    ----------
    label_key
        obs column of the true labels, in the words of the annotation; cells without one are left
        out and counted.
    key
        What ``annotate`` was given as ``key_added``: ``obs[f"{key}_cell_type"]`` is judged, and
        ``obs[f"{key}_confidence"]`` where it is there.
    donor_key
        obs column of donors, which intervals are then over; None: over cells, which is too narrow
        for another donor's.

    Returns
    -------
    The report; ``uns["scfm"][f"{key}_score"]`` keeps it as plain data.

    Raises LabelError where a column is absent, no cell is labelled, or no given label is among the
    true ones.
    """
    obs = adata.obs
    truth, given = _column(obs, label_key, key), _column(obs, f"{key}_cell_type", key)
    donors = None if donor_key is None else _column(obs, donor_key, key).astype(str).to_numpy()
    is_labelled = truth.notna().to_numpy()
    if not is_labelled.any():
        raise LabelError(f"obs['{label_key}'] labels none of {len(obs):,} cells. Name another.")
    true = truth[is_labelled].astype(str).to_numpy(dtype=object)
    called = given[is_labelled].astype(object).fillna(UNKNOWN).astype(str).to_numpy(dtype=object)
    _require_common(true, called, label_key)
    resampling = Resampling.of(
        len(true),
        None if donors is None else donors[is_labelled],
        over=donor_key or "cells",
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    labels = labels_in(true)
    scores = label_draws(true, called, labels, resampling)
    confidence = obs.get(f"{key}_confidence")
    found = LabelReport(
        **{name: draws.interval() for name, draws in scores.items()},
        calibration_error=None
        if confidence is None
        else _calibration_error(true, called, np.asarray(confidence)[is_labelled], resampling),
        unknown=float((called == UNKNOWN).mean()),
        n_cells=len(true),
        n_unlabelled=int((~is_labelled).sum()),
        per_class=_table(true, called, labels),
        intervals=resampling.sentence,
    )
    _keep(adata, f"{key}_score", {"label_key": label_key, **found.to_dict()})
    return found


def _column(obs: Any, name: str, key: str) -> Any:
    if name not in obs:
        known = ", ".join(map(str, obs.columns)) or "none"
        made = (
            f" Annotate first: scfm.tl.annotate(adata, model, ..., key_added='{key}')."
            if name == f"{key}_cell_type"
            else ""
        )
        raise LabelError(f"obs has no column '{name}'; it has {known}.{made}")
    return obs[name]


def _require_common(true: np.ndarray, called: np.ndarray, label_key: str) -> None:
    """LabelError where the two columns speak different languages."""
    named = sorted(set(called) - {UNKNOWN})
    if named and not set(named) & set(true):
        raise LabelError(
            f"None of the given labels ({_some(named)}) is one of obs['{label_key}'] "
            f"({_some(sorted(set(true)))}). Put both in the same words first: "
            "scfm.tl.map_labels(adata, ...), or adata.obs[...].map({...})."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (" ..." if len(names) > NAMES_SHOWN else "")


def _calibration_error(
    true: np.ndarray, called: np.ndarray, confidence: np.ndarray, resampling: Resampling
) -> Interval | None:
    """Over the cells that got a name: of an unknown cell the likeliest name was not kept."""
    has_name = called != UNKNOWN
    if not has_name.any():
        return None
    named = Resampling.of(
        int(has_name.sum()),
        None if resampling.over == "cells" else resampling.unit[has_name],
        over=resampling.over,
        n_bootstrap=resampling.n_bootstrap,
        seed=resampling.seed,
    )
    sure = confidence[has_name].astype(np.float64)
    return ece_draws(called[has_name] == true[has_name], sure, named).interval()


def _table(true: np.ndarray, called: np.ndarray, labels: list[str]) -> pd.DataFrame:
    scores = label_scores_of(confusion_matrix(true, called, labels))
    return pd.DataFrame(scores._asdict(), index=pd.Index(labels, name="label"))


def _keep(adata: "AnnData", name: str, found: Mapping[str, Any]) -> None:
    from scfm.tools.embedding import scfm_uns  # needs torch; scores do not

    kept = {k: v for k, v in found.items() if v is not None}
    adata.uns["scfm"] = {**scfm_uns(adata), name: kept}


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
