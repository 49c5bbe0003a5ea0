"""How far a reference's answers can be trusted, from its own cells alone.

in   embeddings, labels, depths and donors of its cells
out  a ProbabilityCalibration for each way of voting

The cells are dealt to folds, by donor where donors are named; each fold is answered by a reference
made of the others. No cell of any query has a part in it.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int, Shaped

from scfm.errors import LabelError
from scfm.evaluate.celltype_protocol import inner_folds, on_classes
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig
from scfm.tasks.probability_calibration import (
    LEAST_THRESHOLD,
    ProbabilityCalibration,
    fit_probability_calibration,
)
from scfm.tasks.prototypes import PrototypeClassifier
from scfm.tasks.reference import VOTES
from scfm.tasks.type_probabilities import TypeProbabilities

N_FOLDS = 5
MOST_ANSWERED = 10_000  # cells that calibration is fitted on, the same share of every fold


def calibrate_votes(
    embedding: Float[np.ndarray, "cell d"],
    labels: Shaped[np.ndarray, " cell"],
    depth: Float[np.ndarray, " cell"],
    donors: Shaped[np.ndarray, " cell"] | None,
    config: NeighbourConfig,
    *,
    precision: float,
    seed: int,
) -> dict[str, ProbabilityCalibration]:
    """Temperature and threshold of "unknown"; plain ones where no fold leaves two labels to learn.

    The threshold is the lowest at which ``precision`` of the named cells are right, and at least
    0.5.
    """
    if donors is not None and len(set(donors.tolist()) - {""}) < 2:
        donors = None
    answers: dict[str, list[TypeProbabilities]] = {way: [] for way in VOTES}
    truth: list[np.ndarray] = []
    folds = inner_folds(labels, donors, N_FOLDS, seed)
    for fold in folds:
        asked = some_of(fold.test, MOST_ANSWERED // len(folds), seed)
        try:
            voters = NeighbourClassifier.fit(
                embedding[fold.train], labels[fold.train], config, depth=depth[fold.train]
            )
        except LabelError:  # too few cells of every label are left
            continue
        if len(voters.classes) < 2 or not len(asked):
            continue
        ways = {"neighbours": voters, "prototypes": PrototypeClassifier.of(voters)}
        for way, classifier in ways.items():
            answers[way].append(classifier.probabilities(embedding[asked], depth[asked]))
        truth.append(labels[asked])
    if not truth:
        return {way: ProbabilityCalibration() for way in VOTES}
    by = "cells" if donors is None else "donors"
    return {
        way: _floored(on_classes(found), np.concatenate(truth), precision, by)
        for way, found in answers.items()
    }


def some_of(cells: Int[np.ndarray, " cell"], most: int, seed: int) -> Int[np.ndarray, " some"]:
    """At most so many of the cells, drawn at random, in their order."""
    if len(cells) <= most:
        return cells
    return np.sort(np.random.default_rng([seed, len(cells)]).choice(cells, most, replace=False))


def _floored(
    found: TypeProbabilities, truth: Shaped[np.ndarray, " cell"], precision: float, by: str
) -> ProbabilityCalibration:
    fitted = fit_probability_calibration(found, truth, precision)
    facts = {**fitted.facts, "held_out": by}
    return replace(fitted, threshold=max(fitted.threshold, LEAST_THRESHOLD), facts=facts)
