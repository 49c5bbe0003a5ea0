"""scfm convert: weights published with another paper -> a model folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options


class Original(StrEnum):
    scfoundation = "scfoundation"


def command(
    original: Annotated[Original, typer.Argument(help="Whose weights these are.")],
    file: Annotated[Path, typer.Argument(help="The published file, such as models.ckpt.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write; must not exist yet.")],
    key: Annotated[
        str | None, typer.Option(help="Which of the file's models: cell, rde or gene.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Turn published weights into a model folder that every other command takes.

    Nothing of the file is run. The folder's README.md says whose the weights are and on what terms.
    """
    match original:
        case Original.scfoundation:
            from scfm.model.convert.scfoundation import convert

    model = convert(file, key, out)
    options.say(f"Model written to {model}. Its licence is in {model / 'README.md'}.")
    if json:
        options.print_json({"model": str(model)})
