"""A binding model's folder, laid out as any model's.

in   a model, or a folder holding config.json, model.safetensors, provenance.json
out  the folder, or the model

Loading reads JSON and safetensors only: nothing from the folder can run.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scfm.data.fingerprint import sha256
from scfm.data.write import atomic_folder, set_usual_mode
from scfm.errors import ModelError
from scfm.model.dna import BindingModel
from scfm.model.dna_config import BindingConfig
from scfm.model.folder import CONFIG, PROVENANCE, WEIGHTS, read_provenance

MODEL_TYPE = "scfm-binding"
FILES = (CONFIG, WEIGHTS, PROVENANCE)


def save_binding(model: BindingModel, folder: str | Path) -> None:
    """Write the model into a folder that appears whole or not at all."""
    tensors = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ModelError(
            f"The model has NaN or infinite weights ({', '.join(broken[:3])}): training diverged. "
            "Nothing was exported. Start again with a lower --set optim.lr=..."
        )
    with atomic_folder(folder, marker=PROVENANCE) as temporary:
        config = {
            "model_type": MODEL_TYPE,
            "architecture": asdict(model.config),
            "tasks": list(model.tasks),
        }
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(tensors, temporary / WEIGHTS)
        set_usual_mode(temporary / WEIGHTS)
        hashes = {
            "weights_sha256": sha256(temporary / WEIGHTS),
            "config_sha256": sha256(temporary / CONFIG),
        }
        model.provenance = {**model.provenance, **hashes}
        (temporary / PROVENANCE).write_text(json.dumps(model.provenance, indent=2) + "\n")


def load_binding(source: str | Path) -> BindingModel:
    """Load the folder that ``scfm finetune tfbinding`` wrote, or a run folder holding it.

    Raises ModelError where a file is missing, altered, or of another kind of model.
    """
    folder = _found(Path(source))
    provenance, config = read_provenance(folder), _read_config(folder)
    try:
        model = BindingModel(BindingConfig(**config["architecture"]), tuple(config["tasks"]))
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"The binding model in {folder} cannot be loaded: {error}") from error
    model.provenance = provenance
    return model.eval()


def as_binding(model: BindingModel | str | Path) -> BindingModel:
    """Models pass, paths are loaded."""
    return model if isinstance(model, BindingModel) else load_binding(model)


def _found(folder: Path) -> Path:
    if not (folder / CONFIG).exists() and (folder / "model").is_dir():
        folder = folder / "model"
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"There is no binding model at {folder}: it lacks {', '.join(missing)}. Make one with "
            "'scfm finetune tfbinding', or copy the whole folder again."
        )
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / CONFIG} is not readable JSON: {error}.") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE:
        raise ModelError(
            f"{folder} holds a model of type {found!r}; wanted a binding model ({MODEL_TYPE!r}), "
            "as 'scfm finetune tfbinding' writes it."
        )
    return config
