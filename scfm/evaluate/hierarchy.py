"""Labels judged by where they stand in an ontology: a T cell called a lymphocyte is not all wrong.

in   true and predicted terms, one a cell ("" for unknown), an ontology
out  HierarchyScores with intervals: exact accuracy, ancestor-aware precision, recall and F1, and
     how many cells were called right but coarser

A term stands for the set of itself and all above it but the root. Precision is the share of what
was said that is true, recall the share of what is true that was said, both over all cells' sets:
hP = sum |said & true| / sum |said|, hR = sum |said & true| / sum |true|, hF their harmonic mean.
Source: Kiritchenko et al. 2006, doi:10.1007/11766247_34. Sets are larger deep in the ontology, so
cells of such types weigh more; the macro F1 is the mean over true types of each one's hF.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from scfm.data.cell_ontology import ROOT, CellOntology
from scfm.errors import LabelError
from scfm.evaluate.resampling import Resampling, one_hot
from scfm.evaluate.results import Interval

Terms = Shaped[np.ndarray, " cell"]
OUTCOMES = ("exact", "coarser", "finer", "wrong", "unknown")
N_SUMS = 3  # said and true, said, true


@dataclass(frozen=True)
class HierarchyScores:
    """Scores on the hierarchy, each with its interval.

    ``exact``, ``coarser``, ``finer``, ``wrong`` and ``unknown`` are shares of the cells and sum to
    1: the very term; one above it, so right as far as it goes; one below it, so finer than the
    truth can tell; any other; none.
    """

    n_cells: int
    exact: Interval
    coarser: Interval
    finer: Interval
    wrong: Interval
    unknown: Interval
    precision: Interval
    recall: Interval
    f1: Interval
    macro_f1: Interval

    def __str__(self) -> str:
        return (
            f"{self.n_cells:,} cells: {self.exact.value:.1%} exact, {self.coarser.value:.1%} right "
            f"but coarser, {self.finer.value:.1%} finer than the truth, {self.wrong.value:.1%} "
            f"wrong, {self.unknown.value:.1%} unknown; hierarchical F1 {self.f1.value:.3f} "
            f"({self.f1.low:.3f} to {self.f1.high:.3f}), macro {self.macro_f1.value:.3f}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def hierarchy_scores(
    truth: Terms,
    predicted: Terms,
    ontology: CellOntology,
    *,
    groups: Shaped[np.ndarray, " cell"] | None = None,
    over: str = "cells",
    n_bootstrap: int = 1_000,
    seed: int = 0,
) -> HierarchyScores:
    """Score predicted terms; intervals over ``groups`` (donors) where there are several, or cells.

    Raises LabelError where a true or predicted term is none of the ontology, or a cell has no true
    one. A predicted term of "" is unknown.
    """
    true_terms, true = _coded(truth, "true", ontology)
    said_terms, said = _coded(predicted, "predicted", ontology)
    if len(true) != len(said) or not len(true):
        raise LabelError(
            f"{len(true):,} true and {len(said):,} predicted terms; wanted one of each a cell."
        )
    if "" in true_terms:
        n = int((true == true_terms.index("")).sum())
        raise LabelError(f"{n:,} cells have no true term. Leave them out before scoring.")
    sets, outcome = _pairs(true_terms, said_terms, ontology)
    resampling = Resampling.of(len(true), groups, over=over, n_bootstrap=n_bootstrap, seed=seed)
    shares = one_hot(outcome[true, said], len(OUTCOMES))
    found: dict[str, Interval] = {
        name: resampling.draws(shares, lambda sums, at=at: sums[:, at] / sums.sum(1)).interval()
        for at, name in enumerate(OUTCOMES)
    }
    sums = np.zeros((len(true), len(true_terms), N_SUMS))
    sums[np.arange(len(true)), true] = sets[true, said]
    tally = sums.reshape(len(true), -1)
    for name, score in (("precision", _precision), ("recall", _recall), ("f1", _f1)):
        all_cells = lambda found, score=score: score(_by_type(found).sum(1))  # noqa: E731
        found[name] = resampling.draws(tally, all_cells).interval()
    found["macro_f1"] = resampling.draws(tally, _macro_f1).interval()
    return HierarchyScores(n_cells=len(true), **found)


def hierarchical_sums(truth: str, predicted: str, ontology: CellOntology) -> tuple[int, int, int]:
    """Sizes of what was said and is true, of what was said, and of what is true. "" says nothing.

    The root is left out of every set: it is said of any cell, and always right.
    """
    said = ontology.lineage(predicted) - {ROOT} if predicted else frozenset[str]()
    true = ontology.lineage(truth) - {ROOT}
    return len(said & true), len(said), len(true)


def outcome_of(truth: str, predicted: str, ontology: CellOntology) -> str:
    """What a call is worth, one of `OUTCOMES`. The root is as good as nothing said."""
    if predicted in ("", ROOT):
        return "exact" if predicted == truth else "unknown"
    if predicted == truth:
        return "exact"
    if ontology.is_a(truth, predicted):
        return "coarser"
    return "finer" if ontology.is_a(predicted, truth) else "wrong"


def _coded(
    terms: Terms, what: str, ontology: CellOntology
) -> tuple[list[str], Int[np.ndarray, " cell"]]:
    known, codes = np.unique(np.asarray(terms, dtype=object).astype(str), return_inverse=True)
    strange = [term for term in known if term and term not in ontology]
    if strange:
        raise LabelError(
            f"{len(strange)} {what} terms are none of the Cell Ontology {ontology.version}: "
            f'{", ".join(strange[:5])}. Wanted ids of terms in use (CL:0000084), "" for unknown. '
            "Map labels first: scfm.tl.map_labels(adata, KEY)."
        )
    return [str(term) for term in known], codes.astype(np.int64)


def _pairs(
    true_terms: Sequence[str], said_terms: Sequence[str], ontology: CellOntology
) -> tuple[Float[np.ndarray, "true said sum"], Int[np.ndarray, "true said"]]:
    """Sums and outcomes of every true term called every predicted one: few, whatever the cells."""
    sets = [[hierarchical_sums(t, s, ontology) for s in said_terms] for t in true_terms]
    outcome = [[OUTCOMES.index(outcome_of(t, s, ontology)) for s in said_terms] for t in true_terms]
    return np.array(sets, dtype=np.float64), np.array(outcome, dtype=np.int64)


def _by_type(sums: Float[np.ndarray, "resample flat"]) -> Float[np.ndarray, "resample type sum"]:
    return sums.reshape(len(sums), -1, N_SUMS)


def _precision(sums: Float[np.ndarray, "*any sum"]) -> Float[np.ndarray, "*any"]:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def _recall(sums: Float[np.ndarray, "*any sum"]) -> Float[np.ndarray, "*any"]:
    return sums[..., 0] / np.maximum(sums[..., 2], 1)


def _f1(sums: Float[np.ndarray, "*any sum"]) -> Float[np.ndarray, "*any"]:
    """2 hP hR / (hP + hR), which is 2 both / (said + true)."""
    return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)


def _macro_f1(sums: Float[np.ndarray, "resample flat"]) -> Float[np.ndarray, " resample"]:
    by_type = _by_type(sums)
    is_there = by_type[..., 2] > 0
    return (_f1(by_type) * is_there).sum(1) / np.maximum(is_there.sum(1), 1)
