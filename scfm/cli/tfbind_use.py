"""scfm tfbind predict, activity, variants: a model of TF binding put to use."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options

Fasta = Annotated[
    str | None, typer.Option(help="The genome's FASTA. Default: the sequences of the file.")
]
Track = Annotated[
    list[str] | None, typer.Option(help="Accessibility, NAME=FILE.bw; repeat for more.")
]
GroupKey = Annotated[
    str | None, typer.Option(help="obs column of the groups of cells whose accessibility is read.")
]
CellKey = Annotated[
    str | None, typer.Option(help="obsm key of the cell embeddings that condition the model.")
]
ChipKey = Annotated[
    str | None, typer.Option(help="obs column of the cell type with ChIP. [default: groups]")
]
Chip = Annotated[
    list[str] | None,
    typer.Option(help="GROUP=CELL: whose ChIP a group's labels are, where names differ."),
]
Tf = Annotated[list[str] | None, typer.Option(help="A TF; repeat for more. Default: all.")]
Group = Annotated[
    list[str] | None, typer.Option(help="A group of cells; repeat for more. Default: all.")
]
CalibrationFile = Annotated[
    Path | None, typer.Option(help="calibration.json of scfm evaluate tfbinding.")
]
Binarised = Annotated[
    bool, typer.Option("--binarised", help="Take a matrix of 0 and 1 for counts.")
]
Windows = Annotated[
    int, typer.Option("--batch-size", min=1, help="Windows a pass; results do not depend on it.")
]


def predict(
    data: Annotated[str, typer.Argument(help="Regions: h5ad, zarr, h5mu, npz, h5.")],
    model: options.Model,
    out: options.Out,
    fasta: Fasta = None,
    track: Track = None,
    group_key: GroupKey = None,
    cell_key: CellKey = None,
    tf: Tf = None,
    group: Group = None,
    calibration: CalibrationFile = None,
    layer: options.Layer = None,
    binarised: Binarised = False,
    batch_size: Windows = 256,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Binding of every TF at every region in every group of cells, into a zarr folder.

    Holds logits (group, region, TF) as float16 and the regions. Read it with
    scfm.tools.tf_store.BindingStore.open(OUT): to_anndata("CTCF") is groups x regions of one TF.
    """
    from scfm.tools.tf_prediction import as_binding, open_for, predict_binding

    network = as_binding(model, device)
    examples = open_for(
        network,
        data,
        fasta=fasta,
        tracks=options.named_paths(track or [], "--track"),
        group_key=group_key,
        cell_key=cell_key,
        layer=layer,
        binarised=binarised,
    )
    with options.CellProgress("predict", "windows") as progress:
        predict_binding(
            *(examples, network, out),
            tfs=tf,
            groups=group,
            calibration=_calibration(calibration, network),
            batch_size=batch_size,
            device=device,
            on_progress=progress,
        )
    options.say(f"Wrote {out}: {examples.n_regions:,} regions.")
    if json:
        options.print_json({"out": str(out), "n_regions": examples.n_regions})


