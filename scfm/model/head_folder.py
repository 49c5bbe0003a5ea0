"""The folder of a model for one task: what all such folders share.

in   a module and its config as JSON; or a folder holding config.json, model.safetensors,
     provenance.json
out  the folder; or where it is, its config and provenance, checked

Loading reads JSON and safetensors only: nothing from the folder can run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from scfm.data.fingerprint import sha256
from scfm.data.write import atomic_folder, set_usual_mode
from scfm.errors import ModelError
from scfm.model.folder import CONFIG, PROVENANCE, WEIGHTS


@dataclass(frozen=True)
class HeadKind:
    """One kind of such models, and what messages call it.

    Attributes
    ----------
    model_type
        As config.json says it.
    name
        As messages say it, "perturbation head".
    command
        What makes one, "scfm finetune perturbation".
    lower_rate
        What to type for a lower learning rate.
    place
        Where a run's folder has it.
    files
        What a whole folder holds.
    """

    model_type: str
    name: str
    command: str
    lower_rate: str
    place: str
    files: tuple[str, ...] = (CONFIG, WEIGHTS, PROVENANCE)

    def save(
        self,
        module: nn.Module,
        folder: str | Path,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        more: Callable[[Path], None] = lambda folder: None,
    ) -> dict[str, Any]:
        """Write the folder, whole or not at all; ``more`` adds files. The provenance, with hashes.

        Raises ModelError for weights that are not finite, OutputError.
        """
        tensors = {name: value.contiguous().cpu() for name, value in module.state_dict().items()}
        broken = [name for name, value in tensors.items() if not value.isfinite().all()]
        if broken:
            raise ModelError(
                f"The {self.name} has NaN or infinite weights ({', '.join(broken[:3])}): training "
                f"diverged. Nothing was exported. Start again with a lower {self.lower_rate}."
            )
        with atomic_folder(folder, marker=PROVENANCE) as temporary:
            written = {"model_type": self.model_type, **config}
            (temporary / CONFIG).write_text(json.dumps(written, indent=2) + "\n")
            save_file(tensors, temporary / WEIGHTS)
            set_usual_mode(temporary / WEIGHTS)
            more(temporary)
            hashes = {
                "weights_sha256": sha256(temporary / WEIGHTS),
                "config_sha256": sha256(temporary / CONFIG),
            }
            made = {**provenance, **hashes}
            (temporary / PROVENANCE).write_text(json.dumps(made, indent=2) + "\n")
        return made

    def find(self, source: str | Path) -> Path:
        """The folder itself, or the one a run's folder holds. Raises ModelError."""
        folder = Path(source)
        if not (folder / CONFIG).exists() and (folder / self.place).is_dir():
            folder = folder / self.place
        missing = [name for name in self.files if not (folder / name).exists()]
        if missing:
            raise ModelError(
                f"There is no {self.name} at {folder}: it lacks {', '.join(missing)}. Make one "
                f"with '{self.command}', or copy the whole folder again."
            )
        return folder

    def read_config(self, folder: Path) -> dict[str, Any]:
        """config.json, of this kind. Raises ModelError."""
        try:
            config = json.loads((folder / CONFIG).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{folder / CONFIG} is not readable JSON: {error}.") from error
        found = config.get("model_type") if isinstance(config, dict) else None
        if found != self.model_type:
            raise ModelError(
                f"{folder} holds a model of type {found!r}; wanted a {self.name} "
                f"({self.model_type!r}), as '{self.command}' writes it."
            )
        return config
