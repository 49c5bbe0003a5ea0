"""Scores of predicted labels, each with its definition and source. Knows no file, model or method.

in   true and predicted labels, one a cell; or confusion matrices, one or a stack of them
out  scores in [0, 1]

Labels are those that occur in the truth. A prediction that is none of them ("unknown", or a label
only the reference has) is wrong, and costs its cell's true label recall; it is no class of its own.
The scores are defined on confusion matrices, so that a thousand bootstrap resamples are one call.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num, Shaped

Labels = Shaped[np.ndarray, " cell"]
Confusion = Num[np.ndarray, "*resample label label+1"]


class LabelScores(NamedTuple):
    """Scores of each label, in the confusion matrix's order of labels."""

    precision: Float[np.ndarray, "*resample label"]
    recall: Float[np.ndarray, "*resample label"]
    f1: Float[np.ndarray, "*resample label"]
    n_cells: Num[np.ndarray, "*resample label"]


def labels_in(truth: Labels) -> list[str]:
    """The labels that occur in the truth, sorted."""
    return sorted({str(label) for label in truth})


def codes_of(labels: Labels, known: list[str]) -> np.ndarray:
    """Position of each label in ``known``; ``len(known)`` where it is none of them."""
    position = {label: code for code, label in enumerate(known)}
    return np.array([position.get(str(label), len(known)) for label in labels], dtype=np.int64)


def confusion_matrix(
    truth: Labels, predicted: Shaped[np.ndarray, "..."], labels: list[str] | None = None
) -> Num[np.ndarray, "label label+1"]:
    """Cells of true label (row) called what (column); the last column is any other call.

    The first ``len(labels)`` columns are scikit-learn's ``confusion_matrix(labels=labels)``.
    Raises ValueError where the arrays differ in length, are empty, or ``labels`` misses a true one.
    """
    if len(truth) != len(predicted) or len(truth) == 0:
        raise ValueError(
            f"{len(truth):,} true and {len(predicted):,} predicted labels: "
            "wanted one of each for every cell, and at least one cell"
        )
    known = labels_in(truth) if labels is None else list(labels)
    rows, columns = codes_of(truth, known), codes_of(predicted, known)
    if rows.max() == len(known):
        raise ValueError(f"the truth holds labels that are not among {known}")
    shape = (len(known), len(known) + 1)
    cells = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    return cells.reshape(shape)


def accuracy_of(confusion: Confusion) -> Float[np.ndarray, "*resample"]:
    """Share of cells on the diagonal."""
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return np.asarray(right / confusion.sum((-2, -1)))


def label_scores_of(confusion: Confusion) -> LabelScores:
    """Precision, recall and F1 = 2 TP / (2 TP + FP + FN) of each label; 0 where one is 0 / 0.

    Source: van Rijsbergen, Information Retrieval (1979), ch. 7. Oracle: scikit-learn's
    ``precision_recall_fscore_support(zero_division=0)``.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    n_true = confusion.sum(-1)
    n_called = confusion[..., :-1].sum(-2)
    return LabelScores(
        precision=right / np.maximum(n_called, 1),
        recall=right / np.maximum(n_true, 1),
        f1=2 * right / np.maximum(n_true + n_called, 1),
        n_cells=n_true,
    )


def balanced_accuracy_of(confusion: Confusion) -> Float[np.ndarray, "*resample"]:
    """Mean recall over the labels that occur in the truth (of this resample).

    Source: Brodersen et al. 2010, doi:10.1109/ICPR.2010.764.
    """
    scores = label_scores_of(confusion)
    return _mean_over_present(scores.recall, scores.n_cells)


def macro_f1_of(confusion: Confusion) -> Float[np.ndarray, "*resample"]:
    """Mean F1 over the labels that occur in the truth (of this resample).

    The mean of the labels' F1 and not the F1 of mean precision and recall; the two differ:
    Opitz & Burst 2019, arXiv:1911.03347.
    """
    scores = label_scores_of(confusion)
    return _mean_over_present(scores.f1, scores.n_cells)


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of cells whose predicted label is the true one."""
    return float(accuracy_of(confusion_matrix(truth, predicted)))


def balanced_accuracy(truth: Labels, predicted: Labels) -> float:
    """Mean over the true labels of the share of their cells called right."""
    return float(balanced_accuracy_of(confusion_matrix(truth, predicted)))


def macro_f1(truth: Labels, predicted: Labels) -> float:
    """Mean over the true labels of their F1."""
    return float(macro_f1_of(confusion_matrix(truth, predicted)))


def expected_calibration_error(
    is_correct: Bool[np.ndarray, " cell"],
    confidence: Float[np.ndarray, " cell"],
    n_bins: int = 15,
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, by cells.

    sum over bins of (cells in bin / cells) * |accuracy in bin - mean confidence in bin|, bins
    ``(i / n, (i + 1) / n]`` with 0 in the first. Raises ValueError for a confidence outside [0, 1].
    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    if len(is_correct) != len(confidence) or len(confidence) == 0:
        raise ValueError(f"{len(is_correct):,} outcomes, {len(confidence):,} confidences")
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError("a confidence is NaN or lies outside [0, 1]")
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gap = np.bincount(bins, is_correct.astype(np.float64) - confidence, minlength=n_bins)
    return float(np.abs(gap).sum() / len(confidence))


def _mean_over_present(
    scores: Float[np.ndarray, "*resample label"], n_cells: Num[np.ndarray, "*resample label"]
) -> Float[np.ndarray, "*resample"]:
    is_present = n_cells > 0
    return np.asarray((scores * is_present).sum(-1) / is_present.sum(-1))
