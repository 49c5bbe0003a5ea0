"""The Cell Ontology -> the small table in scfm/data/resources. The same list gives the same bytes.

in   CL-ontology-v*.json.zst, as CELLxGENE's ontology guide has it
     (where it is from: scfm/data/resources/SOURCES.md)
out  cell_ontology.tsv.xz: id, name, direct parents, exact synonyms; of retired terms replaced_by

    python scripts/build_cell_ontology.py CL-ontology-v2026-03-26.json.zst
"""

import argparse
import json
import lzma
import re
from pathlib import Path
from typing import Any

import zstandard

RESOURCES = Path(__file__).resolve().parents[1] / "scfm" / "data" / "resources"
COLUMNS = ("id", "name", "parents", "synonyms", "replaced_by")
ROOT = "CL:0000000"
RELEASE = re.compile(r"v(\d{4}-\d{2}-\d{2})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ontology", type=Path, help="CL-ontology-v*.json.zst")
    parser.add_argument("--out", type=Path, default=RESOURCES / "cell_ontology.tsv.xz")
    arguments = parser.parse_args()
    release = RELEASE.search(arguments.ontology.name)
    assert release, f"{arguments.ontology.name} does not say its release (v2026-03-26)"
    rows = table(read(arguments.ontology))
    write(rows, release[1], arguments.out)
    print(f"{len(rows):,} terms, {arguments.out.stat().st_size:,} bytes")


def read(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as packed:
        return json.load(zstandard.ZstdDecompressor().stream_reader(packed))


def table(terms: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a term, by id. A retired term keeps its name, and what replaces it in CL."""
    living = {key: term for key, term in terms.items() if not term["deprecated"]}
    parents = {key: direct_parents(term) for key, term in living.items()}
    cells = {key for key in living if key == ROOT or parents[key]}
    for key in cells:
        assert lineage(key, parents) == set(living[key]["ancestors"]), key
    rows = []
    for key in sorted(terms):
        term = terms[key]
        if key in cells:
            names = sorted(set(term.get("synonyms", ())) - {term["label"]})
            rows.append((key, term["label"], "|".join(parents[key]), "|".join(names), ""))
        elif term["deprecated"]:
            name = re.sub(r"^obsolete[ :]*", "", term["label"], flags=re.IGNORECASE)
            rows.append((key, name, "", "", successor(key, terms, cells)))
    return rows


def successor(key: str, terms: dict[str, dict[str, Any]], cells: set[str]) -> str:
    """The term in use that stands for a retired one, over any number of steps; "" for none."""
    seen: set[str] = set()
    while key in terms and key not in cells and key not in seen:
        seen.add(key)
        key = terms[key].get("replaced_by", "")
    return key if key in cells else ""


def direct_parents(term: dict[str, Any]) -> list[str]:
    """The ancestors one step up.

    Eight terms have an ancestor and no parent (a cytoplasm, a nucleus): their way to "cell" leads
    through other ontologies, and they are no cells.
    """
    return sorted(key for key, steps in term["ancestors"].items() if steps == 1)


def lineage(key: str, parents: dict[str, list[str]]) -> set[str]:
    """All that is above a term, by its direct parents alone."""
    above: set[str] = set()
    for parent in parents[key]:
        above |= {parent, *lineage(parent, parents)}
    return above


def write(rows: list[tuple[str, ...]], release: str, path: Path) -> None:
    """xz, which knows no time and no file name, so that equal tables are equal files."""
    lines = [f"# Cell Ontology {release}, CC BY 4.0; changed: see SOURCES.md", "\t".join(COLUMNS)]
    for row in rows:
        assert not any(mark in cell for cell in row for mark in "\t\n"), row
        lines.append("\t".join(row))
    packed = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    path.write_bytes(packed)


if __name__ == "__main__":
    main()
