"""Two processes train as one does: the same batches, the same gradients, the same model."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.toy_stores import write_store

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    *("--set", "train.steps=6", "--set", "model.d_model=16", "--set", "loader.batch_size=8"),
    *("--set", "train.validate_every=3", "--set", "logging.every_n_steps=1"),
    *("--set", "train.accelerator=cpu"),
]


# Of a store the two processes' parts differ: three lanes, and seven cells a batch.
STORE_SETTINGS = [
    *("--set", "loader.lanes=3", "--set", "loader.batch_size=7", "--set", "loader.prefetch=2"),
]


@pytest.fixture(scope="module")
def cells(demo_cells, tmp_path_factory):
    """The same cells as a file and as a store."""
    folder = tmp_path_factory.mktemp("cells")
    adata = ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::20].copy()
    adata.write_h5ad(folder / "file")
    write_store(folder / "store", {"cells.h5ad": adata})
    return folder


def column(run: Path, name: str) -> np.ndarray:
    with (run / "metrics.csv").open(newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file) if row[name]])


@pytest.mark.multiprocess
@pytest.mark.parametrize(("kind", "more"), [("file", []), ("store", STORE_SETTINGS)])
def test_two_processes_equal_one(cells, tmp_path, kind, more):
    """By the launch script, as a user would; the oracle is the plain command."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["OMP_NUM_THREADS"] = "1"
    one, two = tmp_path / "one", tmp_path / "two"
    commands = [
        [
            *(sys.executable, "-m", "scfm.cli.app", "pretrain", "--config", "scfm-tiny"),
            *("--data", str(cells / kind), "--out", str(one), *SETTINGS, *more),
        ],
        [
            *("bash", str(ROOT / "launch" / "torchrun.sh"), "2", str(two), "scfm-tiny"),
            *(str(cells / kind), "--", *SETTINGS, *more),
        ],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    for name in ("loss", "gradient_norm", "val_loss"):
        np.testing.assert_allclose(column(one, name), column(two, name), rtol=1e-4)
    theirs = load_file(two / "model" / "model.safetensors")
    for name, ours in load_file(one / "model" / "model.safetensors").items():
        np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-4, err_msg=name)
