"""scfm prepare: raw files -> one store; a store checked; a store given back as h5ad."""

import inspect
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scfm.cli import options


class Duplicates(StrEnum):
    drop = "drop"
    keep = "keep"


def command(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Files, or with --verify or --export a store.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The store: a new folder, or one to add to.")
    ] = None,
    obs: Annotated[
        list[str] | None, typer.Option(help="A further obs column to keep; repeat for several.")
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="YAML: obs columns to keep and what they are called in the files."),
    ] = None,
    min_genes: Annotated[
        int, typer.Option(min=0, help="Drop cells with fewer expressed genes; 200 is common.")
    ] = 0,
    min_counts: Annotated[int, typer.Option(min=0, help="Drop cells with fewer counts.")] = 0,
    max_mito: Annotated[
        float,
        typer.Option(min=0, max=1, help="Drop cells with a larger mitochondrial share; try 0.2."),
    ] = 1.0,
    duplicates: Annotated[
        Duplicates, typer.Option(help="Cells that are there twice, in one file or several.")
    ] = Duplicates.drop,
    species: options.SpeciesOption = options.Species.auto,
    layer: options.Layer = None,
    minimum_coverage: options.MinimumCoverage = 0.5,
    skip_refused: Annotated[
        bool, typer.Option("--skip-refused", help="Leave out files that cannot be used.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget an interrupted conversion; begin anew.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle.")] = 0,
    shard_cells: Annotated[int, typer.Option(min=1, help="Cells of a shard, about.")] = 65_536,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte of the store named instead.")
    ] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="With --verify: are the source files still the same?")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write the store named to this h5ad file instead.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="With --export: one source file, as it was.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Turn raw count files into one shuffled store, or add them to one.

    scfm prepare *.h5ad --out STORE. Interrupted, the same command goes on where it was.
    scfm prepare --verify STORE; scfm prepare --export OUT.h5ad STORE
    """
    _refuse_what_does_nothing(locals(), "verify" if verify else "export" if export else None)
    from scfm.tools import preparation

    if verify or export:
        store = _one_store(inputs, "--verify" if verify else "--export")
        if verify:
            found = preparation.verify(store, sources=sources)
            options.say(preparation.verified_in_words(found))
        else:
            assert export is not None
            found = preparation.export_h5ad(store, export, dataset=dataset)
            options.say(f"Wrote {export}: {found['n_cells']:,} cells, {found['n_genes']:,} genes.")
    else:
        settings = {
            "quality": {"min_genes": min_genes, "min_counts": min_counts, "max_mito": max_mito},
            "duplicates": duplicates.value,
            "species": species.value,
            "layer": layer,
            "minimum_coverage": minimum_coverage,
            "seed": seed,
            "shard_cells": shard_cells,
        }
        with StageProgress() as progress:
            found = preparation.prepare_files(
                inputs,
                out,
                settings,
                obs=obs or [],
                mapping=mapping,
                skip_refused=skip_refused,
                restart=restart,
                on_progress=progress,
            )
        options.say(preparation.prepared_in_words(found))
    if json:
        options.print_json(found)


def _refuse_what_does_nothing(values: Mapping[str, Any], mode: str | None) -> None:
    """Options of another use of the command, which would be passed over in silence."""
    from scfm.errors import ConfigError

    own = {"verify": {"sources"}, "export": {"dataset"}}
    parameters = inspect.signature(command).parameters
    given = [
        name for name in parameters if name != "inputs" and values[name] != parameters[name].default
    ]
    stray = [name for name in given if mode and name not in own[mode] | {mode, "json"}]
    if stray:
        it = "it" if len(stray) == 1 else "them"
        raise ConfigError(f"{_spelled(*stray)} cannot be used with --{mode}: leave {it} out.")
    for use in own if not mode else ():
        for name in own[use].intersection(given):
            raise ConfigError(
                f"{_spelled(name)} says nothing without --{use}: leave it out, or add --{use}."
            )


def _spelled(*names: str) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _one_store(inputs: list[str], option: str) -> str:
    if len(inputs) != 1:
        raise typer.BadParameter(f"{option} takes one store, got {len(inputs)} paths.")
    return inputs[0]


class StageProgress:
    """One bar, or one row of lines, for each stage of the work."""

    WORDS = {"look": "look at files", "read": "read", "shuffle": "shuffle"}  # noqa: RUF012

    def __init__(self) -> None:
        self.stage, self.shown = "", None

    def __enter__(self) -> "StageProgress":
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self._close()
            unit = "files" if stage == "look" else "cells"
            self.stage, self.shown = stage, options.CellProgress(self.WORDS[stage], unit=unit)
            self.update = self.shown.__enter__()
        self.update(done, total)

    def _close(self) -> None:
        if self.shown is not None:
            self.shown.__exit__()
            self.shown = None

    def __exit__(self, *_: object) -> None:
        self._close()
