"""FASTA and peaks -> windows with labels, as a file.

in   FASTA, BED or narrowPeak files of TFs, a blacklist
out  h5ad without cells that holds the contract of scfm.data.regions
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scfm.data.genome import Genome
from scfm.data.intervals import Intervals, covered_bases, read_bed, tile
from scfm.data.nucleotides import UNKNOWN, gc_share
from scfm.data.region_labels import Rule, label_windows, refuse_unlabelled
from scfm.data.regions import check_in_range
from scfm.data.write import check_writable, write_h5ad
from scfm.errors import ConfigError, InputError

CELL = "bulk"  # the cell type of peaks that name none
MOST_WINDOWS = 5_000_000
READ_AT_ONCE = 2**16  # windows


@dataclass(frozen=True, kw_only=True)
class RegionsConfig:
    """How windows are laid over a genome and labelled.

    Attributes
    ----------
    length, stride
        Bases of a window, and from one to the next.
    overlap
        "half": bound where more than ``share`` of a window lies under a peak. "centre": where it
        holds a peak's summit or middle.
    margin
        Bases left out at either end of a chromosome.
    background
        Unlabelled windows kept for each that has a label other than 0; None keeps all.
    with_sequence
        Store the windows' DNA, so that the file needs no FASTA.
    """

    length: int = 200
    stride: int = 50
    overlap: Rule = "half"
    share: float = 0.5
    margin: int = 0
    background: float | None = None
    seed: int = 0
    with_sequence: bool = False

    def __post_init__(self) -> None:
        for name in ("length", "stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.share < 1:
            raise ConfigError(f"share must be at least 0 and below 1, got {self.share:g}.")


@dataclass(frozen=True)
class RegionsMade:
    """What was written."""

    out: str
    genome: str | None
    n_windows: int
    n_bound: dict[str, int]
    n_unknown: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.n_windows:,} windows of {self.genome or 'a genome without a known name'}"]
        lines += [
            f"  {task}: {n:,} bound ({n / self.n_windows:.2%}), {self.n_unknown[task]:,} unknown"
            for task, n in self.n_bound.items()
        ]
        return "\n".join(lines)


def make_regions(
    fasta: str | Path,
    peaks: Mapping[str, str | Path],
    out: str | Path,
    config: RegionsConfig | None = None,
    *,
    relaxed: Mapping[str, str | Path] | None = None,
    blacklist: str | Path | None = None,
    genome_name: str | None = None,
) -> RegionsMade:
    """Tile a genome, label the windows by peaks, and write them as an h5ad without cells.

    Keys of ``peaks`` and ``relaxed`` are "TF" or "TF:cell". Real background is kept: what is under
    no peak is a window like another. Chromosomes without a conservative peak of a TF have that TF's
    labels all 0 like any other; leave chromosomes that were not assayed out of the FASTA, or mark
    their labels -1. Raises what reading the files raises; InputError, ConfigError.
    """
    config = config or RegionsConfig()
    check_writable(out)
    genome = Genome.open(fasta, name=genome_name)
    called = {task: read_bed(path) for task, path in peaks.items()}
    lenient = {task: read_bed(path) for task, path in (relaxed or {}).items()}
    for beds, files in ((called, peaks), (lenient, relaxed or {})):
        for task, bed in beds.items():
            name = genome.name or str(fasta)
            check_in_range(bed, genome.sizes, source=str(files[task]), genome=name)
    banned = None if blacklist is None else read_bed(blacklist).renamed(genome.names)
    sizes = {chrom: size for chrom, size in genome.sizes.items() if size >= config.length}
    rng = np.random.default_rng(config.seed)
    kept: list[tuple[Intervals, np.ndarray]] = []
    for chrom in sizes or genome.sizes:
        found = _labelled_windows(chrom, genome, called, lenient, banned, config, rng)
        if found is not None:
            kept.append(found)
    if not kept:
        raise InputError(
            f"{fasta}: no window of {config.length:,} bases is left; its longest chromosome has "
            f"{max(genome.sizes.values()):,}. Ask for shorter ones: --length."
        )
    windows = Intervals(
        *(np.concatenate([getattr(w, key) for w, _ in kept]) for key in ("chrom", "start", "end"))
    )
    table = np.concatenate([labels for _, labels in kept])
    told = windows
    if not len(windows):  # background goes by labels, and there is none: the refusal needs some
        names = np.array(genome.names)
        start = np.zeros(len(names), dtype=np.int64)
        told = Intervals(names, start, start + config.length)
    refuse_unlabelled(table, told, called, config.overlap, config.share)
    adata = _as_anndata(windows, table, tuple(called), genome, config)
    write_h5ad(adata, out)
    return RegionsMade(
        out=str(out),
        genome=genome.name,
        n_windows=len(windows),
        n_bound=dict(zip(called, (table == 1).sum(axis=0).tolist(), strict=True)),
        n_unknown=dict(zip(called, (table == -1).sum(axis=0).tolist(), strict=True)),
    )


def _labelled_windows(
    chrom: str,
    genome: Genome,
    peaks: Mapping[str, Intervals],
    relaxed: Mapping[str, Intervals],
    banned: Intervals | None,
    config: RegionsConfig,
    rng: np.random.Generator,
) -> tuple[Intervals, np.ndarray] | None:
    """One chromosome's windows; None where none is left. Memory is that of a chromosome."""
    size = {chrom: genome.sizes[chrom]}
    if size[chrom] - 2 * config.margin < config.length:
        return None
    windows = tile(size, config.length, config.stride, margin=config.margin)
    if banned is not None and len(banned):
        windows = windows.take(covered_bases(windows, banned) == 0)
    windows = windows.take(_is_known(genome, windows))
    if not len(windows):
        return None
    table, _ = label_windows(
        windows, peaks, relaxed, rule=config.overlap, share=config.share, allow_none=True
    )
    if config.background is not None:
        has_label = (table != 0).any(axis=1)
        n_background = min(int(config.background * has_label.sum()), int((~has_label).sum()))
        others = rng.choice(np.flatnonzero(~has_label), n_background, replace=False)
        chosen = np.sort(np.concatenate([np.flatnonzero(has_label), others]))
        windows, table = windows.take(chosen), table[chosen]
    elif len(windows) > MOST_WINDOWS:
        raise ConfigError(
            f"{chrom}: {len(windows):,} windows on this chromosome alone. Keep part of the "
            "background (--background 5), or lay fewer windows (--stride 200)."
        )
    return windows, table


