"""scfm tfbind: transcription-factor binding in single cells, from regions to metacells."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options

app = typer.Typer(
    no_args_is_help=True,
    help="Transcription-factor binding: regions, counts, metacells.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Counting(StrEnum):
    insertions = "insertions"
    fragments = "fragments"


class Overlap(StrEnum):
    half = "half"
    centre = "centre"


Layer = Annotated[
    str | None, typer.Option(help="Where the counts are: X or a layer. Default: found and said.")
]
GenomeName = Annotated[
    str | None,
    typer.Option("--genome", help="Assembly the coordinates are of: hg38, hg19, mm10, ..."),
]


@app.command("regions")
def regions(
    fasta: Annotated[Path, typer.Option(help="The genome; plain or gzipped.")],
    peaks: Annotated[
        list[str],
        typer.Option(help="TF=FILE or TF:CELL=FILE, BED or narrowPeak; once for each TF."),
    ],
    out: options.Out,
    relaxed: Annotated[
        list[str] | None,
        typer.Option(help="TF=FILE of lenient calls: what is in these alone is left unlabelled."),
    ] = None,
    blacklist: Annotated[Path | None, typer.Option(help="BED of regions to leave out.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Bases of a window.")] = 200,
    stride: Annotated[int, typer.Option(min=1, help="Bases from a window to the next.")] = 50,
    overlap: Annotated[
        Overlap,
        typer.Option(
            help="Bound where more than half of a window lies under a peak, or where it holds a "
            "peak's summit or centre (for peaks shorter than windows)."
        ),
    ] = Overlap.half,
    margin: Annotated[
        int, typer.Option(min=0, help="Bases left out at the ends of chromosomes.")
    ] = 0,
    background: Annotated[
        float | None,
        typer.Option(min=0, help="Windows without label kept for each that has one. Default: all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the background that is kept.")] = 0,
    sequence: Annotated[
        bool, typer.Option("--sequence", help="Store the DNA, so that the file needs no FASTA.")
    ] = False,
    genome: GenomeName = None,
    json: options.Json = False,
) -> None:
    """Lay windows over a genome and label them by peaks; write an h5ad without cells."""
    from scfm.tools.tf_regions import RegionsConfig, make_regions

    made = make_regions(
        fasta,
        options.named_paths(peaks, "--peaks"),
        out,
        RegionsConfig(
            length=length,
            stride=stride,
            overlap=overlap.value,
            margin=margin,
            background=background,
            seed=seed,
            with_sequence=sequence,
        ),
        relaxed=options.named_paths(relaxed or [], "--relaxed"),
        blacklist=blacklist,
        genome_name=genome,
    )
    options.say(made)
    options.say(f"Wrote {out}.")
    if json:
        options.print_json(made.to_dict())


@app.command("count")
def count(
    fragments: Annotated[Path, typer.Argument(help="fragments.tsv or fragments.tsv.gz.")],
    peaks: Annotated[Path, typer.Option(help="BED, narrowPeak, or an h5ad of regions.")],
    out: options.Out,
    counting: Annotated[
        Counting,
        typer.Option(help="Both ends of a fragment, each for itself, or the fragment once."),
    ] = Counting.insertions,
    barcodes: Annotated[
        Path | None, typer.Option(help="Barcodes of the cells, one a line. Default: all.")
    ] = None,
    min_fragments: Annotated[
        int, typer.Option(min=0, help="Fragments a barcode has to have, where none are named.")
    ] = 0,
    genome: GenomeName = None,
    json: options.Json = False,
) -> None:
    """Count a fragments file over peaks, in flat memory; write peaks x cells."""
    from scfm.tools.tf_counts import count_file

    counted = count_file(
        fragments,
        peaks,
        out,
        counting=counting.value,
        barcodes=barcodes,
        min_fragments=min_fragments,
        genome=genome,
    )
    options.say(counted)
    options.say(f"Wrote {out}.")
    if json:
        options.print_json(counted.to_dict())


@app.command("aggregate")
def aggregate(
    data: Annotated[Path, typer.Argument(help="h5ad, h5mu or zarr of peaks x cells.")],
    out: options.Out,
    by: Annotated[
        str | None,
        typer.Option(help="obs column whose groups are pooled. Default: mutual neighbours."),
    ] = None,
    use_rep: Annotated[
        str | None,
        typer.Option(help="obsm to look for neighbours in. Default: X_lsi, made where missing."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="obs column to hold neighbours against: purity, and a warning."),
    ] = None,
    depth: Annotated[
        float, typer.Option(min=1, help="Counts the median metacell is to have.")
    ] = 500_000,
    metacells: Annotated[
        int | None, typer.Option(min=1, help="Keep that many, at random. Default: one a cell.")
    ] = None,
    layer: Layer = None,
    counting: Annotated[
        Counting | None, typer.Option(help="What the counts are, where the file does not say.")
    ] = None,
    binarised: Annotated[
        bool, typer.Option("--binarised", help="Accept a matrix of 0 and 1.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the LSI, and of the metacells kept.")] = 0,
    json: options.Json = False,
) -> None:
    """Pool cells into metacells deep enough to have a signal; write peaks x metacells."""
    from scfm.tools.tf_metacells import aggregate_file

    done = aggregate_file(
        data,
        out,
        by=by,
        use_rep=use_rep,
        against=against,
        target_depth=depth,
        n_metacells=metacells,
        layer=layer,
        counting=None if counting is None else counting.value,
        binarised=binarised,
        seed=seed,
    )
    options.say(done)
    options.say(f"Wrote {out}.")
    if json:
        options.print_json(done.to_dict())
