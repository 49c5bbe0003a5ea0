"""Stretches of chromosomes: BED files, overlaps, windows tiled over a genome.

in   BED, narrowPeak (gzipped or not); chromosome sizes
out  Intervals: 0-based, half-open
"""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Integer, Shaped

from scfm.data.chrom_names import resolve_names
from scfm.errors import InputError, MissingFileError, UnreadableFileError


@dataclass(frozen=True)
class Intervals:
    """Stretches of chromosomes, in any order; they may overlap.

    Attributes
    ----------
    chrom
        Names.
    start, end
        0-based; ``end`` is the first base after.
    summit
        The position itself, not an offset; None where the file gives none.
    """

    chrom: Shaped[np.ndarray, " interval"]
    start: Int[np.ndarray, " interval"]
    end: Int[np.ndarray, " interval"]
    summit: Int[np.ndarray, " interval"] | None = None

    def __len__(self) -> int:
        return len(self.start)

    @property
    def middle(self) -> Int[np.ndarray, " interval"]:
        """The summit where there is one, else the middle base."""
        middle = (self.start + self.end) // 2
        if self.summit is None:
            return middle
        return np.where(self.summit < 0, middle, self.summit)

    def take(self, kept: np.ndarray) -> "Intervals":
        """Some of them, by number or by True and False."""
        summit = None if self.summit is None else self.summit[kept]
        return Intervals(self.chrom[kept], self.start[kept], self.end[kept], summit)

    def renamed(self, names: Sequence[str]) -> "Intervals":
        """Those on chromosomes a genome has, under its names of them."""
        found, place = np.unique(np.asarray(self.chrom, dtype=str), return_inverse=True)
        meant = resolve_names(found.tolist(), names)
        theirs = np.array([meant[str(name)] or "" for name in found], dtype=str)[place]
        kept = self.take(theirs != "")
        return Intervals(theirs[theirs != ""], kept.start, kept.end, kept.summit)


def read_bed(path: str | Path) -> Intervals:
    """BED of three columns or more; of narrowPeak, the tenth is the summit's offset.

    narrowPeak may have columns of its own after the tenth; BED12, whose tenth counts blocks, is
    told by its lists of sizes and starts.

    Lines that begin with #, track or browser are passed over. Raises MissingFileError,
    UnreadableFileError (not three columns; starts that are no numbers), InputError (an end at or
    before its start).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file (looked in {path.absolute()}).")
    try:
        lines = _lines(path)
        table = pd.DataFrame([line.split("\t") if "\t" in line else line.split() for line in lines])
        if table.empty:
            return Intervals(np.array([], dtype=str), *np.zeros((2, 0), dtype=np.int64))
        start, end = (table[column].astype(np.int64).to_numpy() for column in (1, 2))
        offset = _summit_offsets(table, end - start)
        summit = None if offset is None else np.where(offset < 0, -1, start + offset)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zlib.error) as error:
        raise UnreadableFileError(
            f"{path}: is no BED file: wanted lines of chromosome, start and end, separated by tabs "
            f"({error})."
        ) from error
    if (end <= start).any() or (start < 0).any():
        at = int(np.flatnonzero((end <= start) | (start < 0))[0])
        raise InputError(
            f"{path}: {table[0][at]}:{start[at]}-{end[at]} is no stretch of DNA. Starts are "
            "0-based, ends the first base after: a single base is 100-101."
        )
    return Intervals(table[0].to_numpy(dtype=str), start, end, summit)


def _summit_offsets(
    table: pd.DataFrame, width: Int[np.ndarray, " interval"]
) -> Int[np.ndarray, " interval"] | None:
    """narrowPeak's tenth column, -1 where there is no summit; None for a table of another kind."""
    if table.shape[1] == 10:
        return table[9].astype(np.int64).to_numpy()
    is_bed12 = table.shape[1] == 12 and bool(
        all(table[c].str.fullmatch(r"\d+(,\d+)*,?").all() for c in (10, 11))
    )
    if table.shape[1] < 10 or is_bed12 or not table[9].str.fullmatch(r"-1|\d+").all():
        return None
    offset = table[9].astype(np.int64).to_numpy()
    return offset if (offset < width).all() else None


def _lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    content = gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()
    lines = content.decode("utf-8").splitlines()
    header = ("#", "track", "browser")
    return [line for line in lines if line.strip() and not line.startswith(header)]


def tile(
    sizes: Mapping[str, int],
    length: int,
    stride: int,
    *,
    margin: int = 0,
) -> Intervals:
    """Windows of ``length`` every ``stride`` bases, all within their chromosomes.

    ``margin`` bases at either end of a chromosome are left out.
    """
    chroms, starts = [], []
    for chrom, size in sizes.items():
        first = np.arange(margin, size - margin - length + 1, stride, dtype=np.int64)
        starts.append(first)
        chroms.append(np.full(len(first), chrom))
    if not chroms or not sum(map(len, starts)):
        raise InputError(
            f"No window of {length:,} bases fits: the longest chromosome has "
            f"{max(sizes.values(), default=0):,} and {margin:,} are left out at either end."
        )
    start = np.concatenate(starts)
    return Intervals(np.concatenate(chroms), start, start + length)


def covered_bases(windows: Intervals, features: Intervals) -> Int[np.ndarray, " interval"]:
    """Bases of each window under any of the features; both with the same names of chromosomes."""
    out = np.zeros(len(windows), dtype=np.int64)
    for at, (starts, ends) in _merged_by_chrom(windows, features):
        before = np.concatenate([[0], np.cumsum(ends - starts)])

        def covered_up_to(position, starts=starts, ends=ends, before=before):
            inside = np.searchsorted(starts, position, side="right")
            last_end = np.concatenate([[0], ends])[inside]
            return before[inside] - np.maximum(last_end - position, 0)

        out[at] = covered_up_to(windows.end[at]) - covered_up_to(windows.start[at])
    return out


def holds_position(windows: Intervals, features: Intervals) -> Bool[np.ndarray, " interval"]:
    """Whether the middle (the summit, where known) of any feature lies in a window."""
    out = np.zeros(len(windows), dtype=bool)
    for chrom, at in rows_by_chrom(windows.chrom).items():
        positions = np.sort(features.middle[features.chrom == chrom])
        first = np.searchsorted(positions, windows.start[at], side="left")
        out[at] = np.searchsorted(positions, windows.end[at], side="left") > first
    return out


def rows_by_chrom(chrom: Shaped[np.ndarray, " interval"]) -> dict[str, Integer[np.ndarray, " one"]]:
    """Rows of each chromosome, ascending."""
    names, place = np.unique(np.asarray(chrom, dtype=str), return_inverse=True)
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(len(names) + 1))
    return {str(n): order[bounds[i] : bounds[i + 1]] for i, n in enumerate(names)}


def _merged_by_chrom(windows: Intervals, features: Intervals):
    """For each chromosome of the windows: their rows, and the features there as disjoint runs."""
    features_at = rows_by_chrom(features.chrom)
    for chrom, at in rows_by_chrom(windows.chrom).items():
        rows = features_at.get(chrom)
        if rows is not None:
            yield at, _merged(features.start[rows], features.end[rows])


def _merged(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    opens = np.concatenate([[True], start[1:] > reach[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return start[opens], reach[closes]
