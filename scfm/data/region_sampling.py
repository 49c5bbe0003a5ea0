"""Which window next: bound ones and true background in proportion, anew each epoch.

in   examples (a region in a group of cells), a split, how much background for each bound window
out  a CellOrder over examples: a pure function of (seed, epoch), dealt to processes

Background is what the experiment saw and found unbound, drawn from the data itself: shuffled or
simulated negatives differ from real ones in more than what binds. Each epoch takes another part of
it, so that all of it comes in turn.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from scfm.data.order import Blocks, CellOrder, Weights
from scfm.data.region_examples import RegionExamples
from scfm.data.region_split import RegionSplit
from scfm.errors import ConfigError

AT_ONCE = 2**16  # examples whose labels are looked at together
BOUND, BACKGROUND, UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class ExampleTable:
    """Examples numbered region by region, and within a region group by group.

    Attributes
    ----------
    n_regions, n_groups
        Of the source; one group, called -1, where it has none.
    kind
        0 where any TF is bound, 1 where some are known and none is bound, 2 where nothing is known.
    n_known, n_bound
        Labels of each task over the examples looked at.
    """

    n_regions: int
    n_groups: int
    kind: Int8[np.ndarray, " example"]
    n_known: Int[np.ndarray, " task"]
    n_bound: Int[np.ndarray, " task"]

    @property
    def prevalence(self) -> Float[np.ndarray, " task"]:
        """The share of known labels that are bound; 0.5 where none is known."""
        share = self.n_bound / np.maximum(self.n_known, 1)
        return np.where(self.n_known > 0, share, 0.5)


def n_groups(examples: RegionExamples) -> int:
    """Groups, or the one that stands for none."""
    return max(1, len(examples.groups))


def pairs(
    examples: RegionExamples, number: Int[np.ndarray, " example"]
) -> tuple[Int[np.ndarray, " example"], Int[np.ndarray, " example"]]:
    """Region and group of examples by their number; group -1 where the source has none."""
    region, group = np.divmod(np.asarray(number, dtype=np.int64), n_groups(examples))
    return region, group if examples.groups else np.full(len(region), -1, np.int64)


def numbers(
    examples: RegionExamples,
    is_region: Bool[np.ndarray, " region"],
    is_group: Bool[np.ndarray, " group"] | None = None,
) -> Int[np.ndarray, " example"]:
    """Examples of these regions in these groups, all of them if not given; ascending."""
    n = n_groups(examples)
    groups = np.arange(n) if is_group is None else np.flatnonzero(is_group)
    return (np.flatnonzero(is_region)[:, None] * n + groups).ravel()


def part_examples(
    examples: RegionExamples, split: RegionSplit, part: int
) -> Int[np.ndarray, " example"]:
    """Examples of a part of the chromosomes, in groups that are not held out."""
    is_group = ~split.is_held_out(examples.groups) if examples.groups else None
    return numbers(
        examples, split.part_of(examples.chrom, examples.start, examples.end) == part, is_group
    )


def look_at(examples: RegionExamples, number: Int[np.ndarray, " example"]) -> ExampleTable:
    """Labels of these examples, counted; all others are of unknown kind."""
    total = examples.n_regions * n_groups(examples)
    kind = np.full(total, UNKNOWN, np.int8)
    counts = np.zeros((2, len(examples.tasks)), np.int64)
    for first in range(0, len(number), AT_ONCE):
        some = number[first : first + AT_ONCE]
        labels = examples.labels(*pairs(examples, some))
        kind[some] = np.where((labels == 1).any(1), BOUND, BACKGROUND)
        kind[some[(labels < 0).all(1)]] = UNKNOWN
        counts += np.stack([(labels >= 0).sum(0), (labels == 1).sum(0)])
    return ExampleTable(examples.n_regions, n_groups(examples), kind, *counts)


def labelled_chroms(examples: RegionExamples) -> tuple[str, ...]:
    """Chromosomes with at least one bound window, sorted.

    Where peaks of some chromosomes were kept back, as in challenges, their windows look unbound.
    """
    every = numbers(examples, np.ones(examples.n_regions, dtype=bool))
    table = look_at(examples, every)
    region, _ = pairs(examples, every[table.kind[every] == BOUND])
    return tuple(sorted({str(name) for name in np.unique(examples.chrom[region])}))


def balanced_order(
    table: ExampleTable,
    number: Int[np.ndarray, " example"],
    *,
    seed: int,
    background_ratio: float | None,
) -> CellOrder:
    """The endless stream of training examples.

    An epoch has every bound example once, and for each of them ``background_ratio`` background
    examples, each at most once; None: all background. Raises ConfigError where nothing is bound.
    """
    selected = np.zeros(len(table.kind), dtype=bool)
    selected[number] = True
    n_bound, n_background = (
        int((selected & (table.kind == kind)).sum()) for kind in (BOUND, BACKGROUND)
    )
    if not n_bound:
        raise ConfigError(
            "No TF is known to be bound in any training window. Choose other --validation-chroms "
            "and --test-chroms, or look at the labels of the file: scfm tfbind regions."
        )
    share = 1.0
    if background_ratio is not None:
        share = min(1.0, background_ratio * n_bound / max(1, n_background))
    weights = Weights(table.kind, np.array([1.0, share, 0.0]))
    blocks = Blocks.even(len(table.kind))
    return CellOrder(blocks=blocks, seed=seed, selected=selected, weights=weights)
