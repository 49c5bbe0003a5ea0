"""A fragments file -> peaks x cells, streaming.

in   fragments.tsv(.gz): chromosome, start, end, barcode, ...; 0-based, half-open; peaks
out  counts of each barcode in each peak, as insertions or as fragments

Insertions are where the transposase cut: the first and the last base of a fragment, each counted in
the peaks it lies in. A fragment is counted once in every peak it overlaps. Memory is that of the
result and one block of the file.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from scfm.data.chrom_names import resolve_names
from scfm.data.compiled import compiled
from scfm.data.intervals import Intervals, rows_by_chrom
from scfm.errors import InputError, MissingFileError, UnreadableFileError

Counting = Literal["insertions", "fragments"]
BLOCK_BYTES = 2**24
MERGE_AT = 2**24  # counts held in pieces before they are added up


@dataclass(frozen=True)
class FragmentCounts:
    """Counts of cells in peaks.

    Attributes
    ----------
    barcodes
        Of the rows, in the order asked for, else sorted.
    counts
        CSR (cell, peak), int32.
    n_fragments
        Of each cell in the whole file, in peaks or not.
    """

    barcodes: tuple[str, ...]
    counts: sp.csr_matrix
    n_fragments: Int[np.ndarray, " cell"]


def count_fragments(
    path: str | Path,
    peaks: Intervals,
    *,
    counting: Counting = "insertions",
    barcodes: Sequence[str] | None = None,
    min_fragments: int = 0,
) -> FragmentCounts:
    """Count a fragments file over peaks.

    ``barcodes`` are the cells; without them those with at least ``min_fragments`` fragments, which
    takes a second pass over the file. Chromosomes may be spelled otherwise than in ``peaks``.

    Raises MissingFileError, UnreadableFileError, InputError (no chromosome in common; no barcode
    that is left).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file (looked in {path.absolute()}).")
    if barcodes is None and min_fragments > 0:
        totals = _Barcodes(None)
        for _, _, _, cell in _blocks(path, totals, {}):
            totals.add(cell)
        enough = zip(totals.names, totals.n_fragments, strict=True)
        barcodes = sorted(name for name, n in enough if n >= min_fragments)
        if not barcodes:
            raise InputError(
                f"{path}: none of its {len(totals.names):,} barcodes has {min_fragments:,} "
                f"fragments; the most is {totals.n_fragments.max(initial=0):,}. Ask for less: "
                "--min-fragments."
            )
    return _count(path, peaks, counting, barcodes)


def _count(
    path: Path, peaks: Intervals, counting: Counting, barcodes: Sequence[str] | None
) -> FragmentCounts:
    cells = _Barcodes(barcodes)
    by_chrom = {chrom: _SortedPeaks.of(peaks, rows) for chrom, rows in _rows(peaks).items()}
    names: dict[str, str | None] = {}
    sums = _Sums(len(peaks))
    for chrom, start, end, cell in _blocks(path, cells, names, tuple(by_chrom)):
        cells.add(cell)
        is_in = cell >= 0
        for name in np.unique(chrom[is_in]):
            here = is_in & (chrom == name)
            of_chrom = by_chrom[tuple(by_chrom)[name]] if name >= 0 else None
            if of_chrom is None:
                continue
            queries = (
                [(start[here], start[here] + 1), (end[here] - 1, end[here])]
                if counting == "insertions"
                else [(start[here], end[here])]
            )
            for first, last in queries:
                sums.add(*of_chrom.hits(first, last, cell[here]))
    if not any(names.values()):
        theirs = ", ".join(list(names)[:3]) or "none"
        raise InputError(
            f"{path}: has none of the peaks' chromosomes. It has {theirs}, the peaks have "
            f"{', '.join(list(by_chrom)[:3])}. Name peaks of the same assembly."
        )
    if not len(cells.names) or not cells.n_fragments.any():
        raise InputError(
            f"{path}: has no fragment of any of the {len(cells.names):,} barcodes asked for. Do "
            "they carry the same suffix (-1) as in the file?"
        )
    return _result(cells, sums.matrix(len(cells.names)), barcodes is not None)


def _rows(peaks: Intervals) -> dict[str, np.ndarray]:
    return rows_by_chrom(peaks.chrom)


def _result(cells: "_Barcodes", counts: sp.csr_matrix, is_ordered: bool) -> FragmentCounts:
    if is_ordered:
        return FragmentCounts(tuple(cells.names), counts, cells.n_fragments)
    order = np.argsort(np.array(cells.names, dtype=str), kind="stable")
    names = tuple(cells.names[i] for i in order)
    return FragmentCounts(names, sp.csr_matrix(counts[order]), cells.n_fragments[order])


class _Barcodes:
    """Numbers for barcodes as they turn up; -1 for those that were not asked for."""

    def __init__(self, wanted: Sequence[str] | None):
        self.names: list[str] = [] if wanted is None else list(dict.fromkeys(map(str, wanted)))
        self._number = {name: i for i, name in enumerate(self.names)}
        self._is_open = wanted is None
        self.n_fragments = np.zeros(len(self.names), dtype=np.int64)

    def numbers(self, names: Sequence[str]) -> Int[np.ndarray, " name"]:
        out = np.empty(len(names), dtype=np.int64)
        for i, name in enumerate(names):
            number = self._number.get(name, -1)
            if number < 0 and self._is_open:
                number = self._number[name] = len(self.names)
                self.names.append(name)
            out[i] = number
        return out

    def add(self, cell: Int[np.ndarray, " fragment"]) -> None:
        n_seen = np.bincount(cell[cell >= 0], minlength=len(self.names))
        n_seen[: len(self.n_fragments)] += self.n_fragments
        self.n_fragments = n_seen


