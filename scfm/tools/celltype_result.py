"""What fine-tuning for cell types found, as plain data.

in   a fine-tuned model, its split, its scores on judged cells
out  a sentence, metrics.json
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scfm.evaluate.results import Evaluation
from scfm.tasks.calibration import Calibration
from scfm.tasks.celltype import FittedClassifier
from scfm.tasks.celltype_data import CelltypeSplit


@dataclass(frozen=True)
class CelltypeFinetuning:
    """A fine-tuned model, and how well it does.

    Attributes
    ----------
    model
        Its folder.
    calibration
        Fitted on the validation cells.
    evaluation
        On the judged cells, beside the probe and the baselines; None where none were held out.
    """

    model: Path
    method: str
    calibration: Calibration
    split: CelltypeSplit
    fitted: FittedClassifier = field(repr=False)
    evaluation: Evaluation | None = field(repr=False)

    @property
    def verdict(self) -> str:
        """One sentence: who wins on the judged cells."""
        if self.evaluation is None:
            return "No cells were held out to be judged, so nothing is known of its quality."
        held = self.split
        how = f"groups of '{held.by}'" if held.by else "random cells (optimistic)"
        return f"{self.evaluation.verdict} Held out: {how}, {len(held.judged):,} cells."

    def to_dict(self) -> dict[str, Any]:
        """metrics.json."""
        evaluation = self.evaluation
        return {
            "verdict": self.verdict,
            "method": self.method,
            "split": self.split.to_dict(),
            "best_step": self.fitted.best_step,
            "validation_curve": [list(point) for point in self.fitted.curve],
            "probe": {
                "inverse_penalty": self.fitted.probe.inverse_penalty,
                "validation_losses": self.fitted.probe.losses,
            },
            "calibration": self.calibration.to_dict(),
            "evaluation": None if evaluation is None else evaluation.to_dict(),
        }
