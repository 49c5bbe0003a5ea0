"""scfm export: any checkpoint of a run -> a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options


def command(
    source: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]", help="Run folder; default: the newest step.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write; must not exist yet.")],
    json: options.Json = False,
) -> None:
    """Turn a checkpoint into a model: float32 weights, config, vocabulary, provenance.

    Works for checkpoints of every strategy, on any machine, in one process.
    """
    from scfm.tools.export_model import export_model

    model = export_model(source, out)
    options.say(f"Model written to {model}.")
    if json:
        options.print_json({"model": str(model)})
