"""scfm denoise: a file of cells -> the same file with a layer at another read depth."""

from typing import Annotated

import typer

from scfm.cli import options


def command(
    data: Annotated[
        str, typer.Argument(help="h5ad, zarr, 10x h5, 10x mtx folder, loom, or a store.")
    ],
    model: options.Model,
    out: options.Out,
    target_depth: Annotated[
        str,
        typer.Option(
            help="f5: five times the cell's own depth; a1: ten times; t4: 10,000 counts; "
            "a number: log10 of a total count; source: the cell's own depth."
        ),
    ] = "f5",
    layer_added: Annotated[str, typer.Option(help="Name of the layer.")] = "scfm_denoised",
    gene: Annotated[
        list[str] | None,
        typer.Option(help="Only this gene (symbol or Ensembl id); may be given several times."),
    ] = None,
    sample_counts: Annotated[
        bool, typer.Option("--sample-counts", help="Also draw counts at that depth.")
    ] = False,
    seed: Annotated[int, typer.Option(help="For the counts drawn.")] = 0,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    expected_counts: options.ExpectedCounts = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Predict every cell as if sequenced deeper: layers["scfm_denoised"], log1p(cp10k).

    Columns the model does not know are NaN; var["scfm_denoised_predicted"] says which it does.
    Memory does not grow with the number of cells.
    """
    config = options.input_config(layer, species, orthologs, expected_counts, minimum_coverage)
    from scfm.data.write import check_writable

    check_writable(out)
    from scfm.tools.denoising import DenoiseConfig, denoise_file
    from scfm.tools.loading import load

    what = DenoiseConfig(
        target_depth=target_depth,
        layer_added=layer_added,
        genes=gene or None,
        draw_counts=sample_counts,
        seed=seed,
        batch_size=batch_size,
    )
    with options.CellProgress("denoise") as progress:
        report = denoise_file(
            *(data, load(model, device=device), out),
            denoise_config=what,
            config=config,
            on_progress=progress,
        )
    options.say(report)
    layers = [layer_added, *([what.counts_layer] if sample_counts else [])]
    options.say(f"Wrote {out}: " + ", ".join(f'layers["{name}"]' for name in layers) + ".")
    if json:
        found = {"layer": layer_added} | (
            {"counts_layer": what.counts_layer} if sample_counts else {}
        )
        options.print_json({"out": str(out), **found, "genes": report.to_dict()})
