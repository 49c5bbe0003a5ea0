"""scfm embed: a file of cells -> the same file with an embedding."""

from typing import Annotated

import typer

from scfm.cli import options


def command(
    data: Annotated[
        str, typer.Argument(help="h5ad, zarr, 10x h5, 10x mtx folder, loom, or a store.")
    ],
    model: options.Model,
    out: options.Out,
    key_added: Annotated[str, typer.Option(help="Name in obsm.")] = "X_scfm",
    pooling: options.Pooling = None,
    target_depth: options.TargetDepth = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    expected_counts: options.ExpectedCounts = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Embed every cell of a file: obsm["X_scfm"].

    Memory does not grow with the number of cells, and a cell's embedding depends neither on the
    batch size nor on its neighbours.
    """
    config = options.input_config(layer, species, orthologs, expected_counts, minimum_coverage)
    from scfm.data.write import check_writable

    check_writable(out)
    from scfm.tools.embedding import embed_file
    from scfm.tools.loading import load

    with options.CellProgress("embed") as progress:
        report = embed_file(
            data,
            load(model, device=device),
            out,
            key_added=key_added,
            pooling=pooling,
            target_depth=target_depth,
            batch_size=batch_size,
            config=config,
            on_progress=progress,
        )
    options.say(report)
    options.say(f'Wrote {out}: obsm["{key_added}"].')
    if json:
        options.print_json({"out": str(out), "key": key_added, "genes": report.to_dict()})
