"""Regions in groups of cells: sequence from a FASTA or the file, signal from counts and bigWigs.

in   Regions, a place sequences come from, counts of the groups, tracks, labels by cell type
out  RegionBatch of (region, group) examples
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Int8, Integer, Shaped, UInt8

from scfm.batch import RegionBatch
from scfm.data.genome import Genome
from scfm.data.nucleotides import one_hot
from scfm.data.regions import ChipLabels
from scfm.data.signal_tracks import Tracks
from scfm.errors import LabelError

ACCESSIBILITY = "accessibility"  # the row of the signal that comes from the groups' own counts


@dataclass(frozen=True)
class GroupSignal:
    """What is known of the groups of cells.

    Attributes
    ----------
    names
        Of the groups.
    log_rate
        CSR (group, region): log1p of counts a base pair of the region, scaled to 20 million counts
        in all the file's regions. Constant along a window.
    depth
        Counts of each group in all the file's regions.
    n_cells
        Cells of each.
    embedding, has_embedding
        Mean over the group's cells that have one; None where none was asked for.
    """

    names: tuple[str, ...]
    log_rate: sp.csr_matrix
    depth: Float[np.ndarray, " group"]
    n_cells: Int[np.ndarray, " group"]
    embedding: Float[np.ndarray, "group d"] | None = None
    has_embedding: Shaped[np.ndarray, " group"] | None = None


@dataclass(frozen=True)
class GroupLabels:
    """Labels of regions, by the cell type a group is of.

    Attributes
    ----------
    tasks
        TFs where there are groups, "TF:cell" where there are none.
    chip
        Cell types that have labels.
    tables
        1, 0, -1; -1 for a TF that a cell type has no ChIP of.
    chip_of_group
        Position in ``chip`` of each group's cell type, -1 where it has none; empty without groups.
    """

    tasks: tuple[str, ...]
    chip: tuple[str, ...]
    tables: Int8[np.ndarray, "chip region task"]
    chip_of_group: Int[np.ndarray, " group"]

    @classmethod
    def without_groups(cls, chip: Mapping[str, ChipLabels], n_regions: int) -> "GroupLabels":
        """One task a TF and cell type."""
        tasks = tuple(f"{tf}:{cell}" for cell, labels in chip.items() for tf in labels.tfs)
        tables = [labels.table for labels in chip.values()]
        empty = np.zeros((n_regions, 0), dtype=np.int8)
        table = np.concatenate([empty, *tables], axis=1)
        return cls(tasks, tuple(chip), table[None], np.zeros(0, dtype=np.int64))

    @classmethod
    def by_group(
        cls, chip: Mapping[str, ChipLabels], n_regions: int, cell_types: Sequence[str | None]
    ) -> "GroupLabels":
        """One task a TF; ``cell_types`` is each group's name among ``chip``, or None."""
        tasks = tuple(sorted({tf for labels in chip.values() for tf in labels.tfs}))
        tables = np.full((len(chip), n_regions, len(tasks)), -1, dtype=np.int8)
        for plane, labels in zip(tables, chip.values(), strict=True):
            plane[:, [tasks.index(tf) for tf in labels.tfs]] = labels.table
        names = list(chip)
        known = [-1 if cell is None else names.index(cell) for cell in cell_types]
        return cls(tasks, tuple(names), tables, np.array(known, dtype=np.int64))

    def of(self, region: np.ndarray, group: np.ndarray) -> Int8[np.ndarray, "example task"]:
        """Labels of these examples."""
        if not len(self.chip_of_group):
            return self.tables[0][region]
        chip = self.chip_of_group[group]
        if not len(self.chip):
            return np.zeros((len(region), 0), dtype=np.int8)
        labels = self.tables[chip, region]
        labels[chip < 0] = -1
        return labels


@dataclass(frozen=True, kw_only=True)
class GenomeRegions:
    """Regions of a genome, seen in groups of cells or in none: a RegionExamples.

    Attributes
    ----------
    chrom, start, end
        The regions, with the FASTA's names of chromosomes where there is one.
    chrom_number, window_start
        Where the windows lie that are read: around the middle, or where the file's sequences do.
    sequences
        A Genome to read from, or the codes themselves.
    group_signal
        None where there are no groups.
    binding
        Labels.
    bulk
        bigWig tracks; None where there are none.
    source_row
        Which region of the file each is.
    genome
        Name of the assembly, where it is known.
    """

    name: str
    chrom: Shaped[np.ndarray, " region"]
    start: Int[np.ndarray, " region"]
    end: Int[np.ndarray, " region"]
    chrom_number: Int[np.ndarray, " region"]
    window_start: Int[np.ndarray, " region"]
    length: int
    sequences: Genome | UInt8[np.ndarray, "region base"]
    binding: GroupLabels
    source_row: Int[np.ndarray, " region"]
    group_signal: GroupSignal | None = None
    bulk: Tracks | None = None
    genome: str | None = None

    @property
    def n_regions(self) -> int:
        return len(self.start)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.binding.tasks

    @property
    def groups(self) -> tuple[str, ...]:
        return () if self.group_signal is None else self.group_signal.names

    @property
    def tracks(self) -> tuple[str, ...]:
        """Accessibility of the groups first, where there are any, then the bigWigs."""
        own = () if self.group_signal is None else (ACCESSIBILITY,)
        return own + (() if self.bulk is None else self.bulk.names)

    @property
    def cell_types(self) -> tuple[str | None, ...]:
        """The cell type whose ChIP each group's labels are; None where it has none."""
        names = self.binding.chip
        return tuple(None if at < 0 else names[at] for at in self.binding.chip_of_group)

    def labels(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> Int8[np.ndarray, "example task"]:
        """Labels of these examples, without reading sequence or signal."""
        return self.binding.of(np.asarray(region), np.asarray(group))

    def accessibility(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> Float[np.ndarray, " example"]:
        """The groups' own signal at the regions, without reading sequence."""
        if self.group_signal is None:
            raise LabelError(
                f"{self.name} was opened without groups. Name the obs column: --group-key."
            )
        return np.asarray(self.group_signal.log_rate[group, region], dtype=np.float32).ravel()

    def batch(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> RegionBatch:
        """Windows, signal, labels and embeddings of these examples."""
        region, group = np.asarray(region, dtype=np.int64), np.asarray(group, dtype=np.int64)
        signal = np.zeros((len(region), len(self.tracks), self.length), dtype=np.float32)
        own = self.group_signal
        if own is not None:
            signal[:, 0] = self.accessibility(region, group)[:, None]
        if self.bulk is not None:
            first = len(self.tracks) - len(self.bulk.names)
            signal[:, first:] = self.bulk.windows(
                self.chrom_number[region], self.window_start[region], self.length, group
            )
        cell, has_cell = None, None
        if own is not None and own.embedding is not None and own.has_embedding is not None:
            cell, has_cell = own.embedding[group], own.has_embedding[group]
        return RegionBatch(
            sequence=self._sequence(region),
            signal=signal,
            labels=self.labels(region, group),
            region_index=region,
            group_index=group,
            cell=cell,
            has_cell=has_cell,
        )

    def _sequence(self, region: np.ndarray) -> Float[np.ndarray, "window 4 base"]:
        if isinstance(self.sequences, Genome):
            return self.sequences.one_hot(
                self.chrom_number[region], self.window_start[region], self.length
            )
        return one_hot(self.sequences[region])
