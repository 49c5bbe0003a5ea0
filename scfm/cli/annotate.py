"""scfm annotate: a file of cells, labelled by a reference, a fine-tuned model, or its words."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options


def command(
    data: Annotated[
        str, typer.Argument(help="h5ad, zarr, 10x h5, 10x mtx folder, loom, or a store.")
    ],
    model: options.Model,
    out: options.Out,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Labelled cells, in any of the same formats. Without it the model must be "
            "fine-tuned (scfm finetune celltype) or know words for cell types."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="obs column of the reference that holds the labels.")
    ] = None,
    key_added: Annotated[str, typer.Option(help="Prefix of the obs columns.")] = "scfm",
    neighbours: Annotated[
        int, typer.Option(min=1, help="Reference cells that vote; of --smooth a neighbourhood.")
    ] = 15,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Below it a cell is called unknown. Default: 0.5; by words as calibrated.",
        ),
    ] = None,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="By words: take the label a cell's neighbours have.")
    ] = False,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    expected_counts: options.ExpectedCounts = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Label every cell by its nearest neighbours in a labelled reference, or by a model's words.

    Writes obs["scfm_cell_type"] and obs["scfm_confidence"]; cells the reference does not speak for,
    or whose word is too unsure, are called "unknown".
    """
    config = options.input_config(layer, species, orthologs, expected_counts, minimum_coverage)
    from scfm.data.write import check_writable

    check_writable(out)
    from scfm.tools.annotation import annotate_file
    from scfm.tools.loading import load

    with options.CellProgress("annotate") as progress:
        summary = annotate_file(
            data,
            load(model, device=device),
            out,
            reference=reference,
            label_key=label,
            key_added=key_added,
            n_neighbours=neighbours,
            min_confidence=min_confidence,
            smooth=smooth,
            batch_size=batch_size,
            config=config,
            on_progress=progress,
        )
    options.say(summary)
    options.say(f'Wrote {out}: obs["{key_added}_cell_type"], obs["{key_added}_confidence"].')
    if json:
        options.print_json({"out": str(out), "key": key_added, **summary.to_dict()})
