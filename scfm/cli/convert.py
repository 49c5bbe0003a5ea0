"""scfm convert: weights published with another paper -> a model folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options
from scfm.errors import ConfigError


class Original(StrEnum):
    scfoundation = "scfoundation"
    scmulan = "scmulan"


def command(
    original: Annotated[Original, typer.Argument(help="Whose weights these are.")],
    file: Annotated[Path, typer.Argument(help="The published file: models.ckpt, ckpt_scMulan.pt.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write; must not exist yet.")],
    key: Annotated[
        str | None, typer.Option(help="scfoundation: which model of the file: cell, rde or gene.")
    ] = None,
    vocab: Annotated[
        Path | None,
        typer.Option(help="scmulan: JSON of tokens, genes and cell_types; else the released ones."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Turn published weights into a model folder that every other command takes.

    Nothing of the file is run. The folder's README.md says whose the weights are and on what terms.
    """
    match original:
        case Original.scfoundation:
            from scfm.model.convert import scfoundation

            _refuse(original, "--vocab", vocab)
            model = scfoundation.convert(file, key, out)
        case Original.scmulan:
            from scfm.model.convert import scmulan

            _refuse(original, "--key", key)
            model = scmulan.convert(file, out, vocab)
    options.say(f"Model written to {model}. Its licence is in {model / 'README.md'}.")
    if json:
        options.print_json({"model": str(model)})


def _refuse(original: Original, option: str, value: object) -> None:
    if value is not None:
        raise ConfigError(f"convert {original.value} takes no {option}. Leave it out.")
