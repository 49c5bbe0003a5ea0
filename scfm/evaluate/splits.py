"""Which cells are learned from and which are judged: whole donors or data sets, or cells at random.

in   the group of each cell, or its label; a seed
out  SplitPlan: folds of row numbers, every judged cell in exactly one, and what to say of them

Cells of one donor share its genotype, its library and its day, so a method may know a judged cell
by its neighbours from the same tube. Held-out groups ask what happens with the next donor; cells at
random ask an easier question, and the report says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from scfm.errors import LabelError

Kind = Literal["groups", "random", "reference"]


@dataclass(frozen=True)
class Fold:
    """One round: who is learned from, who is judged, which groups were held out."""

    train: Int[np.ndarray, " train"] = field(repr=False)
    test: Int[np.ndarray, " test"] = field(repr=False)
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitPlan:
    """All rounds of an evaluation.

    Attributes
    ----------
    kind
        "groups": whole groups of ``by`` are held out. "random": cells are. "reference": one set is
        learned from and another judged.
    by
        The obs column of the groups; "" without.
    notes
        Sentences on what is particular about this split.
    """

    kind: Kind
    by: str
    folds: tuple[Fold, ...]
    notes: tuple[str, ...] = ()

    @property
    def judged(self) -> Int[np.ndarray, " judged"]:
        """All judged cells, fold by fold."""
        return np.concatenate([fold.test for fold in self.folds])

    @property
    def is_optimistic(self) -> bool:
        return self.kind == "random"

    @property
    def sentence(self) -> str:
        """How the cells were split, for a reader."""
        n = len(self.folds)
        if self.kind == "groups":
            held_out = sum(len(fold.held_out) for fold in self.folds)
            return (
                f"Held out were whole groups of '{self.by}': {held_out} groups in {n} folds, no "
                "group on both sides of a fold."
            )
        if self.kind == "random":
            return (
                f"The split is random over cells ({n} folds): cells of one donor are on both "
                "sides, so these scores are optimistic about cells of a new donor."
            )
        return "All cells of the reference are learned from, all cells of the query are judged."


def hold_out_groups(
    groups: Shaped[np.ndarray, " cell"],
    labels: Shaped[np.ndarray, " cell"],
    *,
    n_folds: int,
    seed: int,
    by: str,
) -> SplitPlan:
    """Deal the groups to folds in random order, about as many groups and cells to each.

    Raises LabelError where there are fewer than two groups.
    """
    groups = np.asarray(groups).astype(str)
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        found = f"only '{names[0]}'" if len(names) else "no value at all"
        raise LabelError(
            f"Groups of '{by}' cannot be held out: the labelled cells have {found} there, and both "
            "sides need at least one. Name a column with several donors or data sets, or leave it "
            "out for a random split, which is optimistic."
        )
    n_used = min(n_folds, len(names))
    notes = [] if n_used == n_folds else [f"'{by}' has {len(names)} groups, so {n_used} folds."]
    fold_of = _dealt(np.bincount(codes), n_used, seed)[codes]
    folds = tuple(
        Fold(
            np.flatnonzero(fold_of != i),
            np.flatnonzero(fold_of == i),
            tuple(np.unique(groups[fold_of == i]).tolist()),
        )
        for i in range(n_used)
    )
    notes += unlearnable(folds, labels)
    return SplitPlan("groups", by, folds, tuple(notes))


def _dealt(sizes: Int[np.ndarray, " group"], n_folds: int, seed: int) -> np.ndarray:
    """Fold of each group: the largest first, each to the fold with fewest groups, then cells."""
    order = np.random.default_rng([seed, 0xF01D]).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold, n_groups, n_cells = np.empty(len(sizes), np.int64), [0] * n_folds, [0] * n_folds
    for group in order:
        at = min(range(n_folds), key=lambda i: (n_groups[i], n_cells[i]))
        fold[group] = at
        n_groups[at] += 1
        n_cells[at] += int(sizes[group])
    return fold


def hold_out_cells(labels: Shaped[np.ndarray, " cell"], *, n_folds: int, seed: int) -> SplitPlan:
    """Cells at random, the same share of every label in each fold."""
    fold_of = stratified(labels, n_folds, seed)
    folds = tuple(
        Fold(np.flatnonzero(fold_of != i), np.flatnonzero(fold_of == i)) for i in range(n_folds)
    )
    return SplitPlan("random", "", folds, tuple(unlearnable(folds, labels)))


def stratified(
    labels: Shaped[np.ndarray, " cell"], n_folds: int, seed: int
) -> Int[np.ndarray, " cell"]:
    """Fold of each cell: every label's cells, shuffled, are dealt in turn."""
    labels = np.asarray(labels).astype(str)
    order = np.random.default_rng([seed, 0xCE11]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    # dealt on through the labels, so that rare labels do not all fall to the first fold
    fold[order] = np.arange(len(labels)) % n_folds
    return fold


def from_reference(n_reference: int, n_query: int) -> SplitPlan:
    """The reference's cells come first, the query's after them."""
    fold = Fold(np.arange(n_reference), np.arange(n_reference, n_reference + n_query))
    return SplitPlan("reference", "", (fold,))


def unlearnable(folds: Sequence[Fold], labels: Shaped[np.ndarray, " cell"]) -> list[str]:
    """Sentences on labels that a fold judges and cannot teach: all their cells are held out."""
    notes, labels = [], np.asarray(labels).astype(str)
    for number, fold in enumerate(folds, start=1):
        absent = sorted(set(labels[fold.test]) - set(labels[fold.train]))
        for label in absent:
            n = int((labels[fold.test] == label).sum())
            notes.append(
                f"In fold {number} nothing teaches '{label}': all its cells are held out, and its "
                f"{n:,} judged cells count as wrong for every method."
            )
    return notes
