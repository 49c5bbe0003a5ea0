"""Which regions train, stop the training, and judge it: by chromosome, and by group of cells.

in   the regions' chromosomes and intervals; names of chromosomes and of groups to keep apart
out  RegionSplit; the part of every region and group; an error where two parts overlap

Never by random regions: neighbouring windows overlap, and those of one gene family or repeat are
near copies. Where there is but one chromosome, by long stretches of it. Groups (cell types) that
are held out train nothing and stop nothing either.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int8, Shaped

from scfm.errors import ConfigError, InputError

TRAINING, VALIDATION, TEST, NO_PART = 0, 1, 2, -1
PARTS = ("training", "validation", "test")
APART = 2_000  # bases between a stretch and what another part may have of its chromosome
STRETCH = re.compile(r"(?P<chrom>.+):(?P<start>[\d,]+)-(?P<end>[\d,]+)")
Chromosomes = Shaped[np.ndarray, " region"]


@dataclass(frozen=True, kw_only=True)
class RegionSplit:
    """Chromosomes of each part, and the groups of cells held out from all but the judging."""

    training_chroms: tuple[str, ...]
    validation_chroms: tuple[str, ...]
    test_chroms: tuple[str, ...]
    held_out_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part, chroms in zip(PARTS, self.chroms, strict=True):
            for chrom in chroms:
                other = seen.setdefault(bare(chrom), part)
                if other != part:
                    raise ConfigError(
                        f"{chrom} is a {part} and a {other} chromosome: no window may be on both "
                        "sides. Name it once."
                    )

    @property
    def chroms(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Of training, validation and test."""
        return self.training_chroms, self.validation_chroms, self.test_chroms

    def part_of(
        self,
        chrom: Chromosomes,
        start: Int[np.ndarray, " region"] | None = None,
        end: Int[np.ndarray, " region"] | None = None,
    ) -> Int8[np.ndarray, " region"]:
        """0 training, 1 validation, 2 test, -1 none of them.

        A part that names a stretch, "chrIV:0-900000", has the regions that lie in it; those of the
        same chromosome within `APART` bases of it are in no other part. ``start`` and ``end`` are
        needed for stretches only.
        """
        parts = np.full(len(chrom), NO_PART, np.int8)
        stretches = []
        for part, names in enumerate(self.chroms):
            parts[np.isin(chrom, names)] = part
            stretches += [(part, found) for name in names if (found := stretch_of(name))]
        if not stretches:
            return parts
        assert start is not None, "a stretch is told by positions"
        assert end is not None
        for _, (name, first, last) in stretches:
            is_near = (chrom == name) & (end > first - APART) & (start < last + APART)
            parts[is_near] = NO_PART
        for part, (name, first, last) in stretches:
            parts[(chrom == name) & (start >= first) & (end <= last)] = part
        return parts

    def is_held_out(self, groups: Sequence[str]) -> Bool[np.ndarray, " group"]:
        """Which groups of cells train nothing."""
        return np.isin(np.asarray(groups, dtype=str), self.held_out_groups)


def stretch_of(name: str) -> tuple[str, int, int] | None:
    """Chromosome, start and end of "chrIV:0-900,000"; None of a whole chromosome's name."""
    found = STRETCH.fullmatch(name)
    if found is None:
        return None
    first, last = (int(found[side].replace(",", "")) for side in ("start", "end"))
    return found["chrom"], first, last


def bare(chrom: str) -> str:
    """A chromosome without its prefix: chr2 and 2 are one."""
    return chrom.lower().removeprefix("chr")


