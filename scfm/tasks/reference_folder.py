"""A reference's folder: one format, checked by hashes, of which nothing can run.

in   a Reference, or a folder holding
         reference.json     classes, settings, calibration, provenance; hashes of all the rest
         cells.safetensors  embedding, depth and label of each cell; the fitted frame, prototypes
         cells.parquet      the cells' names, rows and donors
         genes.txt          the model's genes that the reference measures
out  the folder, which appears whole or not at all; or the Reference

Embeddings are kept in float32, as the model gives them: half the size in float16 would move cosines
by 1e-4, and a saved reference answer other than its own cells.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from scfm.data.fingerprint import sha256
from scfm.data.write import atomic_folder, set_usual_mode
from scfm.tasks.directions import DepthSlope, Frame, unit_vectors
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.prototypes import PrototypeClassifier
from scfm.tasks.reference import Reference
from scfm.tasks.reference_index import (
    CELLS,
    FILES,
    FORMAT,
    GENES,
    INDEX,
    TENSORS,
    VERSION,
    damaged,
    own_hash,
    read_index,
)


def save_reference(reference: Reference, out: str | Path) -> None:
    """Write the folder; an earlier reference there is replaced, nothing else is. OutputError."""
    voters = reference.voters
    tensors = {
        "embedding": np.ascontiguousarray(reference.embedding, dtype=np.float32),
        "depth": np.ascontiguousarray(reference.depth),
        "code": voters.codes.astype(np.int64),
        "frame_mean": voters.frame.mean,
        "frame_scale": voters.frame.scale,
        "prototypes": reference.prototypes.prototypes,
    }
    if voters.depth_slope is not None:
        tensors["depth_slope"] = voters.depth_slope.slope
    with atomic_folder(out, marker=INDEX) as folder:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / TENSORS)
        set_usual_mode(folder / TENSORS)
        reference.cells.to_parquet(folder / CELLS, index=False)
        (folder / GENES).write_text("".join(f"{g}\n" for g in reference.genes), encoding="utf-8")
        index = {
            "format": FORMAT,
            "version": VERSION,
            "classes": list(reference.classes),
            "terms": dict(reference.terms),
            "settings": asdict(voters.config),
            "min_similarity": voters.min_similarity,
            "min_similarity_of_prototypes": reference.prototypes.min_similarity,
            "mean_depth": voters.depth_slope.mean_depth if voters.depth_slope else None,
            "left_out": dict(voters.dropped),
            "calibrations": {way: asdict(found) for way, found in reference.calibrations.items()},
            "facts": dict(reference.facts),
            "sha256": {name: sha256(folder / name) for name in FILES},
        }
        text = json.dumps({**index, "own_sha256": own_hash(index)}, indent=2, allow_nan=False)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def load_reference(source: str | Path) -> Reference:
    """Read a folder that `save_reference` wrote. Nothing in it is executed.

    Raises DamagedReferenceError where a file is missing, truncated or altered, NewerFormatError
    for one written by a newer scfm.
    """
    folder = Path(source)
    index = read_index(folder)
    try:
        return _assembled(folder, index)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise damaged(folder, f"cannot be read ({type(error).__name__}: {error})") from error


def _assembled(folder: Path, index: dict[str, Any]) -> Reference:
    tensors = load_file(folder / TENSORS)
    embedding, depth = tensors["embedding"], tensors["depth"]
    slope = None
    moved: np.ndarray = embedding
    if index["mean_depth"] is not None:
        slope = DepthSlope(index["mean_depth"], tensors["depth_slope"])
        moved = slope.removed(embedding, depth)
    frame = Frame(tensors["frame_mean"], tensors["frame_scale"])
    directions, _ = unit_vectors(frame.apply(moved), "the reference")
    voters = NeighbourClassifier(
        config=NeighbourConfig(**index["settings"]),
        classes=tuple(index["classes"]),
        depth_slope=slope,
        frame=frame,
        directions=directions,
        codes=tensors["code"],
        rows=np.arange(len(directions)),
        min_similarity=index["min_similarity"],
        dropped=index["left_out"],
    )
    least = index["min_similarity_of_prototypes"]
    return Reference(
        voters=voters,
        prototypes=PrototypeClassifier(voters, tensors["prototypes"], least),
        embedding=embedding,
        depth=depth,
        cells=pd.read_parquet(folder / CELLS),
        calibrations={
            way: ProbabilityCalibration(**found) for way, found in index["calibrations"].items()
        },
        terms=index["terms"],
        genes=tuple((folder / GENES).read_text(encoding="utf-8").split()),
        facts=index["facts"],
        folder=folder,
    )
