"""A VCF -> variants that can be scored: one alternative allele each, checked, left-aligned.

in   VCF (plain, gzip or bgzip), a genome
out  Variant: 0-based start and the two alleles, as short and as far left as they can be written;
     how many alleles were left out, and why

Only the first five columns are read. Source of the normal form: Tan et al. 2015,
doi:10.1093/bioinformatics/btv112.
"""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path

from scfm.data.genome import Genome
from scfm.errors import InputError, MissingFileError, UnreadableFileError

BASES = re.compile("[ACGT]+")
COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT")
SHOWN = 40  # bases of an allele in a message


@dataclass(frozen=True)
class Variant:
    """One alternative allele.

    Attributes
    ----------
    chrom, start
        As the genome names it; 0-based, of the first base of ``ref``.
    ref, alt
        Upper case, at least one base each; only one of them may be longer and start otherwise.
    name
        The file's ID, or CHROM:POS:REF>ALT as the file says it.
    row
        Line of the file, the first being 1.
    """

    chrom: str
    start: int
    ref: str
    alt: str
    name: str = ""
    row: int = 0

    @property
    def is_substitution(self) -> bool:
        return len(self.ref) == len(self.alt) == 1

    @property
    def end(self) -> int:
        return self.start + len(self.ref)


@dataclass(frozen=True)
class VariantFile:
    """The alleles that can be scored, in the file's order, and what was left out."""

    variants: tuple[Variant, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_vcf(path: str | Path, genome: Genome) -> VariantFile:
    """All sequence variants of a file, one for each alternative allele.

    Symbolic alleles (<DEL>), breakends, ``*`` and alleles with other letters than A, C, G, T are
    left out and counted. Raises MissingFileError; UnreadableFileError for a file that is no VCF;
    InputError where REF is not what the genome has, naming the row.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There is no file {path}. Give a VCF, plain or .gz.")
    found, left_out = [], Counter()
    try:
        with _opened(path) as lines:
            for row, (chrom, position, name, ref, alts) in _rows(lines, path):
                _place(path, row, chrom, position, ref, genome)
                for alt in alts.split(","):
                    reason = _unscorable(ref.upper(), alt.upper())
                    if reason:
                        left_out[reason] += 1
                        continue
                    variant = Variant(
                        genome.resolve(chrom),
                        position - 1,
                        ref.upper(),
                        alt.upper(),
                        name if name != "." else f"{chrom}:{position}:{ref}>{alt}",
                        row,
                    )
                    found.append(left_aligned(variant, genome))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnreadableFileError(f"{path} is truncated or no VCF: {error}.") from error
    if not found:
        raise InputError(
            f"{path} holds no variant that can be scored ({_told(left_out)}). Wanted rows of "
            "CHROM, POS, ID, REF, ALT with sequences of A, C, G, T."
        )
    return VariantFile(tuple(found), dict(left_out))


def left_aligned(variant: Variant, genome: Genome) -> Variant:
    """The same change written with the fewest bases, as far left as it can be."""
    start, ref, alt = variant.start, variant.ref, variant.alt
    while True:
        if ref and alt and ref[-1] == alt[-1]:
            ref, alt = ref[:-1], alt[:-1]
        elif not (ref and alt) and start > 0:
            start -= 1
            before = genome.sequence(variant.chrom, start, start + 1)
            ref, alt = before + ref, before + alt
        else:
            break
    if not (ref and alt):  # at the chromosome's first base the next one anchors the change
        after = genome.sequence(variant.chrom, len(ref), len(ref) + 1)
        ref, alt = ref + after, alt + after
    while len(ref) > 1 and len(alt) > 1 and ref[0] == alt[0]:
        start, ref, alt = start + 1, ref[1:], alt[1:]
    return Variant(variant.chrom, start, ref, alt, variant.name, variant.row)


def _opened(path: Path) -> TextIOWrapper:
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt") if is_packed else path.open()


def _rows(lines: TextIOWrapper, path: Path) -> Iterator[tuple[int, tuple[str, int, str, str, str]]]:
    for row, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) < len(COLUMNS) or not fields[1].isdigit() or int(fields[1]) < 1:
            raise UnreadableFileError(
                f"{path}, row {row}: {line[:60].strip()!r} is no VCF row. Wanted tab-separated "
                f"{', '.join(COLUMNS)}, POS a number of at least 1."
            )
        chrom, position, name, ref, alts = fields[:5]
        yield row, (chrom, int(position), name, ref, alts)


def _place(path: Path, row: int, chrom: str, position: int, ref: str, genome: Genome) -> None:
    """InputError where the genome has no such place, or another base there."""
    where = f"{path}, row {row} ({chrom}:{position} {ref[:SHOWN]})"
    try:
        name = genome.resolve(chrom)
    except InputError as error:
        raise InputError(f"{where}: {error} Leave its rows out, or give their FASTA.") from error
    end = position - 1 + len(ref)
    if end > genome.sizes[name]:
        raise InputError(
            f"{where} lies past the end of {name}, which has {genome.sizes[name]:,} bases. Give "
            "the FASTA of the assembly that the VCF was called on."
        )
    there = genome.sequence(name, position - 1, end)
    if there != ref.upper():
        raise InputError(
            f"{where}: REF disagrees with the genome, which has {there[:SHOWN]} there. Give the "
            "FASTA of the assembly that the VCF was called on, or lift the VCF over."
        )


def _unscorable(ref: str, alt: str) -> str | None:
    """Why an allele is left out; None for one that is not."""
    if alt in (".", ref):
        return "no alternative allele"
    if alt == "*":
        return "deleted by another variant (*)"
    if alt.startswith("<") or "[" in alt or "]" in alt:
        return "symbolic"
    if not (BASES.fullmatch(ref) and BASES.fullmatch(alt)):
        return "letters other than A, C, G, T"
    return None


def _told(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in left_out.items()) or "no rows"
