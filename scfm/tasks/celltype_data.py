"""Labelled cells -> who trains, who stops the training, who is judged; and batches of them.

in   opened inputs, a label for each of their cells, by wish a donor and a batch
out  LabelledPool, CelltypeSplit

Donors are held out whole, twice: some stop the training and set the calibration, others are judged
and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from scfm.batch import CellBatch
from scfm.data.counts import CountRows
from scfm.data.split import split_groups
from scfm.data.store import Store
from scfm.errors import LabelError
from scfm.tokens.depth import thin_rows
from scfm.tokens.pool import CellPool, PoolMember
from scfm.tokens.rng import cell_keys
from scfm.tokens.target_depth import TargetDepth

JUDGING, STOPPING = 0x7E57, 0x5709  # which draw of a seed


class LabelledPool(CellPool):
    """Cells as a classifier is shown them: all of their genes, nothing hidden, labels along.

    Attributes
    ----------
    labels
        The types that can be said, sorted.
    texts
        Of each cell, "" where it has no label.
    types, batches
        Codes of each cell; -1 where it has none, or none that can be said.
    """

    def __init__(
        self,
        members: Sequence[PoolMember],
        seed: int,
        types: Shaped[np.ndarray, " cell"],
        target_depth: TargetDepth,
        *,
        batches: Int[np.ndarray, " cell"] | None = None,
        thin_probability: float = 0.0,
        thin_min_counts: int = 1000,
    ):
        super().__init__(members, seed)
        self.texts = np.array(["" if t is None else str(t) for t in types], dtype=object)
        self.labels = tuple(sorted(set(self.texts.tolist()) - {""}))
        place = {label: code for code, label in enumerate(self.labels)}
        self.types = np.array([place.get(text, -1) for text in self.texts], dtype=np.int64)
        self.batches = np.full(len(types), -1, np.int64) if batches is None else batches
        assert len(self.types) == len(self.batches) == self.n_cells
        self.target_depth = target_depth
        self.thinning = {"probability": thin_probability, "min_counts": thin_min_counts}

    def with_labels(self, labels: Sequence[str]) -> "LabelledPool":
        """The same cells when only these types can be said; -1 for all others."""
        place = {label: code for code, label in enumerate(labels)}
        new = [place.get(label, -1) for label in self.labels]
        changed = LabelledPool.__new__(LabelledPool)
        changed.__dict__.update(self.__dict__)
        changed.labels = tuple(labels)
        changed.types = np.array([*new, -1], dtype=np.int64)[self.types]
        return changed

    def training(
        self, cells: Int[np.ndarray, " cell"], epoch: Int[np.ndarray, " cell"]
    ) -> CellBatch:
        """Cells, some of them thinned, anew each epoch; held-out cells always alike.

        Held-out cells too: the weights are to be best at depths that the training cells lack.
        """

        def shown(member: PoolMember, rows: CountRows, mine: Bool[np.ndarray, " cell"]):
            keys = cell_keys(self.seed, epoch[mine], cells[mine])
            return self._shown(member, thin_rows(rows, keys, **self.thinning))

        return self._labelled(self.tokenized(cells, shown))

    def shown(self, cells: Int[np.ndarray, " cell"]) -> CellBatch:
        """Cells as they are, in the given order within each source."""
        return self._labelled(
            self.tokenized(cells, lambda member, rows, _: self._shown(member, rows))
        )

    def _shown(self, member: PoolMember, rows: CountRows) -> CellBatch:
        tokenizer = member.tokenizer
        return tokenizer.asked_for(tokenizer.shown(rows), self.target_depth)

    def _labelled(self, batch: CellBatch) -> CellBatch:
        cells = batch.cell_index
        return replace(batch, labels={"type": self.types[cells], "batch": self.batches[cells]})

    def most_tokens(self) -> Int[np.ndarray, " cell"]:
        """A bound on the tokens of each cell: nothing is left out."""
        bounds = []
        for member, source in zip(self.members, self.sources, strict=True):
            n_genes = source.numbers("n_genes") if isinstance(source, Store) else source.n_genes
            bounds.append((n_genes + member.tokenizer.n_specials).astype(np.int32))
        return np.concatenate(bounds)


@dataclass(frozen=True)
class CelltypeSplit:
    """Numbers of the pool's labelled cells, ascending.

    Attributes
    ----------
    training
        Weights learn from these.
    validation
        These say when to stop, which penalty is best, and how sure the model may be.
    judged
        These have no part in anything; empty where none were asked for.
    by
        obs column whose values are on one side only; None: cells at random, which is optimistic.
    groups
        Its values on each side.
    notes
        Sentences on what is particular about this split.
    """

    training: Int[np.ndarray, " training"] = field(repr=False)
    validation: Int[np.ndarray, " validation"] = field(repr=False)
    judged: Int[np.ndarray, " judged"] = field(repr=False)
    by: str | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_optimistic(self) -> bool:
        return self.by is None

    def to_dict(self) -> dict[str, Any]:
        """What the model's provenance says of it."""
        sizes = {f"n_{name}": len(getattr(self, name)) for name in ("training", "validation")}
        return {
            **sizes,
            "n_judged": len(self.judged),
            "by": self.by,
            "is_optimistic": self.is_optimistic,
            "groups": {side: list(names) for side, names in self.groups.items()},
            "notes": list(self.notes),
        }


