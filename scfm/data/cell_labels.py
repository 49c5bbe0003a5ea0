"""A data set's cell type labels -> terms of the Cell Ontology, with a report to check and mend.

in   labels with how many cells bear each; by wish a CSV of label and term
out  LabelTerms: what each label means and how it was found; the CSV, to edit and give again
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from scfm.data.cell_ontology import CellOntology, FoundTerm, How
from scfm.data.write import atomic_path
from scfm.errors import LabelError, MissingFileError

NO_LABEL = frozenset({"", "na", "nan", "none", "unknown", "unassigned", "unclassified"})
COLUMNS = ("label", "term", "name", "how", "cells", "near")
HOWS: tuple[How, ...] = get_args(How)
SHOWN = 10


@dataclass(frozen=True)
class LabelTerms:
    """What the labels of some cells mean.

    Attributes
    ----------
    found
        One a label, in the labels' order.
    n_cells
        That bear each label.
    n_without
        Cells without a label, or of one that says so ("NA", "unknown").
    """

    found: tuple[FoundTerm, ...]
    n_cells: tuple[int, ...]
    n_without: int
    ontology: CellOntology = field(repr=False)

    @cached_property
    def terms(self) -> dict[str, str]:
        """The term of each label that has one."""
        return {found.text: found.term for found in self.found if found.term}

    @property
    def missing(self) -> tuple[FoundTerm, ...]:
        """Labels without a term, ambiguous ones among them."""
        return tuple(found for found in self.found if not found.term)

    def labels_by(self, how: How) -> list[str]:
        return [found.text for found in self.found if found.how == how]

    def __str__(self) -> str:
        by_how = Counter(found.how for found in self.found)
        cells = Counter[str]()
        for found, n in zip(self.found, self.n_cells, strict=True):
            cells[found.how] += n
        told = [f"{by_how[how]:,} {how} ({cells[how]:,} cells)" for how in HOWS if by_how[how]]
        if self.n_without:
            told.append(f"{self.n_without:,} cells without a label")
        lines = [f"{len(self.found):,} labels, Cell Ontology {self.ontology.version}"]
        lines[0] += f": {', '.join(told)}" if told else ""
        lines += [f"  {told_of(found, self.ontology)}" for found in self.missing[:SHOWN]]
        if len(self.missing) > SHOWN:
            lines.append(f"  and {len(self.missing) - SHOWN:,} more")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ontology_version": self.ontology.version,
            "n_without_label": self.n_without,
            "labels": [dict(zip(COLUMNS, row, strict=True)) for row in self._rows()],
        }

    def write(self, out: str | Path) -> Path:
        """Write the CSV, whole or not at all; labels without a term last. Raises OutputError."""
        out = Path(out)
        rows = sorted(self._rows(), key=lambda row: not row[1])
        with (
            atomic_path(out) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(rows)
        return out

    def _rows(self) -> list[tuple[str | int, ...]]:
        name = self.ontology.name
        return [
            (
                *(f.text, f.term, name(f.term) if f.term else "", f.how, n),
                "; ".join(f"{term} {name(term)}" for term in f.near),
            )
            for f, n in zip(self.found, self.n_cells, strict=True)
        ]


def terms_of_labels(
    n_cells: Mapping[str, int],
    ontology: CellOntology,
    mapping: Mapping[str, str] | None = None,
    *,
    n_without: int = 0,
) -> LabelTerms:
    """Find the term of every label; what ``mapping`` (label to term id) says goes before all else.

    Labels that say there is none ("NA") are counted with ``n_without`` unless they are mapped.
    """
    mapping, found, kept = mapping or {}, [], []
    for label, n in n_cells.items():
        if label in mapping:
            found.append(FoundTerm(label, mapping[label], "mapped"))
        elif label.strip().casefold() in NO_LABEL:
            n_without += n
            continue
        else:
            found.append(ontology.find(label))
        kept.append(n)
    return LabelTerms(tuple(found), tuple(kept), n_without, ontology)


def refuse_none_found(labels: LabelTerms, where: str) -> None:
    """Raise LabelError where there are labels and not one has a term."""
    if labels.terms or not labels.found:
        return
    texts = [found.text for found in labels.found]
    if all(text.replace(".", "", 1).isdigit() for text in texts):
        what = "are numbers, the codes of clusters or categories"
        remedy = "Name a column that holds cell types"
    else:
        told = "; ".join(told_of(found, labels.ontology) for found in labels.found[:3])
        what = f"is known to the Cell Ontology {labels.ontology.version} ({told})"
        remedy = "Name another column"
    verb = f"All {len(texts):,}" if "numbers" in what else f"None of the {len(texts):,}"
    raise LabelError(
        f"{verb} labels of {where} {what}. {remedy}, or say what they mean in a CSV of label and "
        "term: scfm ontology map DATA --label COLUMN --out mapping.csv writes one to fill in; then "
        "give it with mapping= (--mapping)."
    )


def told_of(found: FoundTerm, ontology: CellOntology) -> str:
    """A label without a term in words, with the terms it may mean."""
    near = ", ".join(f"{ontology.name(term)} ({term})" for term in found.near)
    if found.how == "ambiguous":
        return f"'{found.text}' may mean {near}"
    return f"'{found.text}' is not found" + (f"; nearest: {near}" if near else "")


def read_mapping(path: str | Path, ontology: CellOntology) -> dict[str, str]:
    """A CSV with columns label and term (an id, or a term's name) -> label to term id.

    Other columns are left alone; rows without a term say nothing. Raises LabelError for columns
    that are absent, a term that is none, a label with two terms; MissingFileError.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"There is no file {path}. scfm ontology map DATA --label COLUMN --out {path} writes "
            "one to edit."
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        columns = table.fieldnames or []
        if not {"label", "term"} <= set(columns):
            raise LabelError(
                f"{path} has columns {', '.join(columns) or '(none)'}; wanted label and term."
            )
        rows = [(table.line_num, row["label"] or "", row["term"] or "") for row in table]
    return resolved(rows, ontology, str(path))


def given_mapping(
    mapping: "str | Path | Mapping[str, str] | None", ontology: CellOntology
) -> dict[str, str]:
    """A mapping as the user gave it: a CSV, or label to id or name. Raises LabelError."""
    if mapping is None:
        return {}
    if isinstance(mapping, (str, Path)):
        return read_mapping(mapping, ontology)
    rows = [(n, label, term) for n, (label, term) in enumerate(mapping.items(), start=1)]
    return resolved(rows, ontology, "the mapping")


def resolved(
    rows: Sequence[tuple[int, str, str]], ontology: CellOntology, where: str
) -> dict[str, str]:
    """Rows of number, label and term, the terms as ids."""
    mapping: dict[str, str] = {}
    for number, label, text in rows:
        if not text.strip():
            continue
        found = ontology.find(text)
        if not found.term:
            raise LabelError(
                f"{where}, line {number}: {told_of(found, ontology)}. Wanted for '{label}' the id "
                f"of a term in use in the Cell Ontology {ontology.version}, as CL:0000084."
            )
        if mapping.setdefault(label, found.term) != found.term:
            raise LabelError(
                f"{where}, line {number}: '{label}' is mapped to {mapping[label]} and to "
                f"{found.term}. Keep one."
            )
    return mapping
