"""The contract of peaks x cells: regions with a genome, sequences and labels, checked.

in   RegionFile: var chrom, start, end (0-based, half-open), optional strand, summit, gc, blacklist,
     sequence; varm["chip_<cell>"] -1, 0, 1 with uns["chip_tfs_<cell>"]; uns["genome"], name or
     {name, fasta, fasta_md5, chrom_sizes}; uns["counting"] "insertions" or "fragments"
out  Regions; what breaks the contract is refused

Older spellings are taken too: chr, chromosome, seqnames; numbers kept as text; a sequence column
"seq100" with its own place in "seq100_window"; labels that hold for the regions where
``in_labelled_chroms`` (or ``labelled``) is True alone, elsewhere -1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Int8, Shaped, UInt8

from scfm.data.assemblies import SIZES, usual_name
from scfm.data.chrom_names import resolve_names
from scfm.data.intervals import Intervals
from scfm.data.nucleotides import UNKNOWN, encode
from scfm.data.region_file import RegionFile
from scfm.data.region_formats import check_labels, check_task_names, parse_intervals
from scfm.errors import InputError, LabelError

CHROM = ("chrom", "chr", "chromosome", "seqnames", "seqname", "Chromosome")
START = ("start", "chromStart", "Start")
END = ("end", "chromEnd", "stop", "End")
COUNTINGS = ("insertions", "fragments")


@dataclass(frozen=True)
class GenomeClaim:
    """What a file says its coordinates are of."""

    name: str | None = None
    fasta: Path | None = None
    fasta_md5: str | None = None
    sizes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class ChipLabels:
    """Labels of one cell type: which TFs, and 1, 0 or -1 at every region."""

    tfs: tuple[str, ...]
    table: Int8[np.ndarray, "region tf"]


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Regions as the contract has them.

    Attributes
    ----------
    codes, codes_start
        Sequences the file carries, one length, and where in the genome each begins; all unknown
        where a region has none. None where the file carries none.
    gc
        Share of G and C, as the file says; NaN where it does not.
    chip
        Labels by cell type.
    counting
        What a count is: "insertions" (both ends of a fragment) or "fragments"; None: not said.
    """

    name: str
    chrom: Shaped[np.ndarray, " region"]
    start: Int[np.ndarray, " region"]
    end: Int[np.ndarray, " region"]
    strand: Shaped[np.ndarray, " region"] | None = None
    summit: Int[np.ndarray, " region"] | None = None
    is_blacklisted: Bool[np.ndarray, " region"] | None = None
    gc: Float[np.ndarray, " region"] | None = None
    codes: UInt8[np.ndarray, "region base"] | None = None
    codes_start: Int[np.ndarray, " region"] | None = None
    chip: Mapping[str, ChipLabels] = field(default_factory=dict)
    genome: GenomeClaim = GenomeClaim()
    counting: str | None = None

    def __len__(self) -> int:
        return len(self.start)

    @property
    def intervals(self) -> Intervals:
        return Intervals(self.chrom, self.start, self.end, self.summit)

    def take(self, kept: np.ndarray) -> "Regions":
        """Some of the regions, by number or by True and False."""
        arrays = {
            key: value[kept] for key, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        chip = {cell: ChipLabels(c.tfs, c.table[kept]) for cell, c in self.chip.items()}
        return replace(self, **arrays, chip=chip)


def read_regions(
    file: RegionFile,
    *,
    genome: str | None = None,
    counting: str | None = None,
    sequence_key: str | None = None,
) -> Regions:
    """The regions of a file, checked by themselves and against what their genome is known to be.

    ``genome`` and ``counting`` stand in for what the file does not say; where it does, they have
    to agree. ``sequence_key`` names the var column of sequences: by itself "sequence", else one
    called seq and a number.

    Raises InputError (no or impossible intervals, regions twice, beyond a chromosome's end, another
    genome than said), LabelError (labels other than -1, 0, 1, or without names).
    """
    name, var = file.name, file.var
    chrom, start, end = _intervals(var, name)
    key = sequence_key or _sequence_key(var)
    codes, codes_start = (None, None) if key is None else _sequences(var, key, start, end, name)
    regions = Regions(
        name=name,
        chrom=chrom,
        start=start,
        end=end,
        strand=_text(var, "strand"),
        summit=_summit(var, start, name),
        is_blacklisted=_flags(var, "blacklist"),
        gc=_gc(var),
        codes=codes,
        codes_start=codes_start,
        chip=_chip(file),
        genome=_claim(file, genome),
        counting=_counting(file, counting),
    )
    sizes = known_sizes(regions.genome)
    if sizes is not None:
        wanted = regions.genome.name or "the genome named in the file"
        check_in_range(regions.intervals, sizes, source=name, genome=wanted)
    return regions


def known_sizes(claim: GenomeClaim) -> Mapping[str, int] | None:
    """Chromosome sizes of the genome a file names, from the file or from our tables."""
    return claim.sizes or (SIZES.get(usual_name(claim.name)) if claim.name else None)


def check_in_range(
    regions: Intervals, sizes: Mapping[str, int], *, source: str, genome: str
) -> None:
    """Refuse regions beyond their chromosome's end (InputError), every chromosome looked at.

    Chromosomes that ``sizes`` lacks pass.
    """
    found, place = np.unique(np.asarray(regions.chrom, dtype=str), return_inverse=True)
    meant = resolve_names(found.tolist(), list(sizes))
    never = np.iinfo(np.int64).max
    known = [meant[str(chrom)] for chrom in found]
    size = np.array([never if key is None else sizes[key] for key in known], dtype=np.int64)
    beyond = np.flatnonzero(regions.end > size[place])
    if beyond.size:
        at = beyond[0]
        raise InputError(
            f"{source}: {beyond.size:,} of {len(regions):,} regions lie beyond their chromosome's "
            f"end, for example {regions.chrom[at]}:{regions.start[at]}-{regions.end[at]}, where "
            f"{genome} has {size[place[at]]:,} bases. They are of another assembly, or were "
            "widened without regard to the ends: clip or drop them, or name the right genome."
        )


def _intervals(var: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = [_first(var, names) for names in (CHROM, START, END)]
    if None in columns:
        if all(column is None for column in columns):
            chrom, start, end = _from_index(var, name)
        else:
            there = ", ".join(map(str, var.columns)) or "none"
            raise InputError(
                f"{name}: var has some but not all of chrom, start and end; there is {there}."
            )
    else:
        chrom = var[columns[0]].astype(str).to_numpy(dtype=str)
        start, end = (_whole(var[column], str(column), name) for column in columns[1:])
    check_intervals(chrom, start, end, name)
    return chrom, start, end


def _from_index(var: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """chr1:100-200, as also spelled chr1-100-200 and chr1_100_200."""
    spelled = var.index.astype(str).str.replace(
        r"^(.+)[-_:](\d+)[-_](\d+)$", r"\1:\2-\3", regex=True
    )
    try:
        return parse_intervals(spelled.to_numpy(dtype=str), f"{name}: var")
    except InputError as error:
        raise InputError(
            f"{error} Or give var the columns chrom, start and end; for genes x cells this is the "
            "wrong command."
        ) from error


def check_intervals(chrom: np.ndarray, start: np.ndarray, end: np.ndarray, name: str) -> None:
    """Refuse what is no stretch of DNA, and what is there twice (InputError)."""
    wrong = np.flatnonzero((start < 0) | (end <= start))
    if wrong.size:
        at = wrong[0]
        raise InputError(
            f"{name}: {wrong.size:,} of {len(start):,} regions are no stretch of DNA, for example "
            f"{chrom[at]}:{start[at]}-{end[at]}. Starts are 0-based, ends the first base after."
        )
    is_again = pd.DataFrame({"c": chrom, "s": start, "e": end}).duplicated().to_numpy()
    if is_again.any():
        at = np.flatnonzero(is_again)[0]
        raise InputError(
            f"{name}: {is_again.sum():,} regions occur twice, for example "
            f"{chrom[at]}:{start[at]}-{end[at]}. Keep one of each: adata[:, ~adata.var[['chrom', "
            "'start', 'end']].duplicated()]."
        )


def _whole(column: Any, key: str, name: str) -> np.ndarray:
    try:
        values: Any = pd.to_numeric(column.astype(object))
        whole = values.to_numpy(dtype=np.float64)
        if not np.isfinite(whole).all() or (whole != np.rint(whole)).any():
            raise ValueError("not whole numbers")
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: var['{key}'] holds what is no position ({error}).") from error
    return whole.astype(np.int64)


def _first(var: pd.DataFrame, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in var.columns), None)


def _text(var: pd.DataFrame, key: str) -> np.ndarray | None:
    return var[key].astype(str).to_numpy(dtype=str) if key in var.columns else None


def _flags(var: pd.DataFrame, key: str) -> np.ndarray | None:
    return var[key].to_numpy(dtype=bool) if key in var.columns else None


def _gc(var: Any) -> np.ndarray | None:
    key = _first(var, ("gc", "GC"))
    if key is None:
        return None
    values: Any = pd.to_numeric(var[key].astype(object), errors="coerce")
    gc: Any = values.to_numpy(dtype=np.float64)
    return gc / 100 if np.nanmax(gc, initial=0.0) > 1 else gc


def _summit(var: Any, start: np.ndarray, name: str) -> np.ndarray | None:
    """Positions in the genome; narrowPeak's offsets are told from them by being short."""
    if "summit" not in var.columns:
        return None
    summit = _whole(var["summit"], "summit", name)
    return np.where((summit >= 0) & (summit < start), start + summit, summit)


def _sequence_key(var: pd.DataFrame) -> str | None:
    if "sequence" in var.columns:
        return "sequence"
    return next((c for c in map(str, var.columns) if re.fullmatch(r"seq\d+", c)), None)


def _sequences(
    var: Any, key: str, start: np.ndarray, end: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    if key not in var.columns:
        there = ", ".join(map(str, var.columns))
        raise InputError(f"{name}: var has no column '{key}' of sequences; there is {there}.")
    letters = var[key].astype(object)
    codes = encode(letters.where(letters.notna(), "").astype(str).to_numpy(dtype=str), name)
    window = f"{key}_window"
    if window not in var.columns:
        return codes, (start + end) // 2 - codes.shape[1] // 2
    codes_start = np.full(len(var), -1, dtype=np.int64)
    spelled = var[window].astype(object)
    is_said = (spelled.notna() & (spelled.astype(str) != "")).to_numpy()
    codes_start[is_said] = parse_intervals(
        spelled[is_said].to_numpy(dtype=str), f"{name}: {window}"
    )[1]
    return codes, codes_start


def _chip(file: RegionFile) -> dict[str, ChipLabels]:
    is_labelled = _flags(file.var, "labelled")
    if is_labelled is None:
        is_labelled = _flags(file.var, "in_labelled_chroms")
    chip = {}
    for key, read in file.varm.items():
        if not key.startswith("chip_"):
            continue
        cell, stored = key.removeprefix("chip_"), read()
        tfs = file.get_uns(f"chip_tfs_{cell}")
        if tfs is None and isinstance(stored, pd.DataFrame):
            tfs = stored.columns
        if tfs is None:
            raise LabelError(
                f"{file.name}: varm['{key}'] has no names. Wanted: uns['chip_tfs_{cell}'], the TF "
                "of each column."
            )
        table = check_labels(stored, f"{file.name}: varm['{key}']")
        names = [str(tf) for tf in np.atleast_1d(np.asarray(tfs))]
        check_task_names(names, table.shape[1], f"{file.name}: varm['{key}']")
        if is_labelled is not None:
            table[~is_labelled] = -1
        chip[cell] = ChipLabels(tuple(names), table)
    return chip


def _claim(file: RegionFile, given: str | None) -> GenomeClaim:
    stored = file.get_uns("genome")
    if not isinstance(stored, Mapping):
        stored = {} if stored is None else {"name": stored}
    name = None if stored.get("name") is None else str(stored["name"])
    if given and name and usual_name(given) != usual_name(name):
        raise InputError(
            f"{file.name}: says its genome is {name}, but {given} was asked for. Lift the regions "
            "over first, or ask for what it is."
        )
    fasta = stored.get("fasta")
    sizes: Any = stored.get("chrom_sizes")
    return GenomeClaim(
        name=name or given,
        fasta=None if fasta is None else Path(str(fasta)),
        fasta_md5=None if stored.get("fasta_md5") is None else str(stored["fasta_md5"]),
        sizes=None if sizes is None else {str(c): int(sizes[c]) for c in sizes},
    )


def _counting(file: RegionFile, given: str | None) -> str | None:
    stored = file.get_uns("counting")
    stored = None if stored is None else str(stored)
    for said in (stored, given):
        if said is not None and said not in COUNTINGS:
            raise InputError(
                f"{file.name}: counting is {said!r}. Wanted: 'insertions' (both ends of a "
                "fragment) or 'fragments'."
            )
    if stored and given and stored != given:
        raise InputError(f"{file.name}: says it counts {stored}, but {given} was asked for.")
    return stored or given


def has_sequence(codes: UInt8[np.ndarray, "region base"]) -> Bool[np.ndarray, " region"]:
    """Whether any base is known."""
    return (codes != UNKNOWN).any(axis=1)
