"""A FASTA file -> windows of DNA, many at a time.

in   FASTA, plain or gzipped; its index (.fai), made where there is none
out  codes or one-hot windows; N and what lies past a chromosome's end is all 0

A plain file is mapped into memory, not read: the system keeps what is used and drops it when memory
is short, so nothing is opened for a window and memory stays bounded by itself. A gzipped file
cannot be mapped and is unpacked into a temporary file, up to UNPACK_LIMIT bases.
"""

import gzip
import hashlib
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8

from scfm.data.assemblies import SIZES, identify, usual_name
from scfm.data.chrom_names import resolve_names
from scfm.data.compiled import compiled
from scfm.data.nucleotides import CODES, UNKNOWN, decode, one_hot
from scfm.data.write import atomic_path
from scfm.errors import InputError, MissingFileError, OutputError, ScfmWarning, UnreadableFileError

UNPACK_LIMIT = 2**29  # bytes of a gzipped FASTA once unpacked; a human genome is six times that


class Genome:
    """The sequence of an assembly. Can be pickled while its file exists.

    Attributes
    ----------
    path
        The FASTA.
    name
        The assembly: as given, else found by the lengths of its chromosomes, else None.
    names
        Chromosomes in file order, spelled as in the file.
    sizes
        Bases of each.
    """

    def __init__(self, path: Path, name: str | None, letters: np.ndarray, index: Mapping[str, Any]):
        self.path, self._letters = path, letters
        self.names = tuple(index)
        self.sizes = {chrom: int(record.rlen) for chrom, record in index.items()}
        self._index = np.array(
            [[record.offset, record.lenc, record.lenb, record.rlen] for record in index.values()],
            dtype=np.int64,
        )
        self._number = {chrom: i for i, chrom in enumerate(self.names)}
        self._meant: dict[str, str | None] = {}
        found = identify(self.sizes)
        self.name = found if name is None else usual_name(name)
        if name is not None:
            check_sizes(self.name or name, self.sizes, source=str(path))

    @classmethod
    def open(cls, fasta: str | Path, *, name: str | None = None) -> "Genome":
        """Open a FASTA; its index is made beside it where it is missing or older than the file.

        ``name`` is the assembly it is said to be: one whose chromosomes are known to have other
        lengths is refused. Raises MissingFileError, UnreadableFileError, InputError.
        """
        path = Path(fasta)
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file (looked in {path.absolute()}).")
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"\x1f\x8b":
            with tempfile.TemporaryDirectory() as folder:
                unpacked = _unpack(path, Path(folder) / "genome.fa")
                index = _build_index(unpacked, path, Path(folder) / "genome.fa.fai")
                # POSIX keeps the bytes of a removed file for as long as they are mapped
                return cls(path, name, _mapped(unpacked), index)
        if start[:1] not in (b">", b";"):
            raise UnreadableFileError(
                f"{path}: is no FASTA: it begins with {start.decode('latin-1')!r} instead of '>'."
            )
        return cls(path, name, _mapped(path), _index_of(path))

    def resolve(self, chrom: str) -> str:
        """This genome's name of a chromosome: chr4, 4 and chrIV are one. Raises InputError."""
        if chrom not in self._meant:
            self._meant.update(resolve_names([chrom], self.names))
        meant = self._meant[chrom]
        if meant is None:
            some = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
            raise InputError(f"{self.path} has no chromosome {chrom!r}. It has {some}.")
        return meant

    def codes(
        self,
        chrom: Shaped[np.ndarray, " window"],
        start: Integer[np.ndarray, " window"],
        length: int,
    ) -> UInt8[np.ndarray, "window base"]:
        """Windows as codes (scfm.data.nucleotides); ``chrom`` in this genome's spelling or another.

        Starts are 0-based and may be negative. Raises InputError for an unknown chromosome.
        """
        number = self.numbers(chrom)
        out = np.full((len(number), length), UNKNOWN, dtype=np.uint8)
        start = np.asarray(start, dtype=np.int64)
        _read_windows(self._letters, CODES, self._index, number, start, out)
        return out

    def one_hot(
        self,
        chrom: Shaped[np.ndarray, " window"],
        start: Integer[np.ndarray, " window"],
        length: int,
    ) -> Float[np.ndarray, "window 4 base"]:
        """Windows over A, C, G, T as float32."""
        return one_hot(self.codes(chrom, start, length))

    def sequence(self, chrom: str, start: int, end: int) -> str:
        """One stretch in capital letters, N where unknown and off the chromosome."""
        return decode(self.codes(np.array([chrom]), np.array([start]), end - start)[0])

    def numbers(self, chrom: Shaped[np.ndarray, " window"]) -> Integer[np.ndarray, " window"]:
        """Position of each chromosome in ``names``; numbers are passed through."""
        chrom = np.asarray(chrom)
        if chrom.dtype.kind in "iu":
            return chrom.astype(np.int64, copy=False)
        found, place = np.unique(chrom.astype(str), return_inverse=True)
        known = [self._number[self.resolve(str(name))] for name in found]
        return np.array(known, dtype=np.int64)[place]

    @cached_property
    def md5(self) -> str:
        """Of the file as it lies on disk, in hex."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()

    def __reduce__(self):
        return _opened, (self.path, self.name)


def _opened(path: Path, name: str | None) -> Genome:
    return Genome.open(path, name=name)


def check_sizes(assembly: str, sizes: Mapping[str, int], *, source: str) -> None:
    """Refuse chromosomes of other lengths than the assembly's (InputError).

    An assembly whose sizes scfm does not know passes.
    """
    known = SIZES.get(usual_name(assembly))
    if known is None:
        return
    compare_sizes(known, sizes, wanted=assembly, source=source)


def compare_sizes(
    known: Mapping[str, int], sizes: Mapping[str, int], *, wanted: str, source: str
) -> None:
    """Refuse ``sizes`` where a chromosome both have differs in length from ``known``."""
    for name, meant in resolve_names(sizes, list(known)).items():
        if meant is not None and sizes[name] != known[meant]:
            really = identify(sizes)
            raise InputError(
                f"{source} is not {wanted}: its {name} has {sizes[name]:,} bases, that of {wanted} "
                f"has {known[meant]:,}{f'; it is {really}' if really else ''}. Name the FASTA "
                "of the assembly the regions were called on, or lift the regions over."
            )


def _mapped(path: Path) -> UInt8[np.ndarray, " byte"]:
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def _unpack(path: Path, out: Path) -> Path:
    n_bytes = 0
    try:
        with gzip.open(path, "rb") as packed, out.open("wb") as file:
            while block := packed.read(2**20):
                n_bytes += len(block)
                if n_bytes > UNPACK_LIMIT:
                    raise InputError(
                        f"{path}: is gzipped and too large to unpack at every start (more than "
                        f"{UNPACK_LIMIT / 1e6:,.0f} MB). Unpack it once: gunzip -k {path}"
                    )
                file.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableFileError(
            f"{path}: is a damaged gzip file ({error}). Get it again."
        ) from error
    with out.open("rb") as file:
        if file.read(1) not in (b">", b";"):
            raise UnreadableFileError(f"{path}: is no FASTA: unpacked, it does not begin with '>'.")
    return out


def _index_of(path: Path) -> Mapping[str, Any]:
    """The index beside the file, made anew where it is missing, older or not this file's."""
    beside = path.with_name(path.name + ".fai")
    if beside.exists() and beside.stat().st_mtime >= path.stat().st_mtime:
        index = _read_index(path, beside)
        if index and _fits(index.values(), path.stat().st_size):
            return index
    with tempfile.TemporaryDirectory() as folder:
        index = _build_index(path, path, Path(folder) / "genome.fai")
        try:
            with atomic_path(beside) as temporary:
                temporary.write_bytes((Path(folder) / "genome.fai").read_bytes())
        except OutputError as error:
            warnings.warn(
                f"{beside} cannot be written ({error}), so the index is made again at every start. "
                f"To keep one, have its owner run: samtools faidx {path.name}",
                ScfmWarning,
                stacklevel=4,
            )
    return index


