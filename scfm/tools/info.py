"""What is in a model folder, a reference, a store or a file of cells. Loads no torch.

in   a path
out  a JSON-ready mapping, and the same in words
"""

import json
import math
from pathlib import Path
from typing import Any

from scfm.data.genes import GeneReport
from scfm.data.prepare_state import said_of_unfinished
from scfm.data.store import Store, is_store
from scfm.errors import MissingFileError
from scfm.model.folder import CONFIG, VOCAB, WEIGHTS, find_model, read_provenance
from scfm.tasks.reference_index import TENSORS, is_reference, read_index
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.vocab import GeneVocab
from scfm.tools import prepare_report
from scfm.tools.info_heads import describe_head, head_folder, head_in_words


def describe(
    path: str | Path, *, layer: str | None = None, species: Any = "auto", orthologs: bool = False
) -> dict[str, Any]:
    """A model's, reference's or store's sizes and provenance, or a file's cells, counts and genes.

    Coverage is against the default human vocabulary, is shown whatever it is and refuses nothing.
    """
    folder = Path(path)
    if (head := head_folder(folder)) is not None:
        return describe_head(head, _shapes)
    if (folder / CONFIG).exists() or (folder / "model" / CONFIG).exists():
        return describe_model(folder)
    if is_reference(folder):
        return describe_reference(folder)
    if is_store(path):
        return prepare_report.summarise(Store(path))
    if said := said_of_unfinished(path):
        raise MissingFileError(f"{path} {said}")
    config = InputConfig(layer=layer, species=species, orthologs=orthologs, minimum_coverage=0.0)
    member, report = open_input(path, GeneVocab.human(), config, backed=True)
    return {
        "kind": "cells",
        "path": str(path),
        "n_cells": member.source.n_cells,
        "n_columns": len(member.source.var),
        "counts_from": member.source.counts_from,
        "obs": [str(column) for column in member.source.obs.columns],
        "genes": report.to_dict(),
    }


LABELS_SHOWN = 12
BUFFERS = (".directions",)  # drawn, not learned: the Performer's random features


def describe_model(path: Path) -> dict[str, Any]:
    """Sizes, parameters, vocabulary and provenance; the weights are checked against their hash."""
    folder = find_model(path)
    provenance, vocab = read_provenance(folder), GeneVocab.load(folder / VOCAB)
    config = json.loads((folder / CONFIG).read_text())
    shapes = _shapes(folder / WEIGHTS)
    return {
        "kind": "model",
        "family": config["model_type"],
        "path": str(folder),
        "architecture": config["architecture"],
        "n_parameters": sum(
            math.prod(shape) for name, shape in shapes.items() if not name.endswith(BUFFERS)
        ),
        "n_genes": vocab.n_genes,
        "vocab_hash": vocab.hash,
        "max_genes": config["max_genes"],
        "classifier": config.get("classifier"),
        "provenance": provenance,
    }


def describe_reference(folder: Path) -> dict[str, Any]:
    """Labels, cells, calibration and provenance; all files are checked against their hashes."""
    index = read_index(folder)
    n_cells, d = _shapes(folder / TENSORS)["embedding"]
    return {
        "kind": "reference",
        "path": str(folder),
        "version": index["version"],
        "n_cells": n_cells,
        "n_dimensions": d,
        "classes": index["classes"],
        "terms": index["terms"],
        "left_out": {why: n for why, n in index["left_out"].items() if n},
        "settings": index["settings"],
        "calibrations": index["calibrations"],
        "provenance": index["facts"],
    }


def in_words(found: dict[str, Any]) -> str:
    """The mapping of ``describe`` as a few lines for a person."""
    if found["kind"] == "store":
        return prepare_report.in_words(found)
    if found["kind"] == "reference":
        return _reference_in_words(found)
    if found["kind"] == "head":
        return head_in_words(found)
    return _model_in_words(found) if found["kind"] == "model" else _cells_in_words(found)


