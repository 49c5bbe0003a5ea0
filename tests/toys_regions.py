"""Windows of DNA whose binding is known: a motif, accessible or not."""

from dataclasses import dataclass, field

import numpy as np

from scfm.batch import RegionBatch
from scfm.data.region_sequences import SequenceRegions

MOTIFS = ("TGACTCA", "GGGCGG")
BASES = "ACGT"


def planted_codes(rng, n, length, motifs=MOTIFS):
    """Random DNA; each motif in half of the windows, on either strand. Codes and labels."""
    codes = rng.integers(0, 4, (n, length), dtype=np.uint8)
    labels = np.zeros((n, len(motifs)), np.int8)
    for task, motif in enumerate(motifs):
        word = np.array([BASES.index(base) for base in motif], np.uint8)
        for i in np.flatnonzero(rng.random(n) < 0.5):
            at = rng.integers(0, length - len(word) + 1)
            codes[i, at : at + len(word)] = word if rng.random() < 0.5 else 3 - word[::-1]
            labels[i, task] = 1
    return codes, labels


def window_regions(rng, n=600, length=60, chroms=("chr1", "chr2", "chr3")) -> SequenceRegions:
    """Windows with motifs on three chromosomes, none overlapping."""
    codes, labels = planted_codes(rng, n, length)
    start = np.arange(n, dtype=np.int64) * 2 * length
    return SequenceRegions(
        name="toy",
        tasks=("AP1", "SP1"),
        chrom=np.array([chroms[i * len(chroms) // n] for i in range(n)]),
        start=start,
        end=start + length,
        codes=codes,
        label_table=labels,
        source_row=np.arange(n),
    )


@dataclass(frozen=True)
class GroupedRegions:
    """Two groups of cells: a TF binds its motif only where the window is accessible."""

    windows: SequenceRegions
    is_open: np.ndarray  # (region, group)
    groups: tuple[str, ...] = ("T", "B")
    tracks: tuple[str, ...] = ("atac",)
    d_cell: int = 0
    unknown: frozenset = field(default_factory=frozenset)  # tasks without labels

    @classmethod
    def drawn(cls, rng, n=600, length=60, **more):
        return cls(window_regions(rng, n, length), rng.random((n, 2)) < 0.5, **more)

    tasks = property(lambda self: self.windows.tasks)
    length = property(lambda self: self.windows.length)
    chrom = property(lambda self: self.windows.chrom)
    start = property(lambda self: self.windows.start)
    end = property(lambda self: self.windows.end)
    n_regions = property(lambda self: self.windows.n_regions)

    def labels(self, region, group):
        found = self.windows.label_table[region] * self.is_open[region, group][:, None]
        found = found.astype(np.int8)
        found[:, sorted(self.unknown)] = -1
        return found

    def batch(self, region, group):
        plain = self.windows.batch(region, group)
        shape = np.linspace(0.5, 1.5, self.length)  # lopsided, so that its direction matters
        signal = (self.is_open[region, group][:, None, None] * shape).astype(np.float32)
        cell = None
        if self.d_cell:
            cell = np.eye(2, self.d_cell, dtype=np.float32)[group]
        return RegionBatch(
            sequence=plain.sequence,
            signal=signal,
            labels=self.labels(region, group),
            region_index=plain.region_index,
            group_index=np.asarray(group),
            cell=cell,
            has_cell=None if cell is None else np.ones(len(region), dtype=bool),
        )
