"""What tools begin with: a name -> a model ready to use; arguments -> how data is read."""

from pathlib import Path

import torch

from scfm.errors import ConfigError
from scfm.model.base import CellModel
from scfm.model.families import load_model
from scfm.tokens.inputs import InputConfig


def load(source: str | Path, *, device: str = "auto") -> CellModel:
    """Load a model folder, a run folder of ``scfm pretrain``, or a hub id.

    Parameters
    ----------
    device
        "auto" takes a GPU where there is one; else a torch device name.

    Raises ModelError where anything is missing or altered. Nothing from the folder is executed.
    """
    model = load_model(source)
    return model.to(choose_device(device))  # pyright: ignore[reportArgumentType]


def choose_device(name: str) -> torch.device:
    """A torch device; ConfigError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers.")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"Device '{name}' cannot be used here: {str(error).splitlines()[0]} "
            "Try --device auto or --device cpu."
        ) from error
    return device


def as_model(model: CellModel | str | Path) -> CellModel:
    """Models pass, paths and ids are loaded."""
    return model if isinstance(model, CellModel) else load(model)


def input_config(
    layer: str | None, species: str, minimum_coverage: float, *, orthologs: bool = False
) -> InputConfig:
    """How an AnnData is read, from a function's own arguments; align checks ``species``."""
    return InputConfig(
        layer=layer,
        species=species,  # pyright: ignore[reportArgumentType]
        orthologs=orthologs,
        minimum_coverage=minimum_coverage,
    )
