"""One chromosome, several names: chr4, 4, chrIV, IV, NC_000004.12. Which known name is meant.

in   names as files spell them, names as a genome spells them
out  the genome's name of each, or None; never a guess between two
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from scfm.errors import InputError

_TO_TEN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")
_NUMERALS = [ten + one for ten in ("", "X") for one in _TO_TEN]
ROMAN = {numeral: str(i) for i, numeral in enumerate(_NUMERALS, start=1)}
# X is a number only where the names beside it go beyond V: worms have I to V and a sex chromosome X
_BEYOND_FIVE = {numeral for numeral in _NUMERALS[5:] if numeral != "X"}
_MITOCHONDRIAL = {"M", "MT", "MITO", "MITOCHONDRION"}
_PREFIX = re.compile(r"^(chromosome|chrom|chr)[_.]?(?=.)", re.IGNORECASE)


def resolve_names(names: Iterable[str], known: Sequence[str]) -> dict[str, str | None]:
    """The known name each name means; None where none or more than one could be meant.

    Tried in this order: the same name; the same but for "chr", or another name of the
    mitochondrion, or a RefSeq accession of human, mouse or yeast; Roman against Arabic numbers,
    where the names on one side show that they are Roman.
    """
    names = list(dict.fromkeys(map(str, names)))
    is_known = set(known)
    by_plain = _by_key([_plain(name) for name in known], known)
    by_number = _by_key(_numbered(known), known)
    numbers = dict(zip(names, _numbered(names), strict=True))
    found: dict[str, str | None] = {}
    for name in names:
        if name in is_known:
            found[name] = name
            continue
        found[name] = by_plain.get(_plain(name)) or by_number.get(numbers[name])
    return found


def require_names(
    names: Iterable[str], known: Sequence[str], *, source: str, genome: str
) -> dict[str, str]:
    """As resolve_names, where every name has to be known. Raises InputError."""
    found = resolve_names(names, known)
    missing = [name for name, meant in found.items() if meant is None]
    if missing:
        raise InputError(
            f"{source}: {len(missing)} of its {len(found)} chromosomes are not in {genome}: "
            f"{_some(missing)}. That has {_some(list(known))}. Leave their regions out, rename "
            "them, or name the FASTA of the right assembly."
        )
    return {name: meant for name, meant in found.items() if meant is not None}


def _by_key(keys: Iterable[str], known: Sequence[str]) -> Mapping[str, str | None]:
    """Which known name has a key; None where two have."""
    holders = defaultdict(set)
    for key, name in zip(keys, known, strict=True):
        holders[key].add(name)
    return {key: next(iter(held)) if len(held) == 1 else None for key, held in holders.items()}


def _plain(name: str) -> str:
    """A name without its prefix; one name for the mitochondrion; accessions as numbers."""
    base = _PREFIX.sub("", name)
    if base.upper() in _MITOCHONDRIAL:
        return "M"
    return _of_accession(base) or (base.upper() if len(base) <= 2 else base)


def _numbered(names: Sequence[str]) -> list[str]:
    """Plain names with Roman numbers as Arabic ones, where the names show that they are Roman."""
    plain = [_plain(name) for name in names]
    roman = {name for name in plain if name in ROMAN and name != "X"}
    if not roman:
        return plain
    x_is_ten = bool(roman & _BEYOND_FIVE)
    return [ROMAN[name] if name in ROMAN and (name != "X" or x_is_ten) else name for name in plain]


def _of_accession(name: str) -> str | None:
    """The chromosome a RefSeq accession of human, mouse or budding yeast stands for."""
    found = re.fullmatch(r"NC_(\d{6})(?:\.\d+)?", name)
    if not found:
        return None
    number = int(found[1])
    if 1 <= number <= 24:  # human
        return {23: "X", 24: "Y"}.get(number, str(number))
    if 67 <= number <= 87:  # mouse
        return {86: "X", 87: "Y"}.get(number, str(number - 66))
    if 1133 <= number <= 1148:  # yeast
        return _NUMERALS[number - 1133]
    return "M" if number in (12920, 5089, 1224) else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
