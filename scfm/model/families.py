"""A model folder of any family -> its model.

in   a folder, a run folder or a hub id
out  the CellModel that its config.json names
"""

from pathlib import Path

from scfm.errors import ModelError
from scfm.model.base import CellModel, model_type
from scfm.model.folder import find_model
from scfm.model.pretrained import ScfmModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.model.scmulan import ScmulanModel

FAMILIES: dict[str, type[CellModel]] = {
    "scfm": ScfmModel,
    "scfoundation": ScfoundationModel,
    "scmulan": ScmulanModel,
}


def load_model(source: str | Path) -> CellModel:
    """Load a model of whichever family. Raises ModelError as `CellModel.from_pretrained` does."""
    folder = find_model(source)
    family = model_type(folder)
    if family not in FAMILIES:
        raise ModelError(
            f"{folder} is a model of the family '{family}'; this version of scfm knows "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[family].from_pretrained(folder)
