"""Variants -> pairs of windows of DNA, one with each allele, and random changes to compare with.

in   Variants, a genome, the length of a model's window
out  one-hot windows (variant, 4, base) of the reference and of the alternative allele

Both windows start at the same base. After an insertion the alternative is trimmed at its right end;
after a deletion it takes in bases that the reference window does not reach: both keep the length.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from scfm.data.genome import Genome
from scfm.data.nucleotides import LETTERS, encode, one_hot
from scfm.data.vcf import Variant
from scfm.errors import InputError

COMPLEMENT = str.maketrans(LETTERS, "TGCA")
MOST_TRIES = 50  # of a random change before its neighbourhood counts as one without such a base


def allele_windows(
    variants: Sequence[Variant], genome: Genome, length: int, shift: int = 0
) -> tuple[Float[np.ndarray, "variant 4 base"], Float[np.ndarray, "variant 4 base"]]:
    """Windows with the variant's first base in the middle, moved right by ``shift`` bases.

    Raises InputError for an allele that does not fit into its half of the window.
    """
    at = length // 2 - shift
    longest = max((max(len(v.ref), len(v.alt)) for v in variants), default=0)
    if at < 0 or longest > longest_allele(length, [shift]):
        raise InputError(
            f"An allele of {longest:,} bases does not fit into the model's window of {length:,} "
            f"bases moved by {shift}. Leave such variants out, move the windows less (--shift 0), "
            "or take a model of longer windows."
        )
    more = max((len(v.ref) - len(v.alt) for v in variants), default=0)
    chrom = np.array([v.chrom for v in variants], dtype=str)
    wide = genome.codes(chrom, window_starts(variants, length, shift), length + max(more, 0))
    changed = np.empty((len(variants), length), dtype=np.uint8)
    for window, variant, out in zip(wide, variants, changed, strict=True):
        allele = encode([variant.alt], "alternative allele")[0]
        parts = window[:at], allele, window[at + len(variant.ref) :]
        out[:] = np.concatenate(parts)[:length]
    return one_hot(wide[:, :length]), one_hot(changed)


def longest_allele(length: int, shifts: Sequence[int]) -> int:
    """Bases of the longest allele that fits into the windows at all these shifts."""
    return length - (length // 2 - min(shifts))


def window_starts(
    variants: Sequence[Variant], length: int, shift: int = 0
) -> Int[np.ndarray, " variant"]:
    """First base of each variant's window, 0-based; may be negative."""
    starts = np.array([v.start for v in variants], dtype=np.int64)
    return starts - length // 2 + shift


def kind_of(variant: Variant) -> str:
    """What a variant is compared with: the substitution on either strand, or the change of length.

    Lengths go by powers of two: a deletion of 5 is compared with those of 4 to 7.
    """
    if variant.is_substitution:
        ref, alt = variant.ref, variant.alt
        if ref in "AG":  # written from the strand with the pyrimidine, as mutation spectra are
            ref, alt = ref.translate(COMPLEMENT), alt.translate(COMPLEMENT)
        return f"{ref}>{alt}"
    more = len(variant.alt) - len(variant.ref)
    size = abs(more) if more else len(variant.ref)
    what = "insertion" if more > 0 else "deletion" if more < 0 else "replacement"
    return f"{what} of {1 << int(np.log2(size))} or more"


def random_changes(
    variants: Sequence[Variant],
    genome: Genome,
    reach: int,
    n: int,
    rng: np.random.Generator,
) -> tuple[list[Variant], Int[np.ndarray, " change"]]:
    """``n`` random changes of the variants' own kind, near them, and which one each is near.

    Within ``reach`` bases of a variant drawn at random, but not at it: the same base changed into
    the same other one (or the complements), or as many bases removed, put in or replaced at random.
    So composition and accessibility are those of the variants' own surroundings. Fewer than ``n``
    where the surroundings hold no such base.
    """
    found, near = [], []
    for _ in range(n * MOST_TRIES):
        if len(found) == n:
            break
        number = int(rng.integers(len(variants)))
        change = _random_change(variants[number], genome, reach, rng)
        if change is not None:
            found.append(change)
            near.append(number)
    return found, np.array(near, dtype=np.int64)


def _random_change(
    variant: Variant, genome: Genome, reach: int, rng: np.random.Generator
) -> Variant | None:
    start = variant.start + int(rng.integers(-reach, reach + 1))
    end = start + len(variant.ref)
    touches = start < variant.end and end > variant.start
    if touches or start < 0 or end > genome.sizes[variant.chrom]:
        return None
    ref = genome.sequence(variant.chrom, start, end)
    if any(letter not in LETTERS for letter in ref):
        return None
    if variant.is_substitution:
        if ref == variant.ref:
            return Variant(variant.chrom, start, ref, variant.alt)
        if ref == variant.ref.translate(COMPLEMENT):
            return Variant(variant.chrom, start, ref, variant.alt.translate(COMPLEMENT))
        return None
    drawn = "".join(LETTERS[i] for i in rng.integers(4, size=len(variant.alt)))
    if len(variant.alt) != len(variant.ref):  # an indel keeps the base that anchors it
        drawn = ref[0] + drawn[1:]
    return None if drawn == ref else Variant(variant.chrom, start, ref, drawn)
