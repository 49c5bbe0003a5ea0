"""Variants -> how much each changes the binding of each TF, in each group of cells.

in   variants, a genome, a model of TF binding, accessibility around a variant
out  logits of both alleles, their difference, how often a random change does as much

score = logit(alternative) - logit(reference), both strands averaged, mean over windows that hold
the variant at ``shifts``; accessibility is the reference's on both sides. p is that of |score|
among random changes of the same kind in the variants' surroundings, (1 + as large) / (1 + all).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from scfm.batch import RegionBatch
from scfm.data.allele_windows import (
    allele_windows,
    kind_of,
    random_changes,
    window_starts,
)
from scfm.data.genome import Genome
from scfm.data.genome_regions import GenomeRegions
from scfm.data.signal_tracks import Tracks
from scfm.data.vcf import Variant
from scfm.errors import ConfigError, ModelError
from scfm.model.dna import BindingModel, binding_logits

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """How variants are scored."""

    shifts: tuple[int, ...] = (-20, -10, 0, 10, 20)  # bases the windows are moved right by
    n_null: int = 1_000  # random changes of each kind; 0 leaves p out
    batch_size: int = 128  # variants a pass
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shifts:
            raise ConfigError("shifts is empty; wanted at least one, such as 0.")
        if self.n_null < 0 or self.batch_size < 1:
            raise ConfigError(
                f"n_null is {self.n_null}, batch_size {self.batch_size}; wanted 0 and 1 at least."
            )


@runtime_checkable
class Surroundings(Protocol):
    """What is known of the cells where a variant's window lies; group -1: of no group."""

    groups: tuple[str, ...]

    def signal(
        self, variants: Sequence[Variant], start: np.ndarray, length: int, group: int
    ) -> Float[np.ndarray, "window track base"]: ...

    def cell(self, group: int) -> tuple[Float[np.ndarray, " d"], bool] | None: ...


@dataclass(frozen=True)
class VariantScores:
    """Some variants in all groups and tasks; ``p`` is NaN where no null was asked for."""

    variants: Sequence[Variant]
    reference: Float[np.ndarray, "variant group task"]
    alternative: Float[np.ndarray, "variant group task"]
    p: Float[np.ndarray, "variant group task"] = field(repr=False)

    @property
    def delta(self) -> Float[np.ndarray, "variant group task"]:
        return self.alternative - self.reference


