"""scfm ontology: what cell types are called in the Cell Ontology."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options

app = typer.Typer(
    no_args_is_help=True,
    help="What cell types are called in the Cell Ontology.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("map")
def map_(
    data: Annotated[
        str, typer.Argument(help="h5ad, zarr, 10x h5, 10x mtx folder, loom, or a store.")
    ],
    label: Annotated[str, typer.Option(help="obs column that holds the cell types.")],
    out: Annotated[Path, typer.Option("--out", help="CSV of label and term, to edit.")],
    mapping: Annotated[
        Path | None, typer.Option(help="Such a CSV: what it says goes before all else.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Find the Cell Ontology's term of every label, and write what was found to a CSV.

    Labels without a term come last, with the nearest terms; fill in their ids and give the CSV to
    scfm annotate, or again to this command.
    """
    from scfm.data.write import check_writable

    check_writable(out)
    from scfm.tools.ontology_labels import file_label_terms

    found = file_label_terms(data, label, mapping)
    found.write(out)
    options.say(found)
    options.say(f"Wrote {out}.")
    if json:
        options.print_json({"out": str(out), **found.to_dict()})


@app.command("find")
def find(
    names: Annotated[list[str], typer.Argument(help="Names, synonyms or ids of cell types.")],
    json: options.Json = False,
) -> None:
    """Say which term each name means, and what it is a kind of."""
    from scfm.data.cell_labels import terms_of_labels, told_of
    from scfm.data.cell_ontology import CellOntology

    ontology = CellOntology.load()
    found = terms_of_labels(dict.fromkeys(names, 0), ontology)
    for one in found.found:
        if not one.term:
            print(told_of(one, ontology))
            continue
        above = sorted(ontology.ancestors(one.term), key=lambda term: -ontology.depth(term))
        kinds = ", ".join(map(ontology.name, above))
        print(
            f"{one.term}  {ontology.name(one.term)} ({one.how})" + (f" < {kinds}" if kinds else "")
        )
    if json:
        options.print_json(found.to_dict())