def _reference_in_words(found: dict[str, Any]) -> str:
    made, n_left_out = found["provenance"], sum(found["left_out"].values())
    labels = [f"{name} ({found['terms'].get(name, 'no term')})" for name in found["classes"]]
    origin = f", sha256 {made['data_sha256'][:12]}" if made["data_sha256"] else ""
    lines = [
        f"{found['path']}: reference, {found['n_cells']:,} cells x {found['n_dimensions']:,} "
        f"dimensions, {len(labels)} labels",
        f"labels of obs['{made['label_key']}']: {', '.join(labels)}",
        f"from {made['data']} ({made['species']}, counts in {made['counts_from']}){origin}",
        f"{n_left_out:,} cells left out"
        + "".join(f"; {n:,} {why}" for why, n in found["left_out"].items()),
        f"for the {made['model_family']} model of weights sha256 {made['weights_sha256'][:12]}, "
        f"pooling {made['pooling']}, depth {made['target_depth']}",
    ]
    for way, calibration in found["calibrations"].items():
        facts = calibration["facts"]
        trust = (
            f"calibration error {facts['calibration_error']:.3f}, {facts['accuracy']:.1%} of "
            f"{facts['n_cells']:,} cells right, by {facts['held_out']} held out"
            if facts
            else "not calibrated"
        )
        lines.append(f"{way}: unknown below {calibration['threshold']:.3g}; {trust}")
    return "\n".join([*lines, f"made {made['made']} by scfm {made['scfm_version']}, as saved"])


def _cells_in_words(found: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{found['path']}: {found['n_cells']:,} cells x {found['n_columns']:,} columns",
            f"raw counts in {found['counts_from']}",
            f"obs: {', '.join(found['obs']) or 'no columns'}",
            str(GeneReport.from_dict(found["genes"])),
        ]
    )


def _model_in_words(found: dict[str, Any]) -> str:
    made, sizes = found["provenance"], found["architecture"]
    lines = [
        f"{found['path']}: {found['family']} model, {found['n_parameters']:,} parameters",
        f"width {sizes['d_model']}, {sizes['n_layers']} layers, {sizes['n_heads']} heads",
        *_decoder_in_words(sizes),
        f"{found['n_genes']:,} genes, vocabulary {found['vocab_hash'][:12]}",
        f"weights sha256 {made['weights_sha256'][:12]}, as saved",
        f"made by {made.get('made_by', 'unknown')}" + _steps_in_words(made),
        *_classifier_in_words(found.get("classifier"), made),
        *_origin_in_words(made),
    ]
    data = made.get("data", {})
    if data:
        lines.append(f"trained on {data['n_cells'] - data['n_held_out']:,} cells of:")
        sources = [*data.get("files", []), *data.get("stores", [])]
        lines += [f"  {name}  sha256 {digest[:12]}" for name, digest in sources]
    return "\n".join(lines)


def _decoder_in_words(sizes: dict[str, Any]) -> list[str]:
    if "d_decoder" not in sizes:  # the default family's has the encoder's width
        return []
    heads = f"{sizes['n_decoder_heads']} heads of {sizes['d_head']}"
    return [f"decoder width {sizes['d_decoder']}, {sizes['n_decoder_layers']} layers, {heads}"]


def _steps_in_words(made: dict[str, Any]) -> str:
    is_other = "converted_from" in made or "finetuned" in made
    return "" if is_other else f", {made.get('steps', 0):,} steps"


def _classifier_in_words(spec: dict[str, Any] | None, made: dict[str, Any]) -> list[str]:
    """Of a fine-tuned model: which types it says, and how well it did on held-out cells."""
    if spec is None:
        return []
    labels = spec["labels"]
    shown = ", ".join(labels[:LABELS_SHOWN]) + (" ..." if len(labels) > LABELS_SHOWN else "")
    scores = made.get("finetuned", {}).get("verdict")
    return [f"says {len(labels)} types: {shown}", *([scores] if scores else [])]


def _origin_in_words(made: dict[str, Any]) -> list[str]:
    """Of weights that others trained: the file, and on what terms they may be used."""
    origin = made.get("converted_from")
    if origin is None:
        return []
    key = f", key {origin['key']}" if "key" in origin else ""
    file = f"{origin['file']}{key}, sha256 {origin['sha256'][:12]}"
    return [f"from {file}", *made["sources"], made["licence"]]


def _shapes(weights: Path) -> dict[str, list[int]]:
    """Tensor shapes from a safetensors header, without reading a tensor."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
