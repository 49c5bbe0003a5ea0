"""A model's folder: what lies in it, and whether it is whole. Loads no torch.

in   a path, a run folder, or a hub id
out  the folder, its provenance, checked against its weights
"""

import json
from pathlib import Path
from typing import Any

from scfm.data.fingerprint import sha256
from scfm.errors import ModelError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VOCAB, PROVENANCE = "vocab.tsv", "provenance.json"
CARD = "README.md"  # of converted models; what a hub shows
CALIBRATION = (
    "calibration.json"  # how far its confidence can be trusted; there after scfm calibrate
)


def find_model(source: str | Path) -> Path:
    """The folder itself, the ``model`` folder of a run, or a hub download."""
    folder = Path(source)
    if folder.is_dir() and not (folder / CONFIG).exists() and (folder / "model").is_dir():
        folder = folder / "model"
    # owner/name is a hub id, unless there is a folder called owner here: then it is a typing error.
    if not folder.exists() and len(folder.parts) == 2 and not folder.parent.exists():
        folder = _from_hub(str(source))
    if not folder.is_dir():
        raise ModelError(
            f"There is no model at {source}. Give a folder with config.json and {WEIGHTS}, such as "
            "the run folder of 'scfm pretrain', or make one with 'scfm demo'."
        )
    missing = [f for f in (CONFIG, WEIGHTS, VOCAB, PROVENANCE) if not (folder / f).exists()]
    if missing:
        raise ModelError(
            f"The model folder {folder} lacks {', '.join(missing)}. Copy the whole folder again; "
            "a model is complete only with its weights, vocabulary and provenance."
        )
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    files = [CONFIG, WEIGHTS, VOCAB, PROVENANCE, CARD, CALIBRATION]
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"There is no folder {name}, and the hub has no such model or cannot be reached "
            f"({type(error).__name__}). Check the path, or download the model first."
        ) from error


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read provenance.json and hold weights and config to the hashes in it."""
    try:
        provenance = json.loads((folder / PROVENANCE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / PROVENANCE} is not readable JSON: {error}.") from error
    if not isinstance(provenance, dict):
        raise ModelError(f"{folder / PROVENANCE} holds no provenance. Copy the folder again.")
    for name, key in ((WEIGHTS, "weights_sha256"), (CONFIG, "config_sha256")):
        wanted, found = provenance.get(key), sha256(folder / name)
        if wanted != found:
            raise ModelError(
                f"{folder / name} has changed since it was saved (sha256 {found[:12]}, provenance "
                f"says {str(wanted)[:12]}): truncated, altered, or not this model's. Copy the "
                "folder again from where it was made."
            )
    return provenance


def read_calibration(folder: Path, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """What calibration.json says, if there is one. Raises ModelError where it is for others."""
    path = folder / CALIBRATION
    if not path.exists():
        return None
    remedy = (
        f"Remove {path}, or calibrate again: scfm calibrate CELLS --model MODEL --label COLUMN."
    )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}. {remedy}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no calibration. {remedy}")
    own, theirs = str(provenance.get("weights_sha256", "")), str(found.get("weights_sha256", ""))
    if own != theirs:
        raise ModelError(
            f"{path} was fitted for other weights (sha256 {theirs[:12]}, these are {own[:12]}). "
            f"{remedy}"
        )
    return found
