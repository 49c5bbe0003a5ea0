"""Regions -> the windows that are read: where they lie, how long, and where their DNA comes from.

in   Regions; a FASTA, or the sequences the file carries
out  Windows
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from scfm.data.chrom_names import require_names
from scfm.data.genome import Genome
from scfm.data.nucleotides import UNKNOWN
from scfm.data.reference_check import check_reference
from scfm.data.regions import ChipLabels, Regions, has_sequence
from scfm.errors import ConfigError, InputError, ScfmWarning


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of one length, one a region.

    Attributes
    ----------
    regions
        Those that are kept, with the genome's names of chromosomes.
    source_row
        Which of the file's each is.
    chroms
        Names ``chrom_number`` counts by.
    start
        Of the windows; may be before the chromosome, and the end after.
    sequences
        A Genome, or codes.
    """

    regions: Regions
    source_row: Int[np.ndarray, " region"]
    chroms: tuple[str, ...]
    chrom_number: Int[np.ndarray, " region"]
    start: Int[np.ndarray, " region"]
    length: int
    sequences: Genome | UInt8[np.ndarray, "region base"]

    @property
    def genome(self) -> str | None:
        """Name of the assembly, where it is known."""
        ours = self.sequences.name if isinstance(self.sequences, Genome) else None
        return self.regions.genome.name or ours


def plan_windows(
    regions: Regions,
    *,
    fasta: str | Path | None = None,
    folder: Path | None = None,
    length: int | None = None,
    require_sequence: bool = True,
) -> Windows:
    """The windows of regions, from the FASTA where one is named here or (and is there) in the file.

    Labels of blacklisted regions become unknown. ``folder`` is the file's, for relative paths.
    Raises InputError (no sequences; another genome), ConfigError (no one length), and what opening
    the FASTA raises.
    """
    regions = _without_blacklisted_labels(regions)
    fasta = fasta or _named_fasta(regions, folder)
    if fasta is None:
        return _of_codes(regions, length, require_sequence)
    genome = Genome.open(fasta)
    check_reference(regions, genome)
    known = require_names(
        np.unique(regions.chrom).tolist(), genome.names, source=regions.name, genome=str(fasta)
    )
    names, place = np.unique(regions.chrom, return_inverse=True)
    chrom = np.array([known[str(name)] for name in names], dtype=str)[place]
    length = length or _own_length(regions)
    return Windows(
        regions=replace(regions, chrom=chrom),
        source_row=np.arange(len(regions)),
        chroms=genome.names,
        chrom_number=genome.numbers(chrom),
        start=regions.intervals.middle - length // 2,
        length=length,
        sequences=genome,
    )


def _without_blacklisted_labels(regions: Regions) -> Regions:
    if regions.is_blacklisted is None or not regions.is_blacklisted.any():
        return regions
    chip = {}
    for cell, labels in regions.chip.items():
        table = np.where(regions.is_blacklisted[:, None], np.int8(-1), labels.table)
        chip[cell] = ChipLabels(labels.tfs, table)
    return replace(regions, chip=chip)


def _named_fasta(regions: Regions, folder: Path | None) -> Path | None:
    """The FASTA the file names, where it is on this machine."""
    named = regions.genome.fasta
    if named is None:
        return None
    candidates = [named] if folder is None or named.is_absolute() else [folder / named, named]
    return next((path for path in candidates if path.is_file()), None)


def _own_length(regions: Regions) -> int:
    widths = np.unique(regions.end - regions.start)
    if len(widths) > 1:
        raise ConfigError(
            f"{regions.name}: regions of {widths[0]:,} to {widths[-1]:,} bases, and no length of "
            "windows was asked for. Say one: length=1000 (--set data.length=1000)."
        )
    return int(widths[0])


def _of_codes(regions: Regions, length: int | None, require_sequence: bool) -> Windows:
    codes, codes_start = regions.codes, regions.codes_start
    if codes is None or codes_start is None:
        if require_sequence:
            raise InputError(
                f"{regions.name}: carries no sequences (var 'sequence'). Name the FASTA of "
                f"{regions.genome.name or 'its genome'}: fasta= (--fasta)."
            )
        length = _own_length(regions) if length is None else length
        codes = np.full((len(regions), length), UNKNOWN, dtype=np.uint8)
        codes_start = regions.intervals.middle - length // 2
    kept = np.arange(len(regions))
    if require_sequence:
        kept = np.flatnonzero(has_sequence(codes))
        if len(kept) < len(regions):
            genome = regions.genome.name or "the genome"
            warnings.warn(
                f"{regions.name}: {len(regions) - len(kept):,} of {len(regions):,} regions carry "
                f"no sequence and are left out. To use them, name the FASTA of {genome}: fasta= "
                "(--fasta).",
                ScfmWarning,
                stacklevel=4,
            )
    length = int(codes.shape[1]) if length is None else length
    if not 0 < length <= codes.shape[1]:
        raise ConfigError(
            f"{regions.name}: windows of {length:,} bases were asked for, but its sequences have "
            f"{codes.shape[1]:,}. Ask for at most that, or name the FASTA of the genome."
        )
    first = (codes.shape[1] - length) // 2
    names, place = np.unique(regions.chrom[kept], return_inverse=True)
    return Windows(
        regions=regions.take(kept),
        source_row=kept,
        chroms=tuple(names.tolist()),
        chrom_number=place,
        start=codes_start[kept] + first,
        length=length,
        sequences=np.ascontiguousarray(codes[kept, first : first + length]),
    )
