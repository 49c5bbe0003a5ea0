"""A store -> what became of the files in it: a page, some lines, a mapping.

in   a store's folder: its manifest and the reports of its data sets
out  report.html, self-contained, for people; a summary for the terminal and for JSON

All figures come from the store itself, so the page of a store that was added to tells of all of it.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from scfm.data.gene_report import percent
from scfm.data.harmonise import DEFAULT
from scfm.data.manifest import DatasetEntry, Manifest
from scfm.data.store import Store
from scfm.data.write import atomic_path
from scfm.evaluate.wording import DASH, plain, sentence

REPORT = "report.html"
LOW_COVERAGE = 0.8  # share of the counts below which a file is worth a look
MANY_MISSING = 0.1  # share of the cells without a value from which a column is worth a look
SHOWN = 12  # names in a list before "and more"
ORTHOLOGS = "--set input.orthologs=true"  # what `scfm pretrain` wants for mouse cells

DROPPED = {  # reason in the store -> heading
    "empty": "No count at all",
    "min_genes": "Too few genes",
    "min_counts": "Too few counts",
    "max_mito": "Mitochondrial",
    "duplicate": "Duplicate",
}


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a store's folder. Raises StoreError, OutputError."""
    store = Store(folder)
    reports = read_reports(store)
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("scfm.tools"), jinja2.PackageLoader("scfm.evaluate")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "percent": percent, "sentence": sentence, "size": size}
    manifest = store.manifest
    runs = manifest.settings.get("prepare", [])
    page = environment.get_template("store.html.j2").render(
        title=Path(folder).name,
        found=summarise(store),
        datasets=list(zip(manifest.datasets, reports, strict=True)),
        reasons={
            reason: heading
            for reason, heading in DROPPED.items()
            if any(reason in entry.dropped for entry in manifest.datasets)
        },
        obs=obs_rows(manifest, reports),
        not_kept=_some(Counter(name for report in reports for name in report["obs_not_kept"])),
        duplicates=[
            (entry.name, other, n)
            for entry, report in zip(manifest.datasets, reports, strict=True)
            for other, n in report["duplicates_of"].items()
        ],
        keeps_duplicates=all(run["duplicates"] == "keep" for run in runs),
        refused={name: why for run in runs for name, why in run.get("refused", {}).items()},
        settings=[settings_shown(run) for run in runs],
        manifest=manifest,
        notes=notes(manifest, reports),
    )
    out = Path(folder) / REPORT
    with atomic_path(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return out


def read_reports(store: Store) -> list[dict[str, Any]]:
    """What `scfm prepare` wrote of each data set, in order."""
    entries = store.manifest.datasets
    return [json.loads(store.folder.read_whole(entry.report_file)) for entry in entries]


def summarise(store: Store) -> dict[str, Any]:
    """A store in numbers, JSON-ready."""
    manifest = store.manifest
    dropped: Counter[str] = Counter()
    for entry in manifest.datasets:
        dropped.update(entry.dropped)
    return {
        "kind": "store",
        "path": store.name,
        "n_cells": manifest.n_cells,
        "n_read": sum(entry.n_read for entry in manifest.datasets),
        "dropped": dict(dropped),
        "n_genes": manifest.n_genes,
        "n_values": manifest.n_values,
        "n_bytes": manifest.n_bytes,
        "bytes_a_cell": round(manifest.n_bytes / max(manifest.n_cells, 1), 1),
        "n_shards": len(manifest.shards),
        "block_cells": manifest.block_cells,
        "sequence": manifest.sequence,
        "manifest_sha256": manifest.hash,
        "made_by": manifest.made_by,
        "species": dict(_cells_by(manifest.datasets, "species")),
        "obs": {
            name: {"kind": column.kind, "n_categories": len(column.categories)}
            for name, column in manifest.obs.items()
        },
        "datasets": [
            {
                "name": entry.name,
                "sha256": entry.sha256,
                "species": entry.species,
                "counts_from": entry.counts_from,
                "n_read": entry.n_read,
                "n_cells": entry.n_cells,
                "dropped": entry.dropped,
            }
            for entry in manifest.datasets
        ],
    }


def in_words(found: Mapping[str, Any]) -> str:
    """The mapping of ``summarise`` as some lines."""
    species = ", ".join(f"{n:,} {name}" for name, n in found["species"].items())
    lines = [
        f"{found['path']}: {found['n_cells']:,} cells ({species}) of "
        f"{_several(len(found['datasets']), 'file')}, {found['n_genes']:,} genes",
        f"{size(found['n_bytes'])} in {_several(found['n_shards'], 'shard')}, "
        f"{found['bytes_a_cell']:,.0f} bytes a cell; manifest {found['sequence']}, sha256 "
        f"{found['manifest_sha256'][:12]}",
        _dropped_in_words(found),
        f"obs: {', '.join(found['obs']) or 'no columns'}",
    ]
    width = max((len(entry["name"]) for entry in found["datasets"][:SHOWN]), default=0)
    lines += [
        f"  {entry['name']:<{width}}  {entry['n_cells']:>9,} of {entry['n_read']:,} cells, "
        f"{entry['species']}, {entry['counts_from']}, sha256 {entry['sha256'][:12]}"
        for entry in found["datasets"][:SHOWN]
    ]
    if len(found["datasets"]) > SHOWN:
        lines.append(f"  and {len(found['datasets']) - SHOWN:,} more: report.html, or --json")
    return "\n".join(lines)


def obs_rows(manifest: Manifest, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a column of the cells: its kind and values, where it is from, what is missing."""
    rows = []
    for name, column in manifest.obs.items():
        sources = Counter(
            said["from"]
            for report in reports
            if (said := report["obs"].get(name)) and said["from"] is not None
        )
        missing = _missing(name, manifest, reports)
        rows.append(
            {
                "name": name,
                "kind": column.kind,
                "n_categories": len(column.categories),
                "values": _some(Counter(dict.fromkeys(column.categories, 1))),
                "sources": dict(sources.most_common()),
                "n_files": sum(sources.values()),
                "missing": missing,
                "share": missing / max(sum(entry.n_read for entry in manifest.datasets), 1),
            }
        )
    return rows


def notes(manifest: Manifest, reports: list[dict[str, Any]]) -> list[str]:
    """What a person should know before training on the store, the gravest first."""
    found = []
    low = [
        (entry.name, report["genes"]["counts_covered"])
        for entry, report in zip(manifest.datasets, reports, strict=True)
        if report["genes"].get("counts_covered", 1) < LOW_COVERAGE
    ]
    for name, share in low[:SHOWN]:
        found.append(
            f"Only {percent(share)} of the counts of {name} fall on genes of the default "
            "vocabulary."
        )
    species = _cells_by(manifest.datasets, "species")
    if "mouse" in species:
        listed = " and ".join(f"{n:,} {name} cells" for name, n in species.items())
        found.append(
            f"The store holds {listed}. A human model reads mouse cells through one-to-one "
            f"orthologs, if it is told to ({ORTHOLOGS} for scfm pretrain, --orthologs for the "
            "other commands)."
        )
    lacking = [
        f"{row['name']} ({percent(row['share'])})"
        for row in obs_rows(manifest, reports)
        if row["share"] > MANY_MISSING
    ]
    if lacking:
        found.append(
            f"Columns that many cells lack: {', '.join(lacking)}. A file that has them under "
            "another name wants a mapping file (--mapping)."
        )
    if "donor_id" not in manifest.obs:
        found.append(
            "No column tells donors apart: validation by donor needs one. Name it in a mapping "
            "file (--mapping)."
        )
    for target, values in _values_not_found(manifest).items():
        more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
        found.append(
            f"The mapping's values of {target} that no file has: "
            f"{', '.join(map(repr, values[:SHOWN]))}{more}."
        )
    emptied = [entry.name for entry in manifest.datasets if entry.n_cells == 0]
    return found + [f"No cell of {name} is left." for name in emptied]


def settings_shown(run: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one conversion as a reader is shown them."""
    quality, mapping = run["quality"], run["mapping"]
    is_default = mapping == json.loads(json.dumps(DEFAULT.to_dict()))
    columns = "CELLxGENE's standard columns" if is_default else ", ".join(mapping["columns"])
    return {
        "Files added": len(run["added"]),
        "Least genes a cell": quality["min_genes"] or DASH,
        "Least counts a cell": quality["min_counts"] or DASH,
        "Largest mitochondrial share": quality["max_mito"] if quality["max_mito"] < 1 else DASH,
        "Duplicate cells": "dropped" if run["duplicates"] == "drop" else "kept",
        "Least counts on known genes": percent(run["minimum_coverage"]),
        "Columns of the cells": ", ".join([columns, *run["obs"]]),
        "Species": run["species"],
        "Counts": run["layer"] or "found in each file",
        "Seed of the shuffle": str(run["seed"]),
        "Cells a shard": run["shard_cells"],
    }


def size(n_bytes: float) -> str:
    """Bytes in the unit that suits, powers of ten."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:,.0f} {unit}" if unit == "bytes" else f"{n_bytes:,.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} TB"


def _several(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"


def _missing(name: str, manifest: Manifest, reports: list[dict[str, Any]]) -> int:
    """Cells, of those read, without a value: a file that knows no such column lacks it for all."""
    return sum(
        report["obs"][name]["missing"] if name in report["obs"] else entry.n_read
        for entry, report in zip(manifest.datasets, reports, strict=True)
    )


def _values_not_found(manifest: Manifest) -> dict[str, list[str]]:
    """Values that mappings rename and that no conversion met: one that a single file has is met."""
    absent: dict[str, dict[str, bool]] = {}
    for run in manifest.settings.get("prepare", []):
        not_found = run.get("values_not_found", {})
        for target, renames in run["mapping"]["values"].items():
            for value in renames:
                was = absent.setdefault(target, {}).get(value, True)
                absent[target][value] = was and value in not_found.get(target, ())
    listed = {
        target: sorted(value for value, is_absent in of_target.items() if is_absent)
        for target, of_target in absent.items()
    }
    return {target: values for target, values in listed.items() if values}


def _dropped_in_words(found: Mapping[str, Any]) -> str:
    n_dropped = sum(found["dropped"].values())
    if not n_dropped:
        return f"all {found['n_read']:,} cells read are kept"
    by = ", ".join(f"{n:,} {DROPPED[reason].lower()}" for reason, n in found["dropped"].items())
    return f"dropped {n_dropped:,} of {found['n_read']:,} cells read: {by}"


def _cells_by(datasets: tuple[DatasetEntry, ...], what: str) -> Counter[str]:
    cells: Counter[str] = Counter()
    for entry in datasets:
        cells[getattr(entry, what)] += entry.n_cells
    return Counter(dict(cells.most_common()))


def _some(counted: Counter[str]) -> str:
    """The most common names of many."""
    names = [name for name, _ in counted.most_common(SHOWN)]
    more = f" and {len(counted) - SHOWN:,} more" if len(counted) > SHOWN else ""
    return ", ".join(names) + more
