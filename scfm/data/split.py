"""Which cells train and which are held out: cells at random, or whole donors, studies, batches.

in   how many cells there are, or the group of each; how many to hold out
out  Split: who trains, who is judged, and which groups were held out

Cells held out at random come from the same donors and runs as the others: good to watch a loss
curve with, optimistic as a measure of quality. Groups are held out whole: none is on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from scfm.errors import LabelError

GROUPS, JUDGED = 0x6E0, 0x1D6  # which draw of a seed; the random split's own is 0x5EED


@dataclass(frozen=True)
class Split:
    """Who trains and who is judged.

    Attributes
    ----------
    is_training
        Cells that are trained on.
    is_held_out
        Cells that are not. With groups these are more than are judged.
    judged
        Held-out cells that the validation loss is of, ascending; a bounded number.
    by
        The obs column whose groups were held out; None for cells at random.
    groups_training, groups_held_out
        Names of the groups on either side; empty without groups.
    n_without_group
        Cells with no value in the column. They train.
    """

    is_training: Bool[np.ndarray, " cell"]
    is_held_out: Bool[np.ndarray, " cell"]
    judged: Int[np.ndarray, " judged"]
    by: str | None = None
    groups_training: tuple[str, ...] = ()
    groups_held_out: tuple[str, ...] = ()
    n_without_group: int = 0


def held_out_cells(
    n_cells: int, share: float, most: int, seed: int
) -> Int[np.ndarray, " held_out"]:
    """A random ``share`` of the cells, but no more than ``most``, drawn from all of them alike.

    The same numbers for the same arguments.
    """
    n_held_out = min(round(share * n_cells), most)
    generator = _generator(seed, 0x5EED)
    return np.sort(generator.choice(n_cells, n_held_out, replace=False, shuffle=False))


def split_cells(n_cells: int, share: float, most: int, seed: int) -> Split:
    """Hold out cells at random: a ``share`` of all, at most ``most``; every one is judged."""
    judged = held_out_cells(n_cells, share, most, seed)
    is_held_out = np.zeros(n_cells, dtype=bool)
    is_held_out[judged] = True
    return Split(~is_held_out, is_held_out, judged)


def split_groups(
    codes: Int[np.ndarray, " cell"],
    categories: Sequence[str],
    share: float,
    most: int,
    seed: int,
    *,
    by: str,
) -> Split:
    """Hold out whole groups: in random order each that keeps the held-out cells within ``share``.

    Where even the smallest group is larger than that, it alone is held out. ``codes`` are positions
    in ``categories``, -1 where a cell has none. At most ``most`` of the held-out cells are judged,
    drawn at random. Raises LabelError where fewer than two groups have cells.
    """
    sizes = np.bincount(codes[codes >= 0], minlength=len(categories))
    present: list[int] = np.flatnonzero(sizes).tolist()
    if len(present) < 2:
        found = f"only '{categories[present[0]]}'" if len(present) else "no value at all"
        raise LabelError(
            f"Groups of '{by}' cannot be held out: the cells have {found} there, and both sides "
            "need at least one group. Name another column with loader.held_out_by, or null to hold "
            "out cells at random."
        )
    room, held_out = share * int(sizes.sum()), []
    for group in _generator(seed, GROUPS).permutation(present):
        if sizes[group] <= room:
            held_out.append(group)
            room -= sizes[group]
    if not held_out and share > 0:
        held_out = [min(present, key=lambda group: sizes[group])]
    is_held_out_group = np.zeros(len(categories) + 1, dtype=bool)  # the last one is "no value"
    is_held_out_group[held_out] = True
    is_held_out = is_held_out_group[codes]
    candidates = np.flatnonzero(is_held_out)
    n_judged = min(len(candidates), most)
    chosen = _generator(seed, JUDGED).choice(len(candidates), n_judged, replace=False)
    return Split(
        is_training=~is_held_out,
        is_held_out=is_held_out,
        judged=np.sort(candidates[chosen]),
        by=by,
        groups_training=tuple(categories[g] for g in present if not is_held_out_group[g]),
        groups_held_out=tuple(categories[g] for g in present if is_held_out_group[g]),
        n_without_group=int((codes < 0).sum()),
    )


def group_codes(
    obs: pd.DataFrame, column: str, name: str
) -> tuple[Int[np.ndarray, " cell"], list[str]]:
    """An obs column as codes (-1 where there is no value) and the names they stand for, sorted.

    Raises LabelError where the table, that of ``name``, has no such column.
    """
    if column not in obs.columns:
        raise missing_column(column, name, [str(known) for known in obs.columns])
    values = obs[column].astype("object")
    codes, categories = pd.factorize(values.where(values.isna(), values.astype(str)), sort=True)
    return codes.astype(np.int32), [str(category) for category in categories]


def missing_column(column: str, name: str, known: Sequence[str]) -> LabelError:
    """What to say where cells have no obs column of this name."""
    there = ", ".join(known) or "none"
    return LabelError(f"{name} has no obs column '{column}'. There is: {there}. Name one of these.")


def _generator(seed: int, draw: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, draw])))
