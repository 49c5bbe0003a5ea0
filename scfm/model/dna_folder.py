"""A binding model's folder, laid out as any model's.

in   a model, or a folder holding config.json, model.safetensors, provenance.json
out  the folder, or the model
"""

from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from scfm.errors import ModelError
from scfm.model.dna import BindingModel
from scfm.model.dna_config import BindingConfig
from scfm.model.folder import WEIGHTS, read_provenance
from scfm.model.head_folder import HeadKind

BINDING = HeadKind(
    model_type="scfm-binding",
    name="binding model",
    command="scfm finetune tfbinding",
    lower_rate="--set optim.lr=...",
    place="model",
)


def save_binding(model: BindingModel, folder: str | Path) -> None:
    """Write the model into a folder that appears whole or not at all."""
    config = {"architecture": asdict(model.config), "tasks": list(model.tasks)}
    model.provenance = BINDING.save(model, folder, config, model.provenance)


def load_binding(source: str | Path) -> BindingModel:
    """Load the folder that ``scfm finetune tfbinding`` wrote, or a run folder holding it.

    Raises ModelError where a file is missing, altered, or of another kind of model.
    """
    folder = BINDING.find(source)
    provenance, config = read_provenance(folder), BINDING.read_config(folder)
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
