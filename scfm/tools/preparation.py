"""What `scfm prepare` does: convert, check, give back. Loads no torch.

in   paths, settings
out  a JSON-ready mapping of what came of it, and the same in words
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scfm.config import from_mapping
from scfm.data import harmonise
from scfm.data.prepare import prepare
from scfm.data.prepare_plan import OnProgress, PrepareConfig
from scfm.data.prepare_state import said_of_unfinished
from scfm.data.quality import QualityConfig
from scfm.data.store import Store, is_store
from scfm.errors import ConfigError, MissingFileError, StoreError
from scfm.tokens.vocab import GeneVocab
from scfm.tools import prepare_report


def prepare_files(
    inputs: Sequence[str],
    out: Path | None,
    settings: Mapping[str, Any],
    *,
    obs: Sequence[str] = (),
    mapping: Path | None = None,
    skip_refused: bool = False,
    restart: bool = False,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Convert files into the store ``out`` and write its report.

    ``settings`` are those of PrepareConfig. Raises as scfm.data.prepare.prepare.
    """
    if out is None:
        raise ConfigError("Say where the store goes: scfm prepare IN... --out STORE.")
    quality = from_mapping(QualityConfig, settings["quality"], where="options")
    chosen = harmonise.load_mapping(mapping) if mapping else harmonise.DEFAULT
    try:
        config = PrepareConfig(
            **{**settings, "quality": quality, "mapping": chosen, "obs": tuple(obs)}
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    vocab = GeneVocab.human()
    prepared = prepare(
        inputs,
        out,
        config,
        symbols=vocab.symbols,
        ensembl_ids=vocab.ensembl_ids,
        skip_refused=skip_refused,
        restart=restart,
        on_progress=on_progress,
    )
    report = prepare_report.write_report(out)
    return {
        **prepare_report.summarise(Store(out)),
        "added": prepared.added,
        "refused": prepared.refused,
        "known": prepared.known,
        "report": str(report),
        "notes": prepare_report.notes(*_with_reports(out)),
    }


def prepared_in_words(found: Mapping[str, Any]) -> str:
    """What came of a conversion, in a few lines."""
    lines = [prepare_report.in_words(found)]
    lines += [f"left out {path}: {reason}" for path, reason in found["refused"].items()]
    lines += [f"left out {path}: its content is in already, as {name}"
              for path, name in found["known"].items()]  # fmt: skip
    if not found["added"]:
        lines.append("Nothing was added: the store is as it was.")
    lines += [f"note: {note}" for note in found["notes"]]
    lines.append(f"Report: {found['report']}")
    orthologs = f" {prepare_report.ORTHOLOGS}" if "mouse" in found["species"] else ""
    lines.append(f"Train on it: scfm pretrain --data {found['path']} --out RUN{orthologs}")
    return "\n".join(lines)


def verify(path: str, *, sources: bool = False) -> dict[str, Any]:
    """Check all files of a store; with ``sources`` also whether those it was made of are the same.

    Raises StoreError that lists what is wrong.
    """
    store = _opened(path)
    checked = list(store.verify())
    problems = [f"{file}: {problem}" for file, problem in checked if problem]
    if sources:
        problems += _changed_sources(store)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise StoreError(
            f"{path}: {len(problems):,} of {len(checked):,} files checked are not as they were "
            f"written.\n{listed}\nCopy the store again, or make it anew from its sources."
        )
    return {
        "kind": "verified",
        "path": str(path),
        "n_files": len(checked),
        "n_cells": store.n_cells,
        "n_sources": len(store.manifest.datasets) if sources else 0,
        "manifest_sha256": store.manifest.hash,
    }


def verified_in_words(found: Mapping[str, Any]) -> str:
    """The mapping of ``verify`` as a line."""
    also = f"; {found['n_sources']:,} source files unchanged" if found["n_sources"] else ""
    return (
        f"{found['path']}: all {found['n_files']:,} files are as they were written, every block of "
        f"{found['n_cells']:,} cells decodes{also}."
    )


def export_h5ad(path: str, out: Path, *, dataset: str | None = None) -> dict[str, Any]:
    """Write a store, or one of its data sets, as h5ad. Raises as scfm.data.export.export."""
    from scfm.data.export import export

    written = export(_opened(path), out, dataset=dataset)
    return {"out": str(out), "n_cells": written.n_cells, "n_genes": len(written.var)}


def _opened(path: str) -> Store:
    if is_store(path):
        return Store(path)
    if said := said_of_unfinished(path):
        raise MissingFileError(f"{path} {said}")
    raise MissingFileError(f"{path} is no store. Make one: scfm prepare IN... --out STORE.")


def _changed_sources(store: Store) -> Iterator[str]:
    from scfm.data.read import open_counts

    for entry in store.manifest.datasets:
        try:
            with open_counts(entry.path, keep_empty=True, backed=True) as source:
                found = source.fingerprint()
        except MissingFileError:
            yield f"{entry.path}: the source of {entry.name} is no longer there"
            continue
        if found != entry.sha256:
            yield (
                f"{entry.path}: the source of {entry.name} has changed: sha256 was "
                f"{entry.sha256[:12]}..., is {found[:12]}..."
            )


def _with_reports(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    store = Store(path)
    return store.manifest, prepare_report.read_reports(store)
