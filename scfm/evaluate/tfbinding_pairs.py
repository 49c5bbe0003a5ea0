"""What binding is judged on: regions of each side, and TFs in groups of cells with known labels.

in   RegionExamples, RegionSplit, the tasks a model knows
out  Judged: numbers of the regions, the labels of every (TF, group), four quadrants
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int8, Shaped

from scfm.data.region_examples import RegionExamples
from scfm.data.region_split import PARTS, TEST, TRAINING, VALIDATION, RegionSplit
from scfm.errors import LabelError
from scfm.tasks.tf_names import cell_of, tf_of

SIDES = {"seen": TRAINING, "held-out": TEST}


@dataclass(frozen=True)
class Pair:
    """A TF in a group of cells, as far as its binding is known.

    Attributes
    ----------
    task
        Its name among the tasks, "TF" or "TF:cell".
    column
        Its column among the data's tasks.
    group
        Number of the group of cells, -1 without groups.
    cell
        Name of the group or of the task's cell type; "" where neither is named.
    is_held_out
        The group trained nothing.
    """

    task: str
    column: int
    group: int
    cell: str
    is_held_out: bool

    @property
    def tf(self) -> str:
        return tf_of(self.task)

    @property
    def name(self) -> str:
        return f"{self.tf} in {self.cell}" if self.cell else self.tf


@dataclass(frozen=True)
class Judged:
    """Regions, pairs and labels (1 bound, 0 not, -1 unknown).

    Attributes
    ----------
    region
        Numbers in the examples, ascending.
    part
        TRAINING, VALIDATION or TEST of each.
    """

    region: Int[np.ndarray, " region"]
    part: Int8[np.ndarray, " region"]
    chrom: Shaped[np.ndarray, " region"]
    pairs: tuple[Pair, ...]
    labels: Int8[np.ndarray, "region pair"] = field(repr=False)

    @property
    def groups(self) -> list[int]:
        """Groups that pairs are of, ascending."""
        return sorted({pair.group for pair in self.pairs})

    def rows(self, chromosome: str) -> Bool[np.ndarray, " region"]:
        """Regions of a side: "seen" or "held-out"."""
        return self.part == SIDES[chromosome]

    def columns(self, cell: str) -> Int[np.ndarray, " pair"]:
        """Pairs of a side: "seen" or "held-out"."""
        wanted = cell == "held-out"
        found = [i for i, pair in enumerate(self.pairs) if pair.is_held_out == wanted]
        return np.array(found, dtype=np.int64)


def judged(
    examples: RegionExamples,
    split: RegionSplit,
    tasks: Sequence[str],
    *,
    max_regions: int,
    seed: int,
) -> Judged:
    """Regions of all three parts, at most ``max_regions`` of each, drawn from all alike.

    Raises LabelError where no region or no label is left that can be judged.
    """
    part_of = split.part_of(examples.chrom, examples.start, examples.end)
    rng = np.random.default_rng([seed, 0x7F])
    chosen = [
        _some(np.flatnonzero(part_of == part), max_regions, rng)
        for part in (TRAINING, VALIDATION, TEST)
    ]
    if not len(chosen[TEST]):
        raise LabelError(
            f"No region lies on a test chromosome ({', '.join(split.test_chroms)}). Name others "
            "with --test-chroms."
        )
    region = np.sort(np.concatenate(chosen))
    pairs, labels = _labelled(examples, region, split, tasks)
    if not pairs:
        raise LabelError(
            f"None of the model's {len(tasks)} TFs ({', '.join(tasks[:5])}) has bound and unbound "
            f"regions among the data's {len(examples.tasks)} ({', '.join(examples.tasks[:5])}). "
            "Give data with labels of ChIP: varm['chip_<cell>'] and uns['chip_tfs_<cell>']."
        )
    chrom = np.asarray(examples.chrom)[region].astype(str)
    return Judged(region, part_of[region], chrom, tuple(pairs), labels)


def _some(
    rows: Int[np.ndarray, " region"], most: int, rng: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def _labelled(
    examples: RegionExamples,
    region: Int[np.ndarray, " region"],
    split: RegionSplit,
    tasks: Sequence[str],
) -> tuple[list[Pair], Int8[np.ndarray, "region pair"]]:
    known = set(tasks)
    groups = list(range(len(examples.groups))) or [-1]
    held_out = split.is_held_out(examples.groups) if examples.groups else [False]
    pairs, columns = [], []
    for group, is_held_out in zip(groups, held_out, strict=True):
        labels = examples.labels(region, np.full(len(region), group, dtype=np.int64))
        for column, task in enumerate(examples.tasks):
            found = labels[:, column]
            if task not in known or not ((found == 1).any() and (found == 0).any()):
                continue
            cell = examples.groups[group] if group >= 0 else cell_of(task)
            pairs.append(Pair(task, column, group, cell, bool(is_held_out)))
            columns.append(found)
    empty = np.empty((len(region), 0), np.int8)
    return pairs, np.stack(columns, axis=1).astype(np.int8) if columns else empty


def side_facts(found: Judged) -> dict[str, Any]:
    """How many regions and chromosomes each part has, for a reader."""
    return {
        f"{PARTS[part]}_regions": int((found.part == part).sum())
        for part in (TRAINING, VALIDATION, TEST)
    } | {"test_chromosomes": sorted(set(found.chrom[found.part == TEST]))}
