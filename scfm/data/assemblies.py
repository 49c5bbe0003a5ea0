"""Genome assemblies by name and by the lengths of their chromosomes.

in   a name as people write it, or chromosome sizes
out  UCSC's name; the sizes of human, mouse and yeast assemblies

Sizes are those of UCSC's chrom.sizes files, without the mitochondrion and unplaced scaffolds.
"""

from collections.abc import Mapping

from scfm.data.chrom_names import resolve_names


def _sizes(names: str, lengths: str) -> dict[str, int]:
    pairs = zip(names.split(), lengths.split(), strict=True)
    return {f"chr{name}": int(length) for name, length in pairs}


_HUMAN = " ".join([*map(str, range(1, 23)), "X", "Y"])
_MOUSE = " ".join([*map(str, range(1, 20)), "X", "Y"])

SIZES: dict[str, dict[str, int]] = {
    "hg19": _sizes(
        _HUMAN,
        "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 "
        "141213431 135534747 135006516 133851895 115169878 107349540 102531392 90354753 "
        "81195210 78077248 59128983 63025520 48129895 51304566 155270560 59373566",
    ),
    "hg38": _sizes(
        _HUMAN,
        "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 "
        "138394717 133797422 135086622 133275309 114364328 107043718 101991189 90338345 "
        "83257441 80373285 58617616 64444167 46709983 50818468 156040895 57227415",
    ),
    "mm10": _sizes(
        _MOUSE,
        "195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 "
        "124595110 130694993 122082543 120129022 120421639 124902244 104043685 98207768 "
        "94987271 90702639 61431566 171031299 91744698",
    ),
    "sacCer3": _sizes(
        "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI",
        "230218 813184 316620 1531933 576874 270161 1090940 562643 439888 745751 666816 "
        "1078177 924431 784333 1091291 948066",
    ),
}
_ALIASES = {
    "hg19": ("grch37", "b37", "hs37d5", "hs37"),
    "hg38": ("grch38", "hs38"),
    "mm10": ("grcm38",),
    "sacCer3": ("r64", "saccer3", "r64-1-1"),
}


def usual_name(name: str) -> str:
    """UCSC's name of an assembly, GRCh38.p13 being hg38; a name that is none we know, as it is."""
    plain = name.strip().lower()
    for usual, aliases in _ALIASES.items():
        known = (usual.lower(), *aliases)
        if plain in known or plain.split(".")[0] in known:
            return usual
    return name.strip()


def identify(sizes: Mapping[str, int]) -> str | None:
    """The assembly whose chromosomes have these lengths; None where it is none we know.

    One chromosome is enough: no two have the same length. Names may be spelled as they like; what
    an assembly's table lacks (scaffolds, the mitochondrion) plays no part.
    """
    for assembly, known in SIZES.items():
        meant = resolve_names(sizes, list(known))
        agree = {known[k] == sizes[n] for n, k in meant.items() if k is not None}
        if agree == {True}:
            return assembly
    return None
