"""Variants -> how much each changes the binding of each TF, in each group of cells.

in   variants, a genome, a model of TF binding, accessibility around a variant
out  logits of both alleles, their difference, how often a random change does as much

score = logit(alternative) - logit(reference), both strands averaged, mean over windows that hold
the variant at ``shifts``; accessibility is the reference's on both sides. p is that of |score|
among random changes of the same kind in the variants' surroundings, (1 + as large) / (1 + all).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from scfm.batch import RegionBatch
from scfm.data.allele_windows import (
    allele_windows,
    kind_of,
    random_changes,
    window_starts,
)
from scfm.data.genome import Genome
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


class Surroundings(Protocol):
    """What is known of the cells where a window lies."""

    groups: tuple[str, ...]

    def signal(
        self, chrom: np.ndarray, start: np.ndarray, length: int, group: int
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
    chrom = np.array([v.chrom for v in beside], dtype=str)
    total = np.zeros((2, n, len(groups), len(model.tasks)))
    for shift in config.shifts:
        sequences = np.concatenate(allele_windows(variants, genome, length, shift))
        starts = window_starts(beside, length, shift)
        for at, group in enumerate(groups):
            signal = surroundings.signal(chrom, starts, length, group)
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
        self, chrom: np.ndarray, start: np.ndarray, length: int, group: int
    ) -> Float[np.ndarray, "window track base"]:
        return np.zeros((len(start), 0, length), dtype=np.float32)

    def cell(self, group: int) -> None:
        return None


def in_regions(
    variants: Sequence[Variant],
    chrom: np.ndarray,
    start: Int[np.ndarray, " region"],
    end: Int[np.ndarray, " region"],
) -> tuple[Int[np.ndarray, " variant"], Bool[np.ndarray, " variant"]]:
    """The region each variant's first base lies in (the one that starts last), or -1."""
    found = np.full(len(variants), -1, dtype=np.int64)
    by_chrom: dict[str, np.ndarray] = {}
    for name in {v.chrom for v in variants}:
        rows = np.flatnonzero(np.asarray(chrom).astype(str) == name)
        by_chrom[name] = rows[np.argsort(start[rows], kind="stable")]
    for number, variant in enumerate(variants):
        rows = by_chrom[variant.chrom]
        last = int(np.searchsorted(start[rows], variant.start, side="right")) - 1
        if last >= 0 and variant.start < end[rows[last]]:
            found[number] = rows[last]
    return found, found >= 0
