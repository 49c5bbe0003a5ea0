"""What made an evaluation's numbers: versions, weights and files by hash.

in   models and data sets
out  a mapping for metrics.json and the report
"""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scfm.data.fingerprint import sha256
from scfm.data.soma_address import is_address
from scfm.model.base import CellModel
from scfm.version import __version__

PACKAGES = ("torch", "anndata", "scanpy", "scikit-learn")


def provenance_of(models: Mapping[str, CellModel], data: Sequence[Any]) -> dict[str, Any]:
    """``data`` are the sets as they were named; only files have a hash."""
    files = [Path(f) for f in data if isinstance(f, str | Path) and not is_address(f)]
    return {
        "scfm": __version__,
        "weights sha256": {
            name: str(model.provenance.get("weights_sha256", "never saved"))
            for name, model in models.items()
        },
        "cells sha256": {file.name: sha256(file) for file in files},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
