"""What lies in a reference's folder, and whether it is whole. Loads no torch.

in   a folder
out  its reference.json, checked, with the hashes of the other files
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from scfm.data.fingerprint import sha256
from scfm.errors import DamagedReferenceError, NewerFormatError

FORMAT, VERSION = "scfm-reference", 1
INDEX, TENSORS, CELLS, GENES = "reference.json", "cells.safetensors", "cells.parquet", "genes.txt"
FILES = (TENSORS, CELLS, GENES)


def is_reference(path: str | Path) -> bool:
    """Whether a folder is a saved reference."""
    return (Path(path) / INDEX).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """reference.json, once it and all other files are held to its hashes.

    Raises DamagedReferenceError where one is missing, truncated or altered, NewerFormatError.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise damaged(folder, f"has no readable {INDEX} ({error})") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise damaged(folder, f"has an {INDEX} of another kind")
    if int(index.get("version", 0)) > VERSION:
        raise NewerFormatError(
            f"The reference {folder} is of version {index['version']}; this scfm reads up to "
            f"{VERSION}. Update scfm: pip install -U scfm."
        )
    own = index.pop("own_sha256", None)
    if own != own_hash(index):
        raise damaged(folder, f"has a {INDEX} that was altered")
    for name in FILES:
        if not (folder / name).is_file():
            raise damaged(folder, f"lacks {name}")
        if sha256(folder / name) != index["sha256"].get(name):
            raise damaged(folder, f"has a {name} that is truncated or was altered")
    return index


def own_hash(index: dict[str, Any]) -> str:
    """sha256 of reference.json without this hash in it."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def damaged(folder: Path, what: str) -> DamagedReferenceError:
    """The error for a folder of which something is wrong."""
    return DamagedReferenceError(
        f"The reference {folder} {what}. Copy the whole folder again from where it was made, or "
        "build it anew: scfm reference build CELLS --model MODEL --label COLUMN --out REF."
    )
