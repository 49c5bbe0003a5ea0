"""scfm annotate: a file of cells, labelled by a reference, a model, or marker genes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options


class Method(StrEnum):
    reference = "reference"
    classifier = "classifier"
    words = "words"
    markers = "markers"


class Vote(StrEnum):
    neighbours = "neighbours"
    prototypes = "prototypes"


def command(
    data: Annotated[
        str, typer.Argument(help="h5ad, zarr, 10x h5, 10x mtx folder, loom, or a store.")
    ],
    out: options.Out,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model folder, run folder, or hub id. Markers need none."),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="Default: by the reference given, else as the model can."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Folder of scfm reference build; or labelled cells, in any of the same formats. "
            "Without it the model must be fine-tuned (scfm finetune celltype) or know words for "
            "cell types."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="obs column of labelled cells that holds the labels.")
    ] = None,
    donor: Annotated[
        str | None,
        typer.Option(help="obs column of labelled cells: calibration is by donors held out."),
    ] = None,
    markers: Annotated[
        Path | None,
        typer.Option(help="CSV of cell_type and gene, or YAML. Default: human immune cells."),
    ] = None,
    vote: Annotated[
        Vote, typer.Option(help="Of a reference: its nearest cells, or one mean a label.")
    ] = Vote.neighbours,
    key_added: Annotated[str, typer.Option(help="Prefix of the obs columns.")] = "scfm",
    neighbours: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Reference cells that vote; of --smooth a neighbourhood. Default: 15, or as the "
            "reference was built.",
        ),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Below it a cell is called unknown. Default: calibrated."),
    ] = None,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="By words: take the label a cell's neighbours have.")
    ] = False,
    ontology: Annotated[
        bool,
        typer.Option(
            "--ontology",
            help="Also say types as terms of the Cell Ontology, the more general where in doubt.",
        ),
    ] = False,
    ontology_mapping: Annotated[
        Path | None, typer.Option(help="CSV of label and term (scfm ontology map).")
    ] = None,
    ontology_threshold: Annotated[
        float | None, typer.Option(help="Probability a term must have. Default: 0.8.")
    ] = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    expected_counts: options.ExpectedCounts = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Label every cell by a labelled reference, by a fine-tuned model, by words, or by markers.

    Writes obs["scfm_cell_type"], obs["scfm_confidence"] and obs["scfm_runner_up"]; cells the
    reference does not speak for, or whose label is too unsure, are called "unknown".
    """
    config = options.input_config(layer, species, orthologs, expected_counts, minimum_coverage)
    from scfm.data.write import check_writable

    check_writable(out)
    from scfm.tools.annotation import annotate_file
    from scfm.tools.loading import load

    with options.CellProgress("annotate") as progress:
        summary = annotate_file(
            data,
            None if model is None else load(model, device=device),
            out,
            method=None if method is None else method.value,
            reference=reference,
            label_key=label,
            donor_key=donor,
            markers=markers,
            vote=vote.value,
            key_added=key_added,
            n_neighbours=neighbours,
            min_confidence=min_confidence,
            smooth=smooth,
            ontology=ontology_mapping if ontology_mapping is not None else ontology,
            ontology_threshold=ontology_threshold,
            batch_size=batch_size,
            config=config,
            on_progress=progress,
        )
    options.say(summary)
    options.say(f'Wrote {out}: obs["{key_added}_cell_type"], obs["{key_added}_confidence"].')
    if json:
        options.print_json({"out": str(out), "key": key_added, **summary.to_dict()})
