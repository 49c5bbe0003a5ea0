"""How far a model's logits of binding can be believed: a scale and an offset for each task.

in   logits and labels (1 bound, 0 not, -1 unknown) at regions the model was not trained on
out  BindingCalibration, which turns logits into calibrated ones; calibration.json

By logistic regression of the label on the logit (Platt 1999), one task at a time. It changes no
order of regions within a task, so no AUPR; across tasks it makes probabilities comparable.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scfm.data.write import atomic_path
from scfm.errors import ModelError

FEWEST = 10  # regions of either label; with fewer a task keeps its logits
REGULARISATION = 1e4  # inverse: weak, but labels that logits separate give no infinite scale


@dataclass(frozen=True, kw_only=True)
class BindingCalibration:
    """Logits times ``scale`` plus ``offset``, per task.

    Attributes
    ----------
    facts
        What it was fitted on.
    weights_sha256
        The model it belongs to; "" for one that was never saved.
    """

    tasks: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    weights_sha256: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.tasks) == len(self.scale) == len(self.offset):
            raise ValueError(
                f"{len(self.tasks)} tasks, {len(self.scale)} scales, {len(self.offset)} offsets"
            )
        if not np.isfinite([*self.scale, *self.offset]).all():
            raise ValueError("a scale or an offset is not finite")

    @classmethod
    def none(cls, tasks: tuple[str, ...]) -> "BindingCalibration":
        """Logits as they are."""
        return cls(tasks=tasks, scale=(1.0,) * len(tasks), offset=(0.0,) * len(tasks))

    def apply(self, logits: Float[np.ndarray, "... task"]) -> Float[np.ndarray, "... task"]:
        """Calibrated logits."""
        scale, offset = (np.asarray(x, dtype=np.float32) for x in (self.scale, self.offset))
        return np.asarray(logits, dtype=np.float32) * scale + offset

    def save(self, path: str | Path) -> None:
        """As JSON. Raises OutputError."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(vars(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, path: str | Path, tasks: tuple[str, ...], weights_sha256: str = ""
    ) -> "BindingCalibration":
        """From the file that ``scfm evaluate tfbinding`` wrote.

        Raises ModelError where it is none, or that of another model.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            lists = ("tasks", "scale", "offset")
            found |= {name: tuple(found[name]) for name in lists}
            calibration = cls(**found)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{path} is no calibration of TF binding ({error}). Write one: scfm evaluate "
                "tfbinding DATA --model MODEL --out DIR makes DIR/calibration.json."
            ) from error
        is_other = weights_sha256 and calibration.weights_sha256 not in ("", weights_sha256)
        if calibration.tasks != tasks or is_other:
            raise ModelError(
                f"{path} was fitted for another model ({len(calibration.tasks)} tasks, weights "
                f"{calibration.weights_sha256[:12] or 'never saved'}). Evaluate this one."
            )
        return calibration


def fit_binding_calibration(
    logits: Float[np.ndarray, "example task"],
    labels: Int[np.ndarray, "example task"],
    tasks: tuple[str, ...],
    **facts: Any,
) -> BindingCalibration:
    """Scale and offset of every task; 1 and 0 for one of too few bound or unbound regions.

    A task whose logits order regions the wrong way round keeps them: a negative scale would hide
    that from the reader.
    """
    from sklearn.linear_model import LogisticRegression

    scale, offset = np.ones(len(tasks)), np.zeros(len(tasks))
    n_fitted = 0
    for task in range(len(tasks)):
        known = labels[:, task] >= 0
        truth = labels[known, task]
        if min((truth == 1).sum(), (truth == 0).sum()) < FEWEST:
            continue
        x = logits[known, task].astype(np.float64)[:, None]
        fitted = LogisticRegression(C=REGULARISATION).fit(x, truth)
        if fitted.coef_[0, 0] > 0:
            scale[task], offset[task] = fitted.coef_[0, 0], fitted.intercept_[0]
            n_fitted += 1
    facts |= {"n_examples": len(labels), "n_tasks_fitted": n_fitted}
    return BindingCalibration(
        tasks=tasks, scale=tuple(scale.tolist()), offset=tuple(offset.tolist()), facts=facts
    )
