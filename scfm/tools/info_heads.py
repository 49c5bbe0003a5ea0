"""What is in the folder of a model for one task: TF binding, perturbation. Loads no torch.

in   a folder, or a run's folder that holds one
out  a JSON-ready mapping, and the same in words
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scfm.errors import ModelError
from scfm.model.folder import CONFIG, WEIGHTS, read_provenance

KINDS = {"scfm-binding": "TF binding model", "scfm-perturbation": "perturbation head"}
PLACES = ("", "model", "head")  # where a run's folder has it
TASKS_SHOWN = 12


def head_folder(path: Path) -> Path | None:
    """The folder itself or the one a run holds; None where there is none of these kinds."""
    for place in PLACES:
        folder = path / place
        if (folder / CONFIG).exists() and _config(folder).get("model_type") in KINDS:
            return folder
    return None


def describe_head(folder: Path, shapes: Callable[[Path], dict[str, list[int]]]) -> dict[str, Any]:
    """Sizes, tasks and provenance; the weights are checked against their hash."""
    provenance, config = read_provenance(folder), _config(folder)
    return {
        "kind": "head",
        "family": config["model_type"],
        "path": str(folder),
        "architecture": config.get("architecture", config.get("sizes")),
        "n_parameters": sum(math.prod(shape) for shape in shapes(folder / WEIGHTS).values()),
        "tasks": config.get("tasks", []),
        "provenance": provenance,
    }


def head_in_words(found: dict[str, Any]) -> str:
    """The mapping of ``describe_head`` as a few lines for a person."""
    made, tasks = found["provenance"], found["tasks"]
    sizes = ", ".join(f"{name} {value}" for name, value in found["architecture"].items())
    lines = [
        f"{found['path']}: {KINDS[found['family']]}, {found['n_parameters']:,} numbers in its file",
        sizes,
    ]
    if tasks:
        more = " ..." if len(tasks) > TASKS_SHOWN else ""
        lines.append(f"{len(tasks)} tasks: {', '.join(tasks[:TASKS_SHOWN])}{more}")
    return "\n".join([*lines, f"weights sha256 {made['weights_sha256'][:12]}, as saved"])


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / CONFIG} is not readable JSON: {error}.") from error
    return found if isinstance(found, dict) else {}
