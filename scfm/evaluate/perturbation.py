"""A perturbation head judged on perturbations it has not seen, beside what it must beat.

in   PerturbedCells, splits, the head fitted on each, gene embeddings
out  rows of scores: one a held-out perturbation, method and repeat
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scfm.evaluate.perturbation_baselines import (
    N_COMPONENTS,
    fit_linear,
    gene_components,
    of_measured,
    sum_features,
    unit_scores,
)
from scfm.evaluate.perturbation_scores import N_TOP, score_profile
from scfm.model.perturbation import PerturbationHead
from scfm.tasks.perturbation import predicted_profile
from scfm.tasks.perturbation_data import PerturbationSplit, PerturbedCells


def judge_split(
    cells: PerturbedCells,
    split: PerturbationSplit,
    heads: dict[str, PerturbationHead],
    embeddings: Float[np.ndarray, "vocabulary d"],
    *,
    repeat: int = 0,
) -> list[dict[str, Any]]:
    """Score ``heads`` and all baselines on the split's held-out perturbations.

    Baselines are fitted on training and validation perturbations alike: they have no use for the
    latter otherwise. All predictions start from the training control cells.
    """
    known = [*split.training, *split.validation]
    changes = baseline_changes(cells, split, known, embeddings)
    rows = []
    for name in split.held_out:
        start = control_profile(cells, split.training_controls, name)
        predicted = {key: predicted_profile(h, cells, split, name) for key, h in heads.items()}
        predicted |= {key: start + change[name] for key, change in changes.items()}
        truth = {
            "measured": cells.mean(cells.cells_of(name)),
            "start": start,
            "reference": control_profile(cells, split.held_out_controls, name),
            "top": top_genes(cells, split, name),
        }
        rows += [
            {
                "perturbation": name,
                "method": key,
                "repeat": repeat,
                "n_cells": len(cells.cells_of(name)),
                **score_profile(profile, **truth),
            }
            for key, profile in predicted.items()
        ]
    return rows


def control_profile(
    cells: PerturbedCells, controls: Int[np.ndarray, " control"], name: str
) -> Float[np.ndarray, " gene"]:
    """Mean control cell, in the batches that the perturbation's cells are from."""
    return cells.mean(controls, cells.control_weights(controls, name))


def baseline_changes(
    cells: PerturbedCells,
    split: PerturbationSplit,
    known: list[str],
    embeddings: Float[np.ndarray, "vocabulary d"],
) -> dict[str, dict[str, Float[np.ndarray, " gene"]]]:
    """The change each baseline predicts for each held-out perturbation: ``[method][name]``."""
    controls = split.training_controls
    changes = np.stack(
        [cells.mean(cells.cells_of(n)) - control_profile(cells, controls, n) for n in known]
    )
    n_genes, ours, theirs = len(cells.genes), cells.targets_of(known), split.held_out
    components = gene_components(np.vstack([changes, np.zeros(n_genes)]))
    tables = {
        "linear_genes": of_measured(components, cells.genes, len(embeddings)),
        "linear_embeddings": _embedding_scores(embeddings),
    }
    found = {
        "no_change": {name: np.zeros(n_genes) for name in theirs},
        "mean_change": {name: changes.mean(0) for name in theirs},
    }
    for key, table in tables.items():
        linear = fit_linear(changes, sum_features(table, ours), components)
        asked = sum_features(table, cells.targets_of(list(theirs)))
        found[key] = {n: linear.predict(p) for n, p in zip(theirs, asked, strict=True)}
    return found


def _embedding_scores(
    embeddings: Float[np.ndarray, "vocabulary d"],
) -> Float[np.ndarray, "vocabulary k"]:
    """Principal components of the embeddings of all genes of the vocabulary."""
    scale = embeddings.std(0)
    return unit_scores(embeddings / np.where(scale > 0, scale, 1.0), N_COMPONENTS)


def top_genes(
    cells: PerturbedCells, split: PerturbationSplit, name: str, n: int = N_TOP
) -> Int[np.ndarray, " top"]:
    """Columns of the genes that differ most between a perturbation's cells and control cells.

    Welch's t-test on log1p(cp10k) against the held-out control cells, by absolute score: scanpy's
    ``rank_genes_groups(method="t-test")``.
    """
    from scipy.stats import ttest_ind

    perturbed, control = (
        cells.dense(chosen).astype(np.float64)
        for chosen in (cells.cells_of(name), split.held_out_controls)
    )
    varies = (perturbed.var(0) + control.var(0)) > 0
    score = np.zeros(perturbed.shape[1])
    found: Any = ttest_ind(perturbed[:, varies], control[:, varies], equal_var=False)
    score[varies] = found.statistic
    return np.argsort(-np.abs(score), kind="stable")[:n]
