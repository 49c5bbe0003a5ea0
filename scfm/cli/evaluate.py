"""scfm evaluate: a model beside its baselines, on real cells."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import evaluate_tfbinding, options

app = typer.Typer(
    no_args_is_help=True,
    help="Judge a model beside its baselines on the same cells.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command("tfbinding")(evaluate_tfbinding.command)


@app.command("celltype")
def celltype(
    data: Annotated[
        str, typer.Argument(help="Labelled cells to judge: h5ad, zarr, 10x h5, mtx folder, loom.")
    ],
    model: Annotated[
        list[str],
        typer.Option("--model", help="Model folder, run folder or hub id; may be given again."),
    ],
    label: Annotated[str, typer.Option(help="obs column of the true labels.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for report.html, metrics.json and figures.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="Labelled cells to learn from. Without it DATA is split."),
    ] = None,
    reference_label: Annotated[
        str | None, typer.Option(help="obs column of the reference's labels; default: the same.")
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(
            help="CSV of dataset, label, common: labels in common terms; empty leaves out."
        ),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="obs column whose groups (donors, data sets) are held out whole."),
    ] = None,
    donor: Annotated[
        str | None,
        typer.Option(help="obs column that intervals are over; default: that of --split-by."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds that DATA is split into.")] = 5,
    unknown: Annotated[
        list[str] | None,
        typer.Option(
            help="Label to leave out of what is learned, may be given again; default: all."
        ),
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave no label out; several times faster.")
    ] = False,
    finetune: Annotated[
        list[str] | None,
        typer.Option(
            help="Also fine-tune the model on what is learned from, by probe, partial, lora or "
            "full; may be given again. Anew in every fold: slow but for probe."
        ),
    ] = None,
    scvi: Annotated[
        bool,
        typer.Option(
            "--scvi",
            # escaped: square brackets are markup to the help's printer
            help="Also judge scVI, trained anew in every fold (pip install 'scfm\\[scvi]').",
        ),
    ] = False,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of splits and methods; may be given several times.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples of an interval.")] = 1_000,
    pooling: options.Pooling = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Who types cells best, by how much, and whose confidence can be believed.

    The model beside PCA and neighbours, logistic regressions, CellTypist's recipe, the untrained
    network and the majority class, on held-out donors (--split-by), on another data set
    (--reference), or on cells at random, which is optimistic.
    """
    config = options.input_config(layer, species, orthologs, False, minimum_coverage)
    from scfm.config import from_mapping
    from scfm.evaluate.celltype import read_label_mapping
    from scfm.evaluate.celltype_evaluation import evaluate_celltype
    from scfm.evaluate.celltype_inputs import CelltypeData
    from scfm.evaluate.celltype_protocol import ProtocolConfig
    from scfm.evaluate.celltype_report import write_celltype
    from scfm.evaluate.provenance import provenance_of
    from scfm.tasks.celltype import CelltypeConfig
    from scfm.tools.loading import load

    tunings = [
        from_mapping(CelltypeConfig, {"method": method}, where="--finetune")
        for method in finetune or []
    ]
    cells = CelltypeData(
        query=data,
        label_key=label,
        reference=reference,
        reference_label_key=reference_label,
        mapping=read_label_mapping(mapping) if mapping else None,
        split_by=split_by,
        donor_key=donor,
    )
    settings = ProtocolConfig(
        n_folds=folds,
        unknown=() if skip_unknown else tuple(unknown) if unknown else None,
        n_bootstrap=bootstrap,
        seeds=tuple(seed) if seed else (0,),
    )
    models = {name: load(name, device=device) for name in model}
    with options.StagedProgress("method folds") as progress:
        found = evaluate_celltype(
            *(cells, models),
            config=settings,
            reading=config,
            pooling=pooling,
            batch_size=batch_size,
            finetune=tunings,
            scvi=scvi,
            on_progress=progress,
        )
    made = provenance_of(models, [reference, data] if reference else [data])
    write_celltype(found, out, title="Cell typing", provenance=made)
    print(found.table(), flush=True)
    options.say(f"Wrote {out}: report.html, metrics.json, figures.")
    if json:
        options.print_json({"out": str(out), "verdict": found.verdict})