def split_labelled(
    types: Int[np.ndarray, " cell"],
    *,
    judged_share: float,
    validation_share: float,
    seed: int,
    groups: tuple[Int[np.ndarray, " cell"], Sequence[str]] | None = None,
    by: str | None = None,
) -> CelltypeSplit:
    """Split the cells that have a type; by donor where ``groups`` (codes and names) are given.

    Cells without a donor train. Raises LabelError where donors cannot be on two sides.
    """
    labelled = np.flatnonzero(types >= 0)
    if groups is None:
        judged = _at_random(labelled, types, judged_share, seed, JUDGING)
        rest = np.setdiff1d(labelled, judged)
        share = validation_share / (1 - judged_share)
        validation = _at_random(rest, types, share, seed, STOPPING)
        return CelltypeSplit(np.setdiff1d(rest, validation), validation, judged)
    assert by is not None
    return _by_group(labelled, *groups, judged_share, validation_share, seed, by)


def _by_group(
    labelled: Int[np.ndarray, " labelled"],
    codes: Int[np.ndarray, " cell"],
    names: Sequence[str],
    judged_share: float,
    validation_share: float,
    seed: int,
    by: str,
) -> CelltypeSplit:
    own = codes[labelled]
    present = np.unique(own[own >= 0])
    if len(present) < 2:
        found = f"only '{names[present[0]]}'" if len(present) else "no value at all"
        raise LabelError(
            f"Groups of '{by}' cannot be held out: the labelled cells have {found} there, and both "
            "sides need at least one. Name another column with --holdout, or leave it out for a "
            "random split, which is optimistic."
        )
    how, notes = {"most": len(labelled), "by": by}, []
    first = split_groups(own, names, judged_share, seed=seed, **how)
    judged, rest = labelled[first.is_held_out], labelled[~first.is_held_out]
    left, share = codes[rest], validation_share / (1 - judged_share)
    if len(np.unique(left[left >= 0])) > 1:
        second = split_groups(left, names, share, seed=seed + 1, **how)
        validation, training = rest[second.is_held_out], rest[~second.is_held_out]
    else:
        validation, training = judged, rest
        notes.append(
            f"'{by}' has two groups only: the same cells stop the training and are judged, so the "
            "scores are somewhat optimistic."
        )
    if (own < 0).any():
        notes.append(f"{int((own < 0).sum()):,} cells have no value in '{by}'; they train.")
    sides = {"training": training, "validation": validation, "judged": judged}
    return CelltypeSplit(
        **sides,
        by=by,
        groups={side: _names_of(codes[cells], names) for side, cells in sides.items()},
        notes=tuple(notes),
    )


def _names_of(codes: Int[np.ndarray, " some"], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(names[code]) for code in np.unique(codes[codes >= 0]))


def _at_random(
    cells: Int[np.ndarray, " cell"],
    types: Int[np.ndarray, " all"],
    share: float,
    seed: int,
    draw: int,
) -> Int[np.ndarray, " drawn"]:
    """A share of the cells, the same of every type but for rounding."""
    shuffled = np.random.default_rng([seed, draw]).permutation(cells)
    shuffled = shuffled[np.argsort(types[shuffled], kind="stable")]
    place = np.arange(len(shuffled))
    is_drawn = np.floor((place + 1) * share + 1e-9) > np.floor(place * share + 1e-9)
    return np.sort(shuffled[is_drawn])


def require_types(
    pool: LabelledPool, split: CelltypeSplit, name: str
) -> tuple[LabelledPool, CelltypeSplit]:
    """Only the types that training cells have can be learned; cells of others are left out.

    Judged cells of these stay: whatever is said of them is wrong. Raises LabelError where fewer
    than two types are left to learn, or no cell to stop by.
    """
    learned = np.unique(pool.types[split.training])
    if len(learned) < 2:
        only = f"only '{pool.labels[learned[0]]}'" if len(learned) else "no type"
        raise LabelError(
            f"{name}: the training cells have {only}; wanted two types or more, or there is "
            "nothing to tell apart. Name another column with --label, or hold out less."
        )
    absent = sorted(set(range(len(pool.labels))) - set(learned.tolist()))
    notes = list(split.notes)
    for code in absent:
        n = int((pool.types == code).sum())
        notes.append(
            f"'{pool.labels[code]}' is in no training cell: its {n:,} cells are all held out, and "
            "nothing teaches it."
        )
    known = pool.with_labels([pool.labels[code] for code in learned])
    validation = split.validation[known.types[split.validation] >= 0]
    if not len(validation):
        raise LabelError(
            f"{name}: no held-out cell is of a type that is learned, so nothing says when to stop. "
            "Hold out more cells (--set validation_share=0.2), or name another --holdout."
        )
    return known, replace(split, validation=validation, notes=tuple(notes))
