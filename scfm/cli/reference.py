"""scfm reference: labelled cells, embedded once, to label others with."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options

app = typer.Typer(
    no_args_is_help=True,
    help="Labelled cells, embedded once, to label others with.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Without it typer would take a single command for the whole."""


@app.command()
def build(
    data: Annotated[
        str, typer.Argument(help="Labelled cells: h5ad, zarr, 10x h5, 10x mtx folder, loom, store.")
    ],
    model: options.Model,
    label: Annotated[str, typer.Option(help="obs column that holds the cell types.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; an earlier reference is replaced.")],
    donor: Annotated[
        str | None,
        typer.Option(help="obs column of donors: calibration is then by donors held out."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="CSV of label and term of the Cell Ontology (scfm ontology map)."),
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="Reference cells that vote.")] = 15,
    pooling: options.Pooling = None,
    precision: Annotated[
        float, typer.Option(help="Share of the cells given a name that must be right.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds calibration is fitted on.")] = 0,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    expected_counts: options.ExpectedCounts = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Embed labelled cells with a model and keep what scfm annotate needs of them.

    The folder holds embeddings, labels, prototypes, calibration and provenance, checked by hashes;
    scfm info OUT tells of it. It serves the model it was built with alone.
    """
    reading = options.input_config(layer, species, orthologs, expected_counts, minimum_coverage)
    from scfm.tools.info import describe_reference, in_words
    from scfm.tools.loading import load
    from scfm.tools.reference import ReferenceConfig, reference_of

    how = ReferenceConfig(
        label_key=label,
        donor_key=donor,
        mapping=mapping,
        n_neighbours=neighbours,
        pooling=pooling,
        precision=precision,
        seed=seed,
        batch_size=batch_size,
    )
    with options.CellProgress("embed") as progress:
        reference_of(data, load(model, device=device), how, reading, out, progress)
    found = describe_reference(out)
    options.say(in_words(found))
    if json:
        options.print_json({"out": str(out), **found})