@app.command("integration")
def integration(
    data: Annotated[
        str, typer.Argument(help="Cells with types and batches: h5ad, zarr, 10x h5, loom.")
    ],
    model: Annotated[
        list[str],
        typer.Option("--model", help="Model folder, run folder or hub id; may be given again."),
    ],
    label: Annotated[str, typer.Option(help="obs column of cell types.")],
    batch: Annotated[str, typer.Option(help="obs column of batches.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and metrics.json.")],
    cells: Annotated[int, typer.Option(min=50, help="Cells to judge, at most.")] = 5_000,
    draws: Annotated[int, typer.Option(min=2, help="Draws of 80 % of them, for the spread.")] = 5,
    seed: Annotated[int, typer.Option(help="For the cells, the draws and the clusters.")] = 0,
    pooling: options.Pooling = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Are batches mixed and types kept apart? Beside principal components and Harmony.

    Scores of scIB: silhouettes, iLISI and cLISI, NMI and ARI of Leiden clusters, connectivity.
    """
    config = options.input_config(layer, species, orthologs, False, minimum_coverage)
    from scfm.evaluate.integration import IntegrationConfig, evaluate_integration
    from scfm.evaluate.integration_report import write_integration
    from scfm.evaluate.provenance import provenance_of
    from scfm.tools.loading import load

    settings = IntegrationConfig(n_cells=cells, n_draws=draws, seed=seed)
    models = {name: load(name, device=device) for name in model}
    with options.StagedProgress("embeddings") as progress:
        found = evaluate_integration(
            *(data, models),
            label_key=label,
            batch_key=batch,
            config=settings,
            reading=config,
            pooling=pooling,
            batch_size=batch_size,
            on_progress=progress,
        )
    made = provenance_of(models, [data])
    write_integration(found, out, title="Integration", provenance=made)
    print(found.table(), flush=True)
    options.say(f"Wrote {out}: report.html, metrics.json.")
    if json:
        options.print_json({"out": str(out), "verdict": found.verdict})


@app.command("denoise")
def denoise(
    data: Annotated[
        str, typer.Argument(help="h5ad, zarr, 10x h5, 10x mtx folder, loom, or a store.")
    ],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder for metrics.json and denoising.png.")],
    label: Annotated[
        str | None,
        typer.Option(help="obs column of cell types, for the mean profile; default: clusters."),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the counts to keep; may be given several times."),
    ] = None,
    target_depth: Annotated[
        str | None,
        typer.Option(help="Depth asked for; default: 1 / share times the thinned cell's own."),
    ] = None,
    cells: Annotated[int, typer.Option(min=2, help="Cells to judge, at most.")] = 500,
    context_cells: Annotated[
        int, typer.Option(min=2, help="Cells the baselines may use, at most.")
    ] = 5_000,
    genes: Annotated[int, typer.Option(min=2, help="Genes to judge, at most.")] = 2_000,
    seed: Annotated[int, typer.Option(help="For the cells, genes, thinning and intervals.")] = 0,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Thin real cells to 1, 5, 10 and 20 % of their counts and judge who restores them best.

    The model against the thinned profile itself, neighbour smoothing and a mean per cell type.
    """
    config = options.input_config(layer, species, orthologs, False, minimum_coverage)
    from scfm.evaluate.denoising import DenoisingConfig, evaluate_denoising, write_denoising
    from scfm.evaluate.thinned import SHARES
    from scfm.tools.loading import load

    settings = DenoisingConfig(
        shares=tuple(share) if share else SHARES,
        target_depth=target_depth,
        n_cells=cells,
        n_context_cells=context_cells,
        n_genes=genes,
        seed=seed,
        batch_size=batch_size,
    )
    with options.CellProgress("denoise") as progress:
        found = evaluate_denoising(
            *(data, load(model, device=device)),
            label_key=label,
            config=settings,
            input_config=config,
            on_progress=progress,
        )
    write_denoising(found, out)
    print(found.table(), flush=True)
    options.say(f"Wrote {out}: metrics.json, denoising.png.")
    if json:
        options.print_json({"out": str(out), "verdict": found.verdict})


@app.command("generation")
def generation(
    real: Annotated[
        str, typer.Argument(help="Real cells the model was not trained on, with their types.")
    ],
    generated: Annotated[str, typer.Option(help="h5ad of generated cells: scfm generate.")],
    label: Annotated[str, typer.Option(help="obs column of the real cells' types.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for metrics.json and report.html.")],
    generated_label: Annotated[
        str | None,
        typer.Option(help="obs column of the types asked for; default: the same name."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="Cells the baselines learn from; default: half of the real ones."),
    ] = None,
    cells: Annotated[int, typer.Option(min=10, help="Cells of a type to judge, at most.")] = 200,
    genes: Annotated[int, typer.Option(min=2, help="Genes to judge, at most.")] = 2_000,
    seed: Annotated[int, typer.Option(help="For the cells, genes, baselines and intervals.")] = 0,
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    minimum_coverage: Annotated[
        float, typer.Option(help="Share of the generated genes that must be measured.")
    ] = 0.5,
    json: options.Json = False,
) -> None:
    """Judge generated cells beside real cells of their types and beside two baselines.

    Gene means and variances, MMD, a classifier that tells them from real cells, zeros, and whether
    a generated type is nearest to its own. The baselines: real cells of the type sequenced again,
    and a negative binomial per gene.
    """
    config = options.input_config(layer, species, False, False, minimum_coverage)
    from scfm.evaluate.generation import GenerationConfig, evaluate_generation
    from scfm.evaluate.generation_report import write_generation

    settings = GenerationConfig(n_cells=cells, n_genes=genes, seed=seed)
    with options.CellProgress("evaluate", "types") as progress:
        found = evaluate_generation(
            *(real, generated),
            label_key=label,
            generated_key=generated_label,
            fit=fit,
            config=settings,
            input_config=config,
            on_progress=progress,
        )
    write_generation(found, out, title="Generated cells")
    print(found.table(), flush=True)
    options.say(f"Wrote {out}: metrics.json, report.html.")
    if json:
        options.print_json({"out": str(out), "verdict": found.verdict})
