"""scfm calibrate: labelled cells -> how far a model's type words can be trusted, kept beside it."""

from typing import Annotated

import typer

from scfm.cli import options


def command(
    data: Annotated[
        str, typer.Argument(help="Labelled cells that did not train the model: h5ad, zarr, ...")
    ],
    model: Annotated[
        str, typer.Option("--model", help="Model or run folder; gets calibration.json.")
    ],
    label: Annotated[str, typer.Option(help="obs column that holds the cells' true types.")],
    precision: Annotated[
        float, typer.Option(help="Share of the cells given a name that must be right.")
    ] = 0.9,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    expected_counts: options.ExpectedCounts = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Fit the confidence of a model's type words, and the threshold for "unknown".

    scfm annotate without a reference goes by it from then on.
    """
    config = options.input_config(layer, species, orthologs, expected_counts, minimum_coverage)
    from scfm.data.write import check_writable
    from scfm.model.folder import CALIBRATION, find_model

    folder = find_model(model)
    check_writable(folder / CALIBRATION)
    from scfm.tools.loading import load
    from scfm.tools.type_calibration import calibrate_on

    with options.CellProgress("calibrate") as progress:
        found = calibrate_on(
            data, load(folder, device=device), label, config, precision, batch_size, progress
        )
    found.save(folder)
    options.say(found)
    options.say(f"Wrote {folder / CALIBRATION}.")
    if json:
        options.print_json({"out": str(folder / CALIBRATION), **found.to_dict()})
