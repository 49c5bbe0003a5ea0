"""scfm generate: words -> a file of cells that a model makes up."""

from enum import StrEnum
from typing import Annotated

import typer

from scfm.cli import options


class Kind(StrEnum):
    normalised = "normalised"
    counts = "counts"


def command(
    model: options.Model,
    out: options.Out,
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="COLUMN=WORD",
            help="What the cells shall be, such as organ=Heart; once for each column.",
        ),
    ] = None,
    each: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="N cells of every word of this column."),
    ] = None,
    gene: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GENE=BIN",
            help="A gene that every cell shall have, 0 (not expressed) to the last bin (10).",
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--cells", min=1, help="Cells a prompt.")] = 100,
    values: Annotated[
        Kind, typer.Option("--as", help="X: log1p(cp10k), or counts of --depth molecules.")
    ] = Kind.normalised,
    depth: Annotated[int, typer.Option(min=1, help="Counts a cell, with --as counts.")] = 2_000,
    seed: Annotated[int, typer.Option(help="For words and counts.")] = 0,
    top_k: Annotated[int | None, typer.Option(help="Choose among the K likeliest words.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the words of this probability together.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1 more of the likely words.")] = 1.0,
    end_weight: Annotated[
        float, typer.Option(help="Factor on the chance to end: below 1 cells have more genes.")
    ] = 1.0,
    max_words: Annotated[
        int | None, typer.Option(help="Genes a cell, at most; default: as in training.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Words kept at a time, all cells together: bounds memory.")
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Make up cells by words: --set organ=Heart --set cell_type=Fibroblast -n 500.

    Of a model of family scmulan. obs has the prompt; scfm_ended is False for a cell that was cut.
    """
    prompt = _pairs(words or [], "--set", "organ=Heart")
    bins = _bins(_pairs(gene or [], "--gene", "CD34=8"))
    from scfm.data.write import check_writable, write_h5ad

    check_writable(out)
    from scfm.tools.generated_cells import generate
    from scfm.tools.loading import load

    with options.CellProgress("generate") as progress:
        adata = generate(
            load(model, device=device),
            {column: texts if len(texts) > 1 else texts[0] for column, texts in prompt.items()},
            each=each,
            genes=bins,
            n_cells=n,
            values=str(values),
            depth=depth,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            end_weight=end_weight,
            max_words=max_words,
            max_tokens=max_tokens,
            on_progress=progress,
        )
    write_h5ad(adata, out)
    made = adata.uns["scfm"]["generate"]
    n_genes, n_ended = adata.obs["scfm_n_genes"], int(adata.obs["scfm_ended"].sum())
    options.say(
        f"{adata.n_obs:,} cells with {n_genes.median():,.0f} genes (median); {n_ended:,} ended by "
        f"themselves, the others were cut at {made['max_words']:,} words."
    )
    if not made["share_is_known"]:
        options.say(
            "The model does not say which share of a cell's counts its genes have: values are as "
            "if they had all."
        )
    options.say(f"Wrote {out}.")
    if json:
        options.print_json({"out": str(out), "cells": adata.n_obs, "ended": n_ended})


def _pairs(given: list[str], option: str, example: str) -> dict[str, list[str]]:
    """NAME=VALUE texts as values by name; a name may come several times."""
    from scfm.errors import ConfigError

    found: dict[str, list[str]] = {}
    for text in given:
        name, is_pair, value = text.partition("=")
        if not is_pair or not name.strip() or not value.strip():
            raise ConfigError(f"{option} {text!r}: wanted NAME=VALUE, such as {example}.")
        found.setdefault(name.strip(), []).append(value.strip())
    return found


def _bins(given: dict[str, list[str]]) -> dict[str, int]:
    """The bin of each gene; two for one gene contradict each other."""
    from scfm.errors import ConfigError

    found = {}
    for gene, texts in given.items():
        if len(texts) > 1:
            raise ConfigError(
                f"The prompt contradicts itself: {gene} is {' and '.join(texts)}. Name it once."
            )
        if not texts[0].isdecimal():
            raise ConfigError(
                f"--gene {gene}={texts[0]}: wanted a bin, a whole number from 0 (not expressed) "
                "up to the model's last (10)."
            )
        found[gene] = int(texts[0])
    return found
