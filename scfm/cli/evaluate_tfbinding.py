"""scfm evaluate tfbinding: a model of TF binding beside its baselines, on held-out chromosomes."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options
from scfm.cli.tfbind_use import Binarised, CellKey, Chip, ChipKey, Fasta, GroupKey, Track


def command(
    data: Annotated[str, typer.Argument(help="Regions with labels: h5ad, zarr, h5mu, npz, h5.")],
    model: options.Model,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for report.html, metrics.json, calibration.json.")
    ],
    fasta: Fasta = None,
    track: Track = None,
    group_key: GroupKey = None,
    cell_key: CellKey = None,
    chip_key: ChipKey = None,
    chip: Chip = None,
    training_chroms: Annotated[
        str | None, typer.Option(help="Default, here and below: what the model was trained with.")
    ] = None,
    validation_chroms: Annotated[
        str | None, typer.Option(help="What calibration and combinations are fitted on.")
    ] = None,
    test_chroms: Annotated[str | None, typer.Option(help="What is judged.")] = None,
    held_out_groups: Annotated[
        str | None, typer.Option(help="Groups of cells that the model did not train on.")
    ] = None,
    motifs: Annotated[
        Path | None, typer.Option(help="Motifs in MEME format, plain or .gz; none without.")
    ] = None,
    scfan: Annotated[
        str | None, typer.Option(help="A model of the scFAN network, to be judged as a baseline.")
    ] = None,
    train_scfan: Annotated[
        int, typer.Option(min=0, help="Train the scFAN network here, this many steps; 0: do not.")
    ] = 0,
    label: Annotated[
        str | None,
        typer.Option(help="obs column of cell types: cluster the cells by TF activity, and LSI."),
    ] = None,
    max_regions: Annotated[
        int, typer.Option(min=1, help="Regions of each part to judge, at most.")
    ] = 50_000,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples of chromosomes.")] = 1_000,
    seed: Annotated[int, typer.Option(help="For draws of regions, resamples, clusters.")] = 0,
    layer: options.Layer = None,
    binarised: Binarised = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows a pass.")] = 256,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Is the model better than plain means, on chromosomes and cells it has not seen?

    AUPR, AUROC, precision at recall and calibration, beside: prevalence, accessibility alone, motif
    hits, motifs times accessibility, what ChIP found in other cells, and the scFAN network. With
    --label also whether clusters of cells by TF activity agree with their types. Chromosomes and
    groups are separated by commas.
    """
    from scfm.evaluate.tfbinding import BindingEvaluationConfig
    from scfm.evaluate.tfbinding_report import write_tfbinding
    from scfm.tools.tf_evaluation import EvaluationData, evaluate_binding

    asked = {
        "training_chroms": training_chroms,
        "validation_chroms": validation_chroms,
        "test_chroms": test_chroms,
        "held_out_groups": held_out_groups,
    }
    places = EvaluationData(
        path=data,
        fasta=fasta,
        tracks=options.named_paths(track or [], "--track"),
        group_key=group_key,
        cell_key=cell_key,
        chip_key=chip_key,
        chip_of=options.named(chip or [], "--chip", "GROUP=CELL"),
        label_key=label,
        layer=layer,
        binarised=binarised,
    )
    config = BindingEvaluationConfig(
        max_regions=max_regions, n_bootstrap=bootstrap, batch_size=batch_size, seed=seed
    )
    with options.StagedProgress("steps") as progress:
        found, calibration, provenance = evaluate_binding(
            places,
            model,
            split={k: options.names(v) for k, v in asked.items() if v},
            motifs=motifs,
            scfan=scfan,
            scfan_steps=train_scfan,
            config=config,
            device=device,
            on_progress=progress,
        )
    write_tfbinding(found, calibration, out, title="TF binding", provenance=provenance)
    print(found.table(), flush=True)
    options.say(f"Wrote {out}: report.html, metrics.json, calibration.json, aupr.png.")
    if json:
        options.print_json({"out": str(out), "verdict": found.verdict})
