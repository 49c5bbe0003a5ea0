"""scfm info: what is in a model folder, a reference, a store or a file of cells."""

from typing import Annotated

import typer

from scfm.cli import options


def command(
    path: Annotated[
        str, typer.Argument(help="Model folder, run folder, reference, store, or a file of cells.")
    ],
    layer: options.Layer = None,
    species: options.SpeciesOption = options.Species.auto,
    orthologs: options.Orthologs = False,
    json: options.Json = False,
) -> None:
    """Say what is in a model, a reference, a store or a file: sizes, hashes, provenance, genes."""
    from scfm.tools.info import describe, in_words

    found = describe(path, layer=layer, species=species.value, orthologs=orthologs)
    if json:
        options.print_json(found)
    else:
        print(in_words(found))
