"""Fixtures every test may use. Nothing here hides a failure."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is a wrong test
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  the hook below looks it up by name

ROOT = Path(__file__).resolve().parents[1]

# Shapes and types in annotations are checked while the tests run. Not those of model/config.py:
# transformers gives its config classes an __init__ that the checker does not understand.
CHECKED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "scfm").rglob("*.py")
    if path.name != "__init__.py" and path.parts[-2:] != ("model", "config.py")
]
install_import_hook(CHECKED, "tests.typechecker.check")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261120)


@pytest.fixture(scope="session")
def shared_data() -> Path | None:
    """The folder of larger real data beside a development checkout, or None in a user's clone."""
    folder = ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_oracles() -> Path | None:
    """Outputs of the originals' released code, beside a development checkout; None elsewhere."""
    folder = ROOT.parent / "shared" / "oracles"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def demo_cells() -> Path:
    """The folder of real cells that travels with the package."""
    return ROOT / "scfm" / "demo" / "cells"


@pytest.fixture(scope="session")
def toy_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved toy model. Not to be changed: copy it first."""
    from scfm.model.base import save_model
    from tests.toys import toy_model

    folder = tmp_path_factory.mktemp("models") / "toy"
    save_model(toy_model(), folder)
    return folder
