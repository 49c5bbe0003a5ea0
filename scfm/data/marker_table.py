"""Marker genes of cell types, as people keep them: a table that can be read.

in   CSV with columns cell_type and gene (one gene a row), by wish term; YAML or a mapping of cell
     type to genes; a gene with "-" behind it speaks against the type
out  MarkerTable
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from scfm.errors import InputError, MissingFileError

SHIPPED = "human_immune_markers.csv"
WANTED = (
    "Wanted a CSV with columns cell_type and gene, one gene a row, or YAML such as 'B cell: "
    "[MS4A1, CD79A]'."
)


@dataclass(frozen=True)
class Markers:
    """The genes of one type: those its cells express, and those they do not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


@dataclass(frozen=True)
class MarkerTable:
    """Types in order of name, with their genes.

    Attributes
    ----------
    name
        The file, "the shipped human immune markers", or "the markers given".
    types
        Genes by cell type, names as the table has them.
    terms
        Cell Ontology ids, of the types that the table gives one for.
    """

    name: str
    types: Mapping[str, Markers] = field(repr=False)
    terms: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def genes(self) -> list[str]:
        """Every gene once."""
        every = (gene for m in self.types.values() for gene in (*m.positive, *m.negative))
        return list(dict.fromkeys(every))


Given = str | Path | Mapping[str, Sequence[str]] | MarkerTable | None


def marker_table(given: Given = None) -> MarkerTable:
    """The table a user names; None: that of human immune cells which is shipped.

    Raises MissingFileError; InputError for what is no such table, a type without a gene that
    speaks for it, or fewer than two types.
    """
    if isinstance(given, MarkerTable):
        return given
    if given is None:
        with (files("scfm.data") / "resources" / SHIPPED).open(encoding="utf-8") as file:
            return _of_rows(_csv_rows(file, SHIPPED), "the shipped human immune markers")
    if isinstance(given, Mapping):
        return _of_rows(_mapping_rows(given, "the markers given"), "the markers given")
    path = Path(given)
    if not path.is_file():
        raise MissingFileError(f"There is no table of markers {path}. {WANTED}")
    if path.suffix in (".yaml", ".yml"):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not readable YAML: {error}. {WANTED}") from error
        return _of_rows(_mapping_rows(found, str(path)), str(path))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _of_rows(_csv_rows(file, str(path)), str(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not readable CSV: {error}. {WANTED}") from error


def _csv_rows(file: Iterable[str], name: str) -> list[tuple[str, str, str]]:
    table = csv.DictReader(file)
    columns = table.fieldnames or []
    if not {"cell_type", "gene"} <= set(columns):
        raise InputError(f"{name} has columns {', '.join(columns) or '(none)'}. {WANTED}")
    return [(row["cell_type"] or "", row["gene"] or "", row.get("term") or "") for row in table]


def _mapping_rows(found: Any, name: str) -> list[tuple[str, str, str]]:
    if not isinstance(found, Mapping):
        raise InputError(f"{name} holds no mapping of cell type to genes. {WANTED}")
    rows = []
    for label, genes in found.items():
        if isinstance(genes, str) or not isinstance(genes, Iterable):
            raise InputError(f"The genes of '{label}' in {name} are no list: {genes!r}. {WANTED}")
        rows += [(str(label), str(gene), "") for gene in genes]
    return rows


def _of_rows(rows: list[tuple[str, str, str]], name: str) -> MarkerTable:
    genes: dict[str, dict[str, list[str]]] = {}
    terms: dict[str, str] = {}
    for label, gene, term in ((a.strip(), b.strip(), c.strip()) for a, b, c in rows):
        if not label or not gene:
            continue
        side = "negative" if gene.endswith("-") else "positive"
        kept = genes.setdefault(label, {"positive": [], "negative": []})[side]
        gene = gene.removesuffix("-")
        if gene not in kept:
            kept.append(gene)
        if term:
            terms[label] = term
    bare = [label for label, sides in genes.items() if not sides["positive"]]
    if bare:
        raise InputError(f"{name}: no gene speaks for {', '.join(map(repr, bare[:5]))}. {WANTED}")
    if len(genes) < 2:
        raise InputError(
            f"{name} has {len(genes)} cell types; wanted two or more, to choose between. {WANTED}"
        )
    types = {
        label: Markers(tuple(genes[label]["positive"]), tuple(genes[label]["negative"]))
        for label in sorted(genes)
    }
    return MarkerTable(name, types, terms)