def score_variants(
    model: BindingModel,
    variants: Sequence[Variant],
    genome: Genome,
    surroundings: Surroundings,
    *,
    groups: Sequence[int],
    config: VariantConfig | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Iterator[VariantScores]:
    """Scores of the variants in their order, ``batch_size`` at a time.

    Raises InputError for an allele longer than the window takes, ModelError for logits that are no
    numbers.
    """
    config = config or VariantConfig()
    kinds = [kind_of(variant) for variant in variants]
    n_null = config.n_null * len(set(kinds))
    total = len(variants) + n_null
    null = null_sizes(model, variants, kinds, genome, surroundings, groups, config, on_progress)
    for start in range(0, len(variants), config.batch_size):
        some = variants[start : start + config.batch_size]
        reference, alternative = _both(model, some, some, genome, surroundings, groups, config)
        p = np.full(reference.shape, np.nan)
        for row, kind in enumerate(kinds[start : start + len(some)]):
            if kind in null:
                p[row] = _empirical_p(null[kind], np.abs(alternative[row] - reference[row]))
        yield VariantScores(some, reference, alternative, p)
        on_progress(n_null + start + len(some), total)


def null_sizes(
    model: BindingModel,
    variants: Sequence[Variant],
    kinds: Sequence[str],
    genome: Genome,
    surroundings: Surroundings,
    groups: Sequence[int],
    config: VariantConfig,
    on_progress: Progress,
) -> Mapping[str, Float[np.ndarray, "change group task"]]:
    """|score| of random changes, ascending, by kind."""
    found, done = {}, 0
    names = sorted(set(kinds)) if config.n_null else []
    for number, kind in enumerate(names):
        own = [v for v, k in zip(variants, kinds, strict=True) if k == kind]
        rng = np.random.default_rng([config.seed, number])
        reach = model.config.length // 2
        changes, near = random_changes(own, genome, reach, config.n_null, rng)
        sizes = []
        for start in range(0, len(changes), config.batch_size):
            some = slice(start, start + config.batch_size)
            beside = [own[i] for i in near[some]]
            two = _both(model, changes[some], beside, genome, surroundings, groups, config)
            sizes.append(np.abs(two[1] - two[0]))
            on_progress(done + start + len(beside), len(variants) + config.n_null * len(names))
        done += config.n_null
        if sizes:
            found[kind] = np.sort(np.concatenate(sizes), axis=0)
    return found


def _empirical_p(
    null: Float[np.ndarray, "change group task"], size: Float[np.ndarray, "group task"]
) -> Float[np.ndarray, "group task"]:
    """(1 + changes at least as large) / (1 + changes). Source: North et al. 2002,
    doi:10.1086/341527."""
    as_large = (null >= size).sum(0)
    return (1 + as_large) / (1 + len(null))


def _both(
    model: BindingModel,
    variants: Sequence[Variant],
    beside: Sequence[Variant],
    genome: Genome,
    surroundings: Surroundings,
    groups: Sequence[int],
    config: VariantConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean logits of the reference's and the alternative's windows over the shifts.

    Accessibility is that around ``beside``: of a random change that of the variant it stands for.
    """
    length, n = model.config.length, len(variants)
    total = np.zeros((2, n, len(groups), len(model.tasks)))
    for shift in config.shifts:
        sequences = np.concatenate(allele_windows(variants, genome, length, shift))
        starts = window_starts(beside, length, shift)
        for at, group in enumerate(groups):
            signal = surroundings.signal(beside, starts, length, group)
            logits = _logits(
                model, sequences, np.concatenate([signal, signal]), surroundings, group
            )
            total[:, :, at] += logits.reshape(2, n, -1)
    total /= len(config.shifts)
    if not np.isfinite(total).all():
        raise ModelError("The model's logits are NaN or infinite. Take another model.")
    return total[0], total[1]


def _logits(
    model: BindingModel,
    sequence: Float[np.ndarray, "window 4 base"],
    signal: Float[np.ndarray, "window track base"],
    surroundings: Surroundings,
    group: int,
) -> Float[np.ndarray, "window task"]:
    n = len(sequence)
    known = surroundings.cell(group) if model.config.d_cell else None
    cell = has_cell = None
    if known is not None:
        cell = np.broadcast_to(known[0].astype(np.float32), (n, len(known[0]))).copy()
        has_cell = np.full(n, known[1])
    batch = RegionBatch(
        sequence=sequence,
        signal=signal,
        labels=np.full((n, len(model.tasks)), -1, dtype=np.int8),
        region_index=np.full(n, -1),
        group_index=np.full(n, group),
        cell=cell,
        has_cell=has_cell,
    )
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        found = binding_logits(model, batch.map(lambda x: torch.from_numpy(x).to(device)))
    return found.float().cpu().numpy()


class NoSignal:
    """Surroundings of a model that reads DNA alone."""

    groups: tuple[str, ...] = ()

    def signal(
        self, variants: Sequence[Variant], start: np.ndarray, length: int, group: int
    ) -> Float[np.ndarray, "window track base"]:
        return np.zeros((len(start), 0, length), dtype=np.float32)

    def cell(self, group: int) -> None:
        return None


class TrackSurroundings:
    """bigWigs along the windows, the same for all cells."""

    groups: tuple[str, ...] = ()

    def __init__(self, tracks: Tracks, genome: Genome):
        self.tracks, self.genome = tracks, genome

    def signal(
        self, variants: Sequence[Variant], start: np.ndarray, length: int, group: int
    ) -> Float[np.ndarray, "window track base"]:
        chrom = self.genome.numbers(np.array([v.chrom for v in variants], dtype=str))
        same = np.full(len(start), max(group, 0), dtype=np.int64)
        return self.tracks.windows(chrom, np.asarray(start, dtype=np.int64), length, same)

    def cell(self, group: int) -> None:
        return None


class RegionSurroundings:
    """Accessibility of groups of cells: that of the peak a variant lies in, 0 outside of peaks.

    As in training, it is the same all along a window; bigWigs of the regions follow it.
    """

    def __init__(self, regions: GenomeRegions, genome: Genome):
        self.regions, self.groups = regions, regions.groups
        self.bulk = TrackSurroundings(regions.bulk, genome) if regions.bulk else None

    def signal(
        self, variants: Sequence[Variant], start: np.ndarray, length: int, group: int
    ) -> Float[np.ndarray, "window track base"]:
        found = np.zeros((len(start), len(self.regions.tracks), length), dtype=np.float32)
        if self.groups:
            region = self.region_of(variants)
            inside = np.flatnonzero(region >= 0)
            same = np.full(len(inside), group, dtype=np.int64)
            found[inside, 0] = self.regions.accessibility(region[inside], same)[:, None]
        if self.bulk is not None:
            tracks = self.bulk.signal(variants, start, length, group)
            found[:, found.shape[1] - tracks.shape[1] :] = tracks
        return found

    def region_of(self, variants: Sequence[Variant]) -> Int[np.ndarray, " variant"]:
        """The region each variant's first base lies in, -1 for none."""
        return in_regions(variants, self.regions.chrom, self.regions.start, self.regions.end)

    def cell(self, group: int) -> tuple[Float[np.ndarray, " d"], bool] | None:
        own = self.regions.group_signal
        if own is None or own.embedding is None or own.has_embedding is None:
            return None
        return own.embedding[group], bool(own.has_embedding[group])


def in_regions(
    variants: Sequence[Variant],
    chrom: Shaped[np.ndarray, " region"],
    start: Int[np.ndarray, " region"],
    end: Int[np.ndarray, " region"],
) -> Int[np.ndarray, " variant"]:
    """The region of each variant's first base, of several the one that starts last; -1: none."""
    found = np.full(len(variants), -1, dtype=np.int64)
    names = np.asarray(chrom).astype(str)
    for name in {variant.chrom for variant in variants}:
        rows = np.flatnonzero(names == name)
        rows = rows[np.argsort(start[rows], kind="stable")]
        reach = np.maximum.accumulate(end[rows])
        here = np.array([i for i, v in enumerate(variants) if v.chrom == name], dtype=np.int64)
        at = np.array([variants[i].start for i in here], dtype=np.int64)
        last = np.searchsorted(start[rows], at, side="right") - 1
        for i, position, row in zip(here, at, last, strict=True):
            while row >= 0 and reach[row] > position:  # none that starts earlier reaches further
                if end[rows[row]] > position:
                    found[i] = rows[row]
                    break
                row -= 1
    return found
