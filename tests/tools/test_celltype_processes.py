"""Fine-tuning in several processes: the same weights as in one, by every strategy."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from scfm.model.base import save_model
from tests.tools.test_celltype_finetuning import labelled
from tests.toys import toy_model
from tests.train.warm_processes import run_processes

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    labelled().write_h5ad(folder / "cells.h5ad")
    save_model(toy_model(), folder / "model")
    return folder


def tune(files: Path, n_processes: int, method: str, strategy: str) -> Path:
    out = files / f"{method}_{strategy}_{n_processes}"
    if out.exists():  # the oracle of several
        return out
    settings = {
        **{"train.steps": 6, "train.validate_every": 3, "train.accelerator": "cpu"},
        **{"train.strategy": strategy, "batch_size": 7, "optim.lr": 1e-3},
    }
    done = run_processes(
        n_processes,
        [
            *("finetune", "celltype", str(files / "cells.h5ad"), "--label", "cell_type"),
            *("--holdout", "donor", "--model", str(files / "model"), "--out", str(out)),
            *("--method", method, "--device", "cpu"),
            *(w for k, v in settings.items() for w in ("--set", f"{k}={v}")),
        ],
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("method", "strategy"), [("full", "ddp"), ("lora", "fsdp"), ("lora", "deepspeed_2")]
)
def test_two_processes_make_the_steps_of_one(files, method, strategy):
    """Seven cells a step do not go by two; the oracle is one process without a strategy."""
    alone, both = tune(files, 1, method, "auto"), tune(files, 2, method, strategy)
    found = [json.loads((out / "metrics.json").read_text()) for out in (alone, both)]
    assert found[0]["best_step"] == found[1]["best_step"] > 0
    np.testing.assert_allclose(*(f["validation_curve"] for f in found), rtol=1e-4)
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (both, alone))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=2e-5, err_msg=name)