def _read_index(path: Path, beside: Path) -> Mapping[str, Any] | None:
    from pyfaidx import Faidx, IndexNotFoundError

    try:
        with Faidx(path, indexname=beside, rebuild=False, build_index=False) as opened:
            return opened.index
    except (ValueError, IndexNotFoundError):  # not five columns: whatever it is, it is no index
        return None


def _build_index(path: Path, spoken_of: Path, out: Path) -> Mapping[str, Any]:
    from pyfaidx import Faidx, FastaIndexingError

    try:
        with Faidx(path, indexname=out) as opened:
            return opened.index
    except (ValueError, FastaIndexingError) as error:
        reason = str(error).replace(str(path), str(spoken_of))
        raise UnreadableFileError(
            f"{spoken_of}: cannot be indexed ({reason}). Every line of a sequence but its last has "
            "to have one length, and every name to occur once; to mend it: seqkit seq -w 60."
        ) from error


def _fits(records: Iterable[Any], n_bytes: int) -> bool:
    return all(record.bend <= n_bytes + 2 for record in records)  # a last line may lack its end


@compiled
def _read_windows(letters, table, index, number, start, out):
    length = out.shape[1]
    for window in range(len(number)):
        offset, in_line, line_bytes, size = index[number[window]]
        first = start[window]
        position = max(first, 0)
        last = min(first + length, size)
        while position < last:
            line = position // in_line
            column = position - line * in_line
            n_bases = min(in_line - column, last - position)
            at = offset + line * line_bytes + column
            to = position - first
            for base in range(n_bases):
                out[window, to + base] = table[letters[at + base]]
            position += n_bases
