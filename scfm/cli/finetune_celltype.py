"""scfm finetune celltype: labelled cells -> a model that says their types. Also under torchrun."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from scfm.cli import launching, options


def command(
    data: Annotated[str, typer.Argument(help="Labelled cells: h5ad, zarr, 10x, loom, or a store.")],
    label: Annotated[str, typer.Option(help="obs column of the cell types.")],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Run folder, new or empty.")],
    holdout: Annotated[
        str | None, typer.Option(help="obs column whose values (donors) are held out whole.")
    ] = None,
    method: Annotated[str, typer.Option(help="probe, partial, lora or full.")] = "lora",
    features: Annotated[
        str, typer.Option(help="What the classifier reads: both, embedding or genes.")
    ] = "both",
    balance: Annotated[
        str, typer.Option(help="What is done about rare types: weights, logits or none.")
    ] = "weights",
    batch_key: Annotated[
        str | None, typer.Option(help="obs column of batches, for --integrate.")
    ] = None,
    integrate: Annotated[
        str, typer.Option(help="none, or contrastive: bring batches together.")
    ] = "none",
    mapping: Annotated[
        Path | None, typer.Option(help="CSV of label and term, for the Cell Ontology.")
    ] = None,
    pooling: options.Pooling = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of training.")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, e.g. --set optim.lr=1e-4.")
    ] = None,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Teach a model the types of labelled cells, and judge it on donors it never saw.

    Writes model/, whose README.md has its scores beside PCA with logistic regression; scfm annotate
    takes it without a reference. With train.devices above 1 it starts as many processes.
    """
    with launching.one_voice():
        reading = options.input_config(layer, species, orthologs, False, minimum_coverage)
        from scfm.config import from_mapping, with_overrides
        from scfm.tasks.celltype import CelltypeConfig

        asked: dict[str, Any] = {
            **{"method": method, "features": features, "balance": balance, "seed": seed},
            **{"integrate": integrate, "pooling": pooling},
        }
        # unknown names are refused before anything is started
        config = from_mapping(CelltypeConfig, with_overrides(asked, set_ or []), where="options")
        n_processes = launching.processes_to_start(config.train, set_ or [], is_recorded=False)
        if n_processes > 1:
            raise typer.Exit(launching.launch(n_processes, _arguments(locals())))
        from scfm.tools.celltype_finetuning import finetune_celltype
        from scfm.tools.loading import load

        first = launching.is_first()
        with options.CellProgress("embed") as progress:
            found = finetune_celltype(
                *(data, load(model, device=device), out),
                label_key=label,
                holdout=holdout,
                batch_key=batch_key,
                mapping=mapping,
                config=config,
                reading=reading,
                say=options.say if first else lambda line: None,
                on_progress=progress if first else lambda done, total: None,
            )
    if found is None:
        return
    options.say(
        f"\n{found.verdict}\n{found.calibration}\n\nModel written to {found.model}. Use it: scfm "
        f"annotate cells.h5ad --model {out} --out ..."
    )
    if json:
        options.print_json({"out": str(out), "model": str(found.model), "verdict": found.verdict})


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """The command again, for its processes."""
    words = [str(values["data"])]
    for name in (
        *("label", "model", "out", "holdout", "method", "features", "balance", "batch_key"),
        *("integrate", "mapping", "pooling", "seed", "device", "layer", "minimum_coverage"),
    ):
        if values[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(values[name])]
    words += ["--species", str(values["species"].value)]
    for setting in values["set_"] or []:
        words += ["--set", setting]
    words += [f"--{name}" for name in ("orthologs", "json") if values[name]]
    return ["finetune", "celltype", *words, *(["--debug"] if "--debug" in sys.argv else [])]
