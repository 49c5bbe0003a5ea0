"""Labels, evaluations and training records -> the report's charts, one at a time.

in   adata.obs columns, an Evaluation, the columns of a run's metrics
out  matplotlib Axes; nothing is shown or saved
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from scfm.errors import ConfigError, LabelError
from scfm.evaluate import figures, typing_figures
from scfm.evaluate.celltype_result import CelltypeResult
from scfm.evaluate.results import Evaluation


def confusion(
    adata: AnnData, *, label_key: str, predicted_key: str = "scfm_cell_type", ax: Axes | None = None
) -> Axes:
    """Where the cells of each label in ``obs[label_key]`` go in ``obs[predicted_key]``.

    Cells without a true label are left out. Raises LabelError where a column is absent or no cell
    has a label.
    """
    for key in (label_key, predicted_key):
        if key not in adata.obs:
            columns = ", ".join(map(str, adata.obs.columns)) or "none"
            raise LabelError(f"adata.obs has no column '{key}'. Wanted: one of: {columns}.")
    is_labelled = adata.obs[label_key].notna().to_numpy()
    if not is_labelled.any():
        raise LabelError(f"No cell has a label in adata.obs['{label_key}'].")
    truth = adata.obs[label_key].to_numpy()[is_labelled].astype(str)
    given = adata.obs[predicted_key].astype(object).fillna(figures.UNKNOWN)
    given = given.to_numpy()[is_labelled].astype(str)
    rows = sorted(set(truth))
    extra = sorted(set(given) - set(rows), key=lambda name: (name == figures.UNKNOWN, name))
    columns = [*rows, *extra]
    if ax is None:
        size = (0.55 * len(columns) + 1.6, 0.5 * len(rows) + 1.6)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    figures.confusion(ax, figures.confusion_counts(truth, given, rows, columns), rows, columns)
    return ax


def method_scores(evaluation: Evaluation, *, ax: Axes | None = None) -> Axes:
    """Macro-F1 of every method with its 95 % interval, best first, the model in colour."""
    methods = sorted(evaluation.methods, key=lambda method: -method.macro_f1.value)
    if ax is None:
        size = (5, 0.7 + 0.5 * len(methods))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    figures.intervals(
        ax,
        [method.name for method in methods],
        [method.macro_f1 for method in methods],
        highlight=[method.kind for method in methods].index("model"),
    )
    return ax


def reliability(
    result: CelltypeResult, *, method: str | None = None, ax: Axes | None = None
) -> Axes:
    """Share of cells that are right against how sure a method was, a dot a bin of cells.

    ``method`` is a key of ``result.calibration``; None: the model judged. Raises ConfigError for
    one that is not there.
    """
    key = result.evaluation.methods[0].key if method is None else method
    if key not in result.calibration:
        raise ConfigError(f"No method '{key}'; there are {', '.join(result.calibration)}.")
    ax = ax if ax is not None else plt.subplots(figsize=(3.6, 3.6), layout="constrained")[1]
    typing_figures.reliability(ax, result.calibration[key].bins)
    ax.set_title(result.evaluation.method(key).name, fontsize=10, parse_math=False)
    return ax


def per_class(result: CelltypeResult, *, ax: Axes | None = None) -> Axes:
    """F1 of every label: the model in colour, the other methods as grey dots."""
    labels = list(result.evaluation.labels)
    if ax is None:
        size = (5, 0.8 + 0.35 * len(labels))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    found = {
        method.name: [method.per_class[label].f1 for label in labels]
        for method in result.evaluation.methods
    }
    typing_figures.per_class(ax, found, labels)
    return ax


def loss_curve(
    step: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    validation_loss: Sequence[float] | np.ndarray | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Training loss by step; ``validation_loss`` is NaN at steps without one."""
    ax = ax if ax is not None else plt.subplots(figsize=(5, 3.2), layout="constrained")[1]
    validation = None if validation_loss is None else (step, validation_loss)
    figures.loss_curve(ax, step, loss, validation)
    return ax
