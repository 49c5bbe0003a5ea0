"""scfm finetune: a model for one task, trained and judged on held-out data."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import finetune_tfbinding, options

app = typer.Typer(
    help="Train a model for one task, and judge it on what it has not seen.",
    no_args_is_help=True,
)


app.command("tfbinding")(finetune_tfbinding.command)


@app.callback()
def _root() -> None:
    """Without it typer would take a single command for the whole."""


@app.command()
def perturbation(
    data: Annotated[str, typer.Argument(help="Cells of a screen: h5ad, zarr, 10x, loom.")],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Run folder; an earlier run is replaced.")],
    control: Annotated[str, typer.Option(help="What unperturbed cells are called.")],
    perturbation_key: Annotated[
        str, typer.Option(help="obs column of the perturbed gene; A+B for two.")
    ] = "perturbation",
    batch_key: Annotated[
        str | None, typer.Option(help="obs column; cells are compared within its values.")
    ] = None,
    holdout: Annotated[
        list[str] | None, typer.Option(help="A perturbation to hold out; repeat for more.")
    ] = None,
    holdout_share: Annotated[
        float, typer.Option(help="Share of the perturbations to hold out, drawn by the seed.")
    ] = 0.25,
    folds: Annotated[
        int, typer.Option(min=0, help="Hold every perturbation out once, in so many folds.")
    ] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="All of it again with further seeds.")] = 1,
    leave_out_unknown: Annotated[
        bool, typer.Option("--leave-out-unknown", help="Drop targets the model does not know.")
    ] = False,
    random_weights: Annotated[
        bool, typer.Option(help="Judge the same head on an untrained network too.")
    ] = True,
    loss: Annotated[str, typer.Option(help="gears (autofocus and direction) or mse.")] = "gears",
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps at most.")] = 1000,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between looks.")] = 10,
    patience: Annotated[int, typer.Option(min=1, help="Looks without a better one.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Pseudo-pairs a step.")] = 32,
    cells_per_profile: Annotated[
        int, typer.Option(min=1, help="Cells that a pair's profiles are means of; GEARS has 1.")
    ] = 64,
    context_cells: Annotated[
        int, typer.Option(min=1, help="Control cells that gene embeddings are means over.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the pairs and the weights.")] = 0,
    device: options.Device = "auto",
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    minimum_coverage: options.MinimumCoverage = 0.5,
    json: options.Json = False,
) -> None:
    """Predict the expression of cells under perturbations that were never seen.

    Writes head/, metrics.json, scores.csv and scores.png; the first line says who wins, the head or
    a baseline.
    """
    reading = options.input_config(layer, species, False, False, minimum_coverage)
    from scfm.config import from_mapping
    from scfm.tasks.perturbation import PerturbationConfig
    from scfm.tools.loading import load
    from scfm.tools.perturbation import Protocol, finetune_perturbation
    from scfm.tools.perturbation_report import score_table

    protocol = {
        "holdout": tuple(holdout or ()),
        "holdout_share": holdout_share,
        "n_folds": folds,
        "repeats": repeats,
        "seed": seed,
        "random_weights": random_weights,
        "context_cells": context_cells,
    }
    loaded = load(model, device=device)
    config = {
        "objective": {"loss": loss},
        "optim": {"lr": lr, "warmup_steps": 20},
        "steps": steps,
        "validate_every": validate_every,
        "patience": patience,
        "batch_size": batch_size,
        "cells_per_profile": cells_per_profile,
        "accelerator": "cpu" if loaded.device.type == "cpu" else "gpu",
    }
    evaluation = finetune_perturbation(
        data,
        loaded,
        out,
        perturbation_key=perturbation_key,
        control=control,
        batch_key=batch_key,
        leave_out_unknown=leave_out_unknown,
        protocol=from_mapping(Protocol, protocol, where="options"),
        config=from_mapping(PerturbationConfig, config, where="options"),
        reading=reading,
        say=options.say,
    )
    options.say(
        f"\n{evaluation.verdict}\n\n{score_table(evaluation)}\n\nWrote {out}: head/, "
        "metrics.json, scores.csv, scores.png."
    )
    if json:
        options.print_json({"out": str(out), **evaluation.to_dict()})