def activity(
    data: Annotated[str, typer.Argument(help="Peaks x cells: h5ad.")],
    model: options.Model,
    out: options.Out,
    fasta: Fasta = None,
    track: Track = None,
    group_key: GroupKey = None,
    cell_key: CellKey = None,
    method: Annotated[
        str, typer.Option(help="deviation (corrected by backgrounds), or top2 (scFAN's score).")
    ] = "deviation",
    tf: Tf = None,
    calibration: CalibrationFile = None,
    threshold: Annotated[
        float, typer.Option(min=0, help="A peak is open in a cell with more counts than this.")
    ] = 0,
    backgrounds: Annotated[int, typer.Option(min=2, help="Matched background peaks a peak.")] = 50,
    seed: Annotated[int, typer.Option(help="For the background peaks.")] = 0,
    key_added: Annotated[str, typer.Option(help="Key of obsm.")] = "X_tf_activity",
    layer: options.Layer = None,
    binarised: Binarised = False,
    batch_size: Windows = 256,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """How active each TF is in each cell: obsm["X_tf_activity"] in a copy of the file.

    Memory does not grow with the counts: they are read a chunk of cells at a time.
    """
    from scfm.tools.tf_activities import ActivityConfig, ActivityData, tf_activity_file
    from scfm.tools.tf_prediction import as_binding

    network = as_binding(model, device)
    with options.CellProgress("activity") as progress:
        found = tf_activity_file(
            *(data, network, out),
            data=ActivityData(
                *(group_key, fasta, options.named_paths(track or [], "--track")),
                *(cell_key, layer, binarised),
            ),
            tfs=tf,
            calibration=_calibration(calibration, network),
            config=ActivityConfig(
                method=method,
                threshold=threshold,
                n_backgrounds=backgrounds,
                seed=seed,
                batch_size=batch_size,
            ),
            device=device,
            key_added=key_added,
            on_progress=progress,
        )
    options.say(f"Wrote {out}: obsm['{key_added}'] from {found['n_peaks']:,} peaks.")
    if json:
        options.print_json({"out": str(out), **found})


def variants(
    vcf: Annotated[str, typer.Argument(help="VCF, plain or .gz.")],
    model: options.Model,
    fasta: Annotated[str, typer.Option(help="The genome's FASTA: of the VCF's assembly.")],
    out: Annotated[Path, typer.Option("--out", help="Table: .tsv, .tsv.gz or .parquet.")],
    regions: Annotated[
        str | None,
        typer.Option(help="Peaks x cells whose accessibility the model reads: h5ad, zarr, h5mu."),
    ] = None,
    track: Track = None,
    group_key: GroupKey = None,
    cell_key: CellKey = None,
    tf: Tf = None,
    group: Group = None,
    null: Annotated[
        int, typer.Option(min=0, help="Random changes of each kind, for p; 0 leaves p out.")
    ] = 1_000,
    shift: Annotated[
        list[int] | None,
        typer.Option(help="Bases a window is moved by; repeat for more. Default: -20 to 20."),
    ] = None,
    seed: Annotated[int, typer.Option(help="For the random changes.")] = 0,
    layer: options.Layer = None,
    binarised: Binarised = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Variants a pass.")] = 128,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """What each variant does to the binding of each TF in each group of cells.

    logit(alternative) - logit(reference), both strands, a mean over shifted windows; p is how often
    a random change of the same kind nearby does as much. REF is held against the FASTA.
    """
    from scfm.tasks.tf_variants import VariantConfig
    from scfm.tools.tf_prediction import as_binding, open_for
    from scfm.tools.tf_variants import score_vcf

    network, tracks = as_binding(model, device), options.named_paths(track or [], "--track")
    examples = None
    if regions is not None:
        examples = open_for(
            network,
            regions,
            fasta=fasta,
            tracks=tracks,
            group_key=group_key,
            cell_key=cell_key,
            layer=layer,
            binarised=binarised,
        )
    plain = VariantConfig(n_null=null, batch_size=batch_size, seed=seed)
    config = VariantConfig(
        shifts=tuple(shift) if shift else plain.shifts,
        n_null=null,
        batch_size=batch_size,
        seed=seed,
    )
    with options.CellProgress("score", "changes") as progress:
        found = score_vcf(
            *(vcf, network, fasta, out),
            regions=examples,
            tracks=tracks,
            tfs=tf,
            groups=group,
            config=config,
            device=device,
            on_progress=progress,
        )
    options.say(f"Wrote {out}: {found}.")
    if json:
        options.print_json({"out": str(out), **vars(found)})


def _calibration(path: Path | None, model):
    from scfm.tasks.tf_calibration import BindingCalibration
    from scfm.tools.tf_prediction import binding_id

    if path is None:
        return None
    return BindingCalibration.load(path, model.tasks, binding_id(model))
