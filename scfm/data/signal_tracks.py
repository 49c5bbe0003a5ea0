"""bigWig files -> accessibility along windows, many at a time.

in   bigWigs: one a track, or one a track and group of cells ("atac.{group}.bw")
out  log1p of insertions a base pair, scaled to 20 million in all; or the values as they are

A file stays open from its first window on. The windows of a batch are read in the order of the
genome, and those that touch in one go.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Integer

from scfm.data.chrom_names import resolve_names
from scfm.errors import ConfigError, InputError, MissingFileError, UnreadableFileError

TARGET_TOTAL = 20e6  # what a track's insertions are scaled to: "rpm20M"
MOST_OPEN = 128  # files held open at once
LONGEST_READ = 2**20  # bases

Scale = Literal["total", "rpm20M", "none"]


@dataclass(frozen=True)
class Track:
    """One row of the signal.

    Attributes
    ----------
    path
        A bigWig; with "{group}" in it, one for each group of cells.
    scale
        "total": scaled so that the file's values sum to 20 million, then log1p. "rpm20M": they are
        scaled so already; log1p only. "none": as they are, for mappability and the like.
    """

    path: str
    scale: Scale = "total"

    @classmethod
    def parse(cls, text: str | Path) -> "Track":
        """A path, or PATH:SCALE."""
        path, colon, scale = str(text).rpartition(":")
        if colon and scale in get_args(Scale):
            return cls(path, parse_scale(scale, str(text)))
        return cls(str(text))


def parse_scale(text: str, where: str) -> Scale:
    """A scale by its name. Raises ConfigError."""
    for scale in get_args(Scale):
        if text == scale:
            return scale
    raise ConfigError(f"{where}: scale is {text!r}. Wanted: {', '.join(get_args(Scale))}.")


class Tracks:
    """The tracks of a run. Safe to hand to worker processes: each opens the files for itself.

    Raises MissingFileError and UnreadableFileError for a file that is not there or no bigWig, when
    made; InputError where a file has none of the genome's chromosomes.
    """

    def __init__(
        self,
        tracks: Mapping[str, Track | str | Path],
        chroms: Sequence[str],
        groups: Sequence[str] = (),
    ) -> None:
        self.tracks = {
            name: track if isinstance(track, Track) else Track.parse(track)
            for name, track in tracks.items()
        }
        self.names = tuple(self.tracks)
        self._chroms, self._groups = tuple(chroms), tuple(groups)
        self._open: OrderedDict[str, _OpenTrack] = OrderedDict()
        self._process = os.getpid()
        for name, track in self.tracks.items():
            if "{group}" in track.path and not groups:
                raise ConfigError(
                    f"Track {name} has a file for each group ({track.path}), but the cells are not "
                    "grouped. Name the obs column of the groups: --group-key cell_type."
                )
            for path in self._paths(track):
                self._reader(path, track.scale)

    def windows(
        self,
        chrom: Integer[np.ndarray, " window"],
        start: Integer[np.ndarray, " window"],
        length: int,
        group: Integer[np.ndarray, " window"],
    ) -> Float[np.ndarray, "window track base"]:
        """Signal along windows; ``chrom`` is a position in the genome's names.

        0 where a file has no value, and off the ends of a chromosome.
        """
        out = np.zeros((len(start), len(self.names), length), dtype=np.float32)
        order = np.lexsort((start, chrom))
        for row, track in enumerate(self.tracks.values()):
            for path, members in self._by_path(track, group[order]):
                at = order[members]
                reader = self._reader(path, track.scale)
                for first, last in _runs(chrom[at], start[at], length):
                    run = at[first:last]
                    reader.read(int(chrom[run[0]]), start[run], length, out, run, row)
        return out

    def _paths(self, track: Track) -> list[str]:
        if "{group}" not in track.path:
            return [track.path]
        return [track.path.replace("{group}", group) for group in self._groups]

    def _by_path(self, track: Track, group: np.ndarray) -> list[tuple[str, np.ndarray]]:
        paths = self._paths(track)
        if len(paths) == 1:
            return [(paths[0], np.arange(len(group)))]
        return [(paths[g], np.flatnonzero(group == g)) for g in np.unique(group)]

    def _reader(self, path: str, scale: Scale) -> "_OpenTrack":
        if self._process != os.getpid():  # a fork shares the file's position with its parent
            self._open, self._process = OrderedDict(), os.getpid()
        if path not in self._open:
            self._open[path] = _OpenTrack(path, scale, self._chroms)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def __reduce__(self):
        return Tracks, (self.tracks, self._chroms, self._groups)


class _OpenTrack:
    """One open bigWig, with its names of the genome's chromosomes and its scale."""

    def __init__(self, path: str, scale: Scale, chroms: Sequence[str]) -> None:
        import pybigtools

        self._path = path
        if not Path(path).is_file():
            raise MissingFileError(f"{path}: no such file (looked in {Path(path).absolute()}).")
        try:
            self._file: Any = pybigtools.open(path)
            sizes = self._file.chroms()
            info = self._file.info()
        except _damage() as error:
            raise UnreadableFileError(f"{path}: cannot be read as a bigWig ({error}).") from error
        meant = resolve_names(chroms, list(sizes))
        self._names = [meant[chrom] for chrom in chroms]
        if not any(self._names):
            raise InputError(
                f"{path}: has none of the genome's chromosomes. It has "
                f"{', '.join(list(sizes)[:3])}, the genome {', '.join(chroms[:3])}. Name a bigWig "
                "of this assembly."
            )
        total = float(info["summary"]["sum"])
        if scale == "total" and total <= 0:
            raise InputError(f"{path}: its values sum to {total:g}, so it cannot be scaled.")
        self._factor = TARGET_TOTAL / total if scale == "total" else 1.0
        self._is_log = scale != "none"

    def read(
        self,
        chrom: int,
        start: np.ndarray,
        length: int,
        out: np.ndarray,
        rows: np.ndarray,
        track: int,
    ) -> None:
        """Fill ``out[rows, track]`` with windows whose starts ascend and that touch."""
        name = self._names[chrom]
        if name is None:  # no value on the whole chromosome
            return
        first = int(start[0])
        try:
            values = self._file.values(
                name, first, int(start[-1]) + length, uncovered=0.0, oob=0.0, fillna=0.0
            )
        except _damage() as error:
            raise UnreadableFileError(
                f"{self._path}: is damaged at {name}:{first} ({error}). Get it again."
            ) from error
        values *= self._factor
        if self._is_log:
            np.log1p(values, out=values)
        for row, at in zip(rows, start - first, strict=True):
            out[row, track] = values[at : at + length]

    def close(self) -> None:
        self._file.close()


def _damage() -> tuple[type[Exception], ...]:
    import pybigtools

    damaged: type[Exception] = vars(pybigtools)["BBIReadError"]  # made in Rust, unknown to checkers
    return OSError, ValueError, RuntimeError, damaged


def _runs(chrom: np.ndarray, start: np.ndarray, length: int) -> list[tuple[int, int]]:
    """Sorted windows cut where the next does not touch the one before, and every LONGEST_READ."""
    block = start // LONGEST_READ
    is_new = (np.diff(chrom) != 0) | (np.diff(start) > length) | (np.diff(block) != 0)
    bounds = [0, *(np.flatnonzero(is_new) + 1).tolist(), len(start)]
    return list(pairwise(bounds)) if len(start) else []