class _Sums:
    """Counts of (cell, peak) pairs, added up whenever too many wait."""

    def __init__(self, n_peaks: int):
        self._n_peaks, self._n_waiting = n_peaks, 0
        self._keys: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def add(self, cell: np.ndarray, peak: np.ndarray) -> None:
        keys, counts = np.unique(cell * self._n_peaks + peak, return_counts=True)
        self._keys.append(keys)
        self._counts.append(counts)
        self._n_waiting += len(keys)
        if self._n_waiting > MERGE_AT:
            self._merge()

    def _merge(self) -> None:
        keys = np.concatenate([np.zeros(0, dtype=np.int64), *self._keys])
        counts = np.concatenate([np.zeros(0, dtype=np.int64), *self._counts])
        merged, place = np.unique(keys, return_inverse=True)
        totals = np.bincount(place, weights=counts, minlength=len(merged)).astype(np.int64)
        # what has been merged waits no more: only what is new may bring on the next merge
        self._keys, self._counts, self._n_waiting = [merged], [totals], 0

    def matrix(self, n_cells: int) -> sp.csr_matrix:
        self._merge()
        cell, peak = np.divmod(self._keys[0], self._n_peaks)
        indptr = np.searchsorted(cell, np.arange(n_cells + 1))
        counts = self._counts[0].astype(np.int32)
        return sp.csr_matrix(
            (counts, peak.astype(np.int32), indptr), shape=(n_cells, self._n_peaks)
        )


@dataclass(frozen=True)
class _SortedPeaks:
    """Peaks of one chromosome by their starts; ``reach`` is the largest end so far."""

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    reach: np.ndarray

    @classmethod
    def of(cls, peaks: Intervals, rows: np.ndarray) -> "_SortedPeaks":
        row = rows[np.argsort(peaks.start[rows], kind="stable")]
        start, end = peaks.start[row], peaks.end[row]
        return cls(row, start, end, np.maximum.accumulate(end))

    def hits(
        self, first: np.ndarray, last: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(cell, peak) of every peak that overlaps [first, last)."""
        before = np.searchsorted(self.start, last, side="left")
        n_hits = np.zeros(len(first), dtype=np.int64)
        _overlaps(self.end, self.reach, first, before, n_hits, np.zeros(0, dtype=np.int64))
        peak = np.empty(int(n_hits.sum()), dtype=np.int64)
        _overlaps(self.end, self.reach, first, before, n_hits, peak)
        return np.repeat(cell, n_hits), self.row[peak]


@compiled
def _overlaps(end, reach, first, before, n_hits, peak):
    """Count the hits of each query; where ``peak`` has room, write them there in that order."""
    is_counting = len(peak) == 0
    at = 0
    for query in range(len(first)):
        found = 0
        candidate = before[query] - 1
        while candidate >= 0 and reach[candidate] > first[query]:
            if end[candidate] > first[query]:
                if not is_counting:
                    peak[at] = candidate
                    at += 1
                found += 1
            candidate -= 1
        if is_counting:
            n_hits[query] = found


def _blocks(
    path: Path,
    cells: _Barcodes,
    names: dict[str, str | None],
    chroms: Sequence[str] = (),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Chromosome (position in ``chroms``, -1: another), start, end and cell, block by block.

    ``names`` gathers what the file calls its chromosomes and which of ``chroms`` each is.
    """
    import pyarrow as pa
    from pyarrow import csv

    text = pa.dictionary(pa.int32(), pa.string())
    number = {chrom: i for i, chrom in enumerate(chroms)}
    with _reading(path), _opened(path) as file:
        reader = csv.open_csv(
            file,
            read_options=csv.ReadOptions(
                autogenerate_column_names=True, block_size=BLOCK_BYTES, use_threads=False
            ),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(
                include_columns=["f0", "f1", "f2", "f3"],
                column_types={"f0": text, "f1": pa.int64(), "f2": pa.int64(), "f3": text},
            ),
        )
        for block in reader:
            chrom, start, end, barcode = block.columns
            for name in chrom.dictionary.to_pylist():
                if name not in names:
                    names[name] = resolve_names([name], chroms)[name]
            known = [number.get(names[name] or "", -1) for name in chrom.dictionary.to_pylist()]
            cell = cells.numbers(barcode.dictionary.to_pylist())
            yield (
                np.array(known, dtype=np.int64)[_codes(chrom)],
                start.to_numpy(),
                end.to_numpy(),
                cell[_codes(barcode)],
            )


def _codes(column: Any) -> np.ndarray:
    return column.indices.to_numpy(zero_copy_only=False)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file behind its comment lines, unpacked."""
    with path.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"

    def start() -> Any:
        return gzip.open(path, "rb") if is_packed else path.open("rb")

    n_header = 0
    with start() as file:
        while (line := file.readline()).startswith(b"#"):
            n_header += len(line)
    if not line:
        raise InputError(f"{path}: holds no fragment.")
    with start() as file:
        file.read(n_header)
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowKeyError, EOFError, OSError, zlib.error) as error:
        raise UnreadableFileError(
            f"{path}: is no fragments file, or a damaged one: wanted lines of chromosome, start, "
            f"end and barcode, separated by tabs ({error})."
        ) from error