def split_regions(
    chrom: Chromosomes,
    *,
    validation: Sequence[str],
    test: Sequence[str],
    training: Sequence[str] = (),
    groups: Sequence[str] = (),
    held_out_groups: Sequence[str] = (),
) -> RegionSplit:
    """The split that these names describe; ``training`` is all other chromosomes if not given.

    A chromosome may be named with or without "chr", and a stretch of one as "chrIV:0-900000": the
    rest of it is left to the other parts. Raises ConfigError for a name that the regions
    do not have, and where a part is empty.
    """
    present = sorted({str(name) for name in np.unique(chrom)})
    named = {part: _found(names, present) for part, names in (("v", validation), ("t", test))}
    rest = [name for name in present if name not in (*named["v"], *named["t"])]
    split = RegionSplit(
        training_chroms=tuple(_found(training, present) or rest),
        validation_chroms=tuple(named["v"]),
        test_chroms=tuple(named["t"]),
        held_out_groups=tuple(_known_groups(held_out_groups, groups)),
    )
    for part, chroms in zip(PARTS, split.chroms, strict=True):
        if not chroms:
            raise ConfigError(
                f"No chromosome is left for {part}. The regions lie on {', '.join(present)}: name "
                "some with --validation-chroms and --test-chroms, and leave others to train on."
            )
    return split


def require_apart(
    chrom: Chromosomes,
    start: Int[np.ndarray, " region"],
    end: Int[np.ndarray, " region"],
    part: Int[np.ndarray, " region"],
    *,
    reach: int = 0,
) -> None:
    """Refuse windows of two parts that overlap, whatever their chromosome is called.

    ``reach`` is how many bases a window extends beyond its region on either side. Raises InputError
    with the first pair.
    """
    used = np.flatnonzero(np.asarray(part) != NO_PART)
    names, codes = np.unique([bare(str(c)) for c in chrom[used]], return_inverse=True)
    first, last = start[used] - reach, end[used] + reach
    order = np.lexsort((first, codes))
    codes, first, last, used = codes[order], first[order], last[order], used[order]
    parts = np.asarray(part)[used]
    for code in range(len(names)):
        of_chrom = np.flatnonzero(codes == code)
        if len(np.unique(parts[of_chrom])) < 2:
            continue
        pair = _first_overlap(first[of_chrom], last[of_chrom], parts[of_chrom])
        if pair is not None:
            a, b = (int(used[of_chrom[i]]) for i in pair)
            raise InputError(
                f"The windows of {_name(chrom, start, end, a)} ({PARTS[part[a]]}) and of "
                f"{_name(chrom, start, end, b)} ({PARTS[part[b]]}) overlap: what is judged would "
                "have been trained on. Split by whole chromosomes, each under one name."
            )


def _first_overlap(
    first: Int[np.ndarray, " region"],
    last: Int[np.ndarray, " region"],
    part: Int[np.ndarray, " region"],
) -> tuple[int, int] | None:
    """Two intervals of different parts that share a base; sorted by ``first``."""
    reached: dict[int, int] = {}  # the interval of each part that reaches furthest so far
    for i in range(len(first)):
        for other, j in reached.items():
            if other != part[i] and last[j] > first[i]:
                return j, i
        own = reached.get(int(part[i]))
        if own is None or last[i] > last[own]:
            reached[int(part[i])] = i
    return None


def _name(chrom: Chromosomes, start: np.ndarray, end: np.ndarray, region: int) -> str:
    return f"{chrom[region]}:{start[region]}-{end[region]}"


def _found(names: Sequence[str], present: Sequence[str]) -> list[str]:
    """The regions' own spelling of each name."""
    own = {bare(name): name for name in present} | {name: name for name in present}
    asked = [(name, stretch_of(name)) for name in names]
    spelled = [(stretch[0] if stretch else name, stretch) for name, stretch in asked]
    unknown = [name for name, _ in spelled if name not in own and bare(name) not in own]
    if unknown:
        raise ConfigError(
            f"No region lies on {', '.join(unknown)}. There is: {', '.join(present)}."
        )
    found = [(own.get(name) or own[bare(name)], stretch) for name, stretch in spelled]
    return [f"{name}:{s[1]}-{s[2]}" if s else name for name, s in found]


def _known_groups(names: Iterable[str], groups: Sequence[str]) -> list[str]:
    asked = list(names)
    unknown = [name for name in asked if name not in groups]
    if unknown:
        there = ", ".join(groups) or "none"
        raise ConfigError(
            f"--held-out-groups names {', '.join(unknown)}, which the data has no group of. There "
            f"is: {there}."
        )
    if asked and len(set(asked)) == len(groups):
        raise ConfigError("All groups are held out; leave one to train on.")
    return asked
