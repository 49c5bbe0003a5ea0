"""Whether regions are of the genome whose FASTA was named.

in   Regions, Genome
out  nothing, or a refusal that says what does not fit

Four looks, each of which alone can tell: the names and the lengths of the chromosomes, every region
within its chromosome, sequences the file carries against the FASTA, and its share of G and C.
"""

import warnings

import numpy as np
from jaxtyping import Int, UInt8

from scfm.data.assemblies import usual_name
from scfm.data.chrom_names import require_names
from scfm.data.genome import Genome, check_sizes, compare_sizes
from scfm.data.intervals import Intervals
from scfm.data.nucleotides import UNKNOWN, gc_share
from scfm.data.regions import Regions, check_in_range, has_sequence
from scfm.errors import InputError, ScfmWarning

N_LOOKED_AT = 256  # regions, spread over the file
SAME_SHARE = 0.95  # of looked-at sequences that have to be those of the FASTA
GC_CORRELATION = 0.9  # files round, and count bases at the edges differently
SHIFTS = (1, -1)
IN_GAPS_SHARE = 0.001


def check_reference(regions: Regions, genome: Genome) -> None:
    """Refuse regions of another assembly than the FASTA's (InputError)."""
    claim, fasta = regions.genome, str(genome.path)
    if claim.name:
        check_sizes(claim.name, genome.sizes, source=fasta)
        _warn_of_other_name(regions.name, claim.name, genome)
    if claim.sizes:
        compare_sizes(claim.sizes, genome.sizes, wanted="the file's genome", source=fasta)
    if claim.fasta_md5 and claim.fasta_md5 != genome.md5:
        raise InputError(
            f"{fasta} is not the FASTA {regions.name} was made with: its md5 is {genome.md5}, not "
            f"{claim.fasta_md5}."
        )
    if not claim.name and genome.name:
        warnings.warn(
            f"{regions.name} does not say of which genome its regions are: taken to be "
            f"{genome.name}, as {fasta}. Say it: uns['genome'] = {genome.name!r}.",
            ScfmWarning,
            stacklevel=3,
        )
    known = require_names(
        np.unique(regions.chrom).tolist(), genome.names, source=regions.name, genome=fasta
    )
    chrom = np.array([known[str(name)] for name in regions.chrom], dtype=str)
    check_in_range(
        Intervals(chrom, regions.start, regions.end),
        genome.sizes,
        source=regions.name,
        genome=fasta,
    )
    _check_sequences(regions, genome)
    _check_composition(regions, genome)
    _check_gaps(regions, genome)


def _warn_of_other_name(source: str, claimed: str, genome: Genome) -> None:
    """A name we have no sizes of may be another name of the same assembly."""
    if genome.name and usual_name(claimed) != genome.name:
        warnings.warn(
            f"{source} says its regions are of {claimed}, which scfm does not know; {genome.path} "
            f"is {genome.name}. Is that the same?",
            ScfmWarning,
            stacklevel=4,
        )


def _check_sequences(regions: Regions, genome: Genome) -> None:
    codes, start = regions.codes, regions.codes_start
    if codes is None or start is None:
        return
    rows = _spread(np.flatnonzero(has_sequence(codes)))
    if not len(rows):
        return
    same = _share_same(codes[rows], regions, genome, rows, start[rows])
    if same >= SAME_SHARE:
        return
    for shift in SHIFTS:
        if _share_same(codes[rows], regions, genome, rows, start[rows] + shift) >= SAME_SHARE:
            raise InputError(
                f"{regions.name}: its sequences are those of {genome.path} moved by {shift:+d} "
                f"base: starts are not 0-based. Subtract {-shift:+d} from start, or write the "
                "regions again with 0-based, half-open intervals."
            )
    raise InputError(
        f"{regions.name}: only {same:.0%} of {len(rows)} sequences looked at are what "
        f"{genome.path} has there ({genome.name or 'assembly unknown'}). The regions are of "
        f"another assembly{f' ({regions.genome.name})' if regions.genome.name else ''}: name its "
        "FASTA, or lift the regions over."
    )


def _share_same(
    codes: UInt8[np.ndarray, "region base"],
    regions: Regions,
    genome: Genome,
    rows: Int[np.ndarray, " region"],
    start: Int[np.ndarray, " region"],
) -> float:
    """Share of sequences that agree with the FASTA at all bases both know but one in fifty."""
    theirs = genome.codes(regions.chrom[rows], start, codes.shape[1])
    both = (codes != UNKNOWN) & (theirs != UNKNOWN)
    n_differ = ((codes != theirs) & both).sum(axis=1)
    return float((n_differ <= both.sum(axis=1) // 50).mean())


def _check_composition(regions: Regions, genome: Genome) -> None:
    if regions.gc is None:
        return
    rows = _spread(np.flatnonzero(np.isfinite(regions.gc)))
    if len(rows) < 30:  # too few for a correlation to tell
        return
    middle = (regions.start[rows] + regions.end[rows]) // 2
    length = int(np.median(regions.end - regions.start))
    ours = gc_share(genome.codes(regions.chrom[rows], middle - length // 2, length))
    theirs = regions.gc[rows]
    is_known = np.isfinite(ours)
    if is_known.sum() < 30 or theirs[is_known].std() == 0:
        return
    r = float(np.corrcoef(ours[is_known], theirs[is_known])[0, 1])
    if not r >= GC_CORRELATION:
        raise InputError(
            f"{regions.name}: the share of G and C its var says does not follow that of "
            f"{genome.path} (correlation {r:.2f} over {len(rows)} regions). The regions are of "
            "another assembly: name its FASTA, or lift the regions over."
        )


def _check_gaps(regions: Regions, genome: Genome) -> None:
    """Nothing is ever found in a stretch of N."""
    middle = (regions.start + regions.end) // 2
    in_gap = (genome.codes(regions.chrom, middle, 1) == UNKNOWN)[:, 0]
    if in_gap.mean() > IN_GAPS_SHARE:
        at = np.flatnonzero(in_gap)[0]
        warnings.warn(
            f"{in_gap.sum():,} of {len(regions):,} regions of {regions.name} lie in N of "
            f"{genome.path}, for example {regions.chrom[at]}:{regions.start[at]}-"
            f"{regions.end[at]}. Peaks are not called there: is it the right assembly?",
            ScfmWarning,
            stacklevel=4,
        )


def _spread(rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " looked_at"]:
    """Some of the rows, evenly spread."""
    if len(rows) <= N_LOOKED_AT:
        return rows
    return rows[np.linspace(0, len(rows) - 1, N_LOOKED_AT).astype(np.int64)]