def _is_known(genome: Genome, windows: Intervals) -> np.ndarray:
    """False where a window's middle is N: nothing can be bound where nothing is known."""
    middle = genome.codes(np.asarray(windows.chrom), windows.middle, 1)
    return middle[:, 0] != UNKNOWN


def _as_anndata(
    windows: Intervals,
    table: np.ndarray,
    tasks: tuple[str, ...],
    genome: Genome,
    config: RegionsConfig,
) -> ad.AnnData:
    var = pd.DataFrame({"chrom": windows.chrom, "start": windows.start, "end": windows.end})
    var["chrom"] = var["chrom"].astype("category")
    var.index = pd.Index(
        [f"{c}:{s}-{e}" for c, s, e in zip(var["chrom"], var["start"], var["end"], strict=True)]
    )
    var["gc"] = _composition(genome, windows)
    if config.with_sequence:
        rows = zip(windows.chrom, windows.start, windows.end, strict=True)
        var["sequence"] = [genome.sequence(str(c), int(s), int(e)) for c, s, e in rows]
    chip = _by_cell(tasks)
    sizes = {str(chrom): int(size) for chrom, size in genome.sizes.items()}
    claim = {"fasta": str(genome.path.absolute()), "chrom_sizes": sizes}
    labels: Any = {f"chip_{cell}": table[:, columns] for cell, (columns, _) in chip.items()}
    return ad.AnnData(
        obs=pd.DataFrame(index=pd.Index([], dtype=str)),
        var=var,
        varm=labels,
        uns={
            "genome": claim | ({"name": genome.name} if genome.name else {}),
            "windows": {k: v for k, v in asdict(config).items() if v is not None},
            **{f"chip_tfs_{cell}": np.array(tfs) for cell, (_, tfs) in chip.items()},
        },
    )


def _by_cell(tasks: Sequence[str]) -> dict[str, tuple[list[int], list[str]]]:
    """ "TF:cell" -> the columns and TFs of each cell type."""
    found: dict[str, tuple[list[int], list[str]]] = {}
    for column, task in enumerate(tasks):
        tf, _, cell = task.partition(":")
        columns, tfs = found.setdefault(cell or CELL, ([], []))
        columns.append(column)
        tfs.append(tf)
    return found


def _composition(genome: Genome, windows: Intervals) -> np.ndarray:
    length = int(windows.end[0] - windows.start[0])
    parts = [
        gc_share(genome.codes(windows.chrom[at], windows.start[at], length))
        for at in np.array_split(np.arange(len(windows)), len(windows) // READ_AT_ONCE + 1)
    ]
    return np.concatenate(parts)
