"""Every strategy makes the same steps as one plain process; what it may not be asked is refused."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import lightning.pytorch as L
import numpy as np
import pytest
import torch

from scfm.errors import ConfigError
from scfm.train.gradients import engine_gradient_norm, gradient_norm, undivided
from scfm.train.loggers import LoggingConfig
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig
from scfm.train.strategy import (
    MACHINE_SETTINGS,
    OFFLOAD_OPTIMIZER,
    OFFLOAD_PARAM,
    build_strategy,
    deepspeed_settings,
    read_machine_settings,
)
from scfm.train.trainer import build_trainer
from tests.train.warm_processes import run_processes

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    *("--set", "train.steps=5", "--set", "model.d_model=16", "--set", "loader.batch_size=7"),
    *("--set", "train.validate_every=3", "--set", "logging.every_n_steps=1"),
    *("--set", "train.accelerator=cpu"),
]
SHARDED = ["fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3"]


@pytest.fixture(scope="module")
def cells(demo_cells, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::20].copy().write_h5ad(path)
    return path


def train(cells: Path, out: Path, n_processes: int, *more: str) -> dict[str, np.ndarray]:
    """A run's loss, gradient norm and validation loss, step by step."""
    arguments = [
        *("pretrain", "--config", "scfm-tiny", "--data", str(cells), "--out", str(out), *SETTINGS),
        *(part for setting in more for part in ("--set", setting)),
    ]
    done = run_processes(n_processes, arguments)
    assert done.returncode == 0, done.stderr
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("loss", "gradient_norm", "val_loss")
    return {name: np.array([float(row[name]) for row in rows if row[name]]) for name in names}


@pytest.fixture(scope="module")
def alone(cells, tmp_path_factory) -> dict[str, np.ndarray]:
    """The oracle: one process, no strategy, the whole batch at once."""
    return train(cells, tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.mark.multiprocess
@pytest.mark.parametrize(("n_processes", "accumulate"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
def test_the_same_loss_curve(cells, alone, tmp_path, strategy, n_processes, accumulate):
    """Seven cells a step go neither by two processes nor by three times two micro-batches."""
    settings = (f"train.strategy={strategy}", f"train.accumulate={accumulate}")
    found = train(cells, tmp_path / "run", n_processes, *settings)
    for name, wanted in alone.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, err_msg=name)


@pytest.mark.multiprocess
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_2"])
def test_one_process_may_have_a_strategy_too(cells, alone, tmp_path, strategy):
    found = train(cells, tmp_path / "run", 1, f"train.strategy={strategy}")
    for name, wanted in alone.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, err_msg=name)


@pytest.mark.multiprocess
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_3"])
def test_half_precision_is_the_same_arithmetic_everywhere(cells, alone, tmp_path, strategy):
    """Near the float32 curve, by what bfloat16's eight bits allow; inputs and targets unrounded."""
    settings = (f"train.strategy={strategy}", "train.precision=bf16-mixed")
    found = train(cells, tmp_path / "run", 2, *settings, "train.recompute=selective")
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(found[name], alone[name], rtol=3e-3, err_msg=name)
        assert not np.array_equal(found[name], alone[name])


@pytest.mark.slow  # the first time, DeepSpeed compiles its AdamW
@pytest.mark.multiprocess
def test_states_in_host_memory(cells, alone, tmp_path):
    settings = ("train.strategy=deepspeed_3", "train.offload=parameters")
    found = train(cells, tmp_path / "run", 2, *settings)
    for name, wanted in alone.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_compiled_blocks(cells, alone, tmp_path):
    found = train(cells, tmp_path / "run", 1, "train.compile=true")
    for name, wanted in alone.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, err_msg=name)


# --- what a strategy is made of -------------------------------------------------------------


def test_one_process_needs_no_strategy(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert build_strategy(TrainConfig()) == ("auto", "32-true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    strategy, precision = build_strategy(TrainConfig(precision="bf16-mixed"))
    assert type(strategy).__name__ == "DDPStrategy"
    assert precision == "bf16-mixed"


def test_offload_and_machine_settings_reach_deepspeed(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"zero_optimization": {"overlap_comm": False}, "aio": {}}))
    config = TrainConfig(
        strategy="deepspeed_3",
        precision="bf16-mixed",
        offload="parameters",
        offload_to="/scratch",
        deepspeed=str(path),
        accelerator="cpu",
    )
    settings = deepspeed_settings(config)
    assert settings["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/scratch", "pin_memory": False},
        "offload_param": {"device": "nvme", "nvme_path": "/scratch", "pin_memory": False},
    }
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": {"type": "Adam"}}, "optimizer"),
        ({"gradient_clipping": 1.0}, "gradient_clipping"),
        ({"train_batch_size": 8}, "train_batch_size"),
        ({"bf16": {"enabled": True}}, "bf16"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer.dev"),
        ({"zero_optimization": 3}, "zero_optimization must be an object"),
    ],
)
def test_a_machine_file_may_not_change_the_loss(tmp_path, settings, named):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=f"machine.json.*{named}"):
        build_strategy(TrainConfig(strategy="deepspeed_2", deepspeed=str(path), accelerator="cpu"))


def test_a_machine_file_that_is_none(tmp_path):
    wanted = {"strategy": "deepspeed_1", "accelerator": "cpu"}
    with pytest.raises(ConfigError, match=r"no file .*none\.json.*launch/deepspeed"):
        build_strategy(TrainConfig(**wanted, deepspeed=str(tmp_path / "none.json")))
    (tmp_path / "torn.json").write_text('{"aio":')
    with pytest.raises(ConfigError, match="not readable JSON"):
        build_strategy(TrainConfig(**wanted, deepspeed=str(tmp_path / "torn.json")))
    with pytest.raises(ConfigError, match=r"needs train\.strategy=deepspeed_1.*got fsdp"):
        build_strategy(TrainConfig(strategy="fsdp", deepspeed="x.json"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"zero_optimization": {"offload_optimizer": []}}, "offload_optimizer must be an object"),
        ({"zero_optimization": {"reduce_bucket_size": "a lot"}}, "number above 0, got .a lot"),
        ({"zero_optimization": {"reduce_bucket_size": 0.5}}, "a whole number above 0, got 0.5"),
        ({"zero_optimization": {"stage3_max_reuse_distance": -1}}, "at least 0, got -1"),
        ({"zero_optimization": {"overlap_comm": 1}}, "overlap_comm must be true or false, got 1"),
        ({"zero_optimization": {"offload_param": {"ratio": 1}}}, "sets .*offload_param.ratio"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 2}}}, "a number from 0 to 1, got 2"),
        ({"steps_per_print": "x"}, "steps_per_print must be a whole number above 0, got 'x'"),
        ({"steps_per_print": True}, "steps_per_print must be a whole number above 0, got True"),
        ({"aio": {"thread_count": 0}}, "aio.thread_count must be a whole number above 0, got 0"),
        ({"comms_logger": {"enabled": None}}, "comms_logger.enabled must be true or false"),
    ],
)
def test_values_of_a_machine_file_are_of_the_kind_that_deepspeed_takes(tmp_path, settings, said):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=rf"machine\.json \(train\.deepspeed\).*{said}"):
        read_machine_settings(path)


def test_a_whole_number_may_be_written_as_a_power(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text('{"zero_optimization": {"reduce_bucket_size": 5e8}}')
    size = read_machine_settings(path)["zero_optimization"]["reduce_bucket_size"]
    assert (size, type(size)) == (500_000_000, int)


def test_a_machine_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.deepspeed.* cannot be read: Is a directory"):
        read_machine_settings(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.json .* is not readable JSON"):
        read_machine_settings(tmp_path / "bytes.json")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        read_machine_settings(tmp_path / "bytes.json" / "inner.json")


def test_settings_for_machines_are_known_to_deepspeed():
    """By its own models of its configuration."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.zero import config, offload_config

    for model, settings in (
        (config.DeepSpeedZeroConfig, MACHINE_SETTINGS["zero_optimization"]),
        (offload_config.DeepSpeedZeroOffloadOptimizerConfig, OFFLOAD_OPTIMIZER),
        (offload_config.DeepSpeedZeroOffloadParamConfig, OFFLOAD_PARAM),
        (CommsLoggerConfig, MACHINE_SETTINGS["comms_logger"]),
    ):
        fields = model.model_fields
        known = {*fields, *(str(field.alias) for field in fields.values())}
        assert set(settings) <= known


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        ({"offload": "optimizer"}, "needs train.strategy=deepspeed_1, deepspeed_2, deepspeed_3"),
        ({"offload": "parameters", "strategy": "deepspeed_2"}, "needs train.strategy=deepspeed_3"),
        ({"accumulate": 0}, "train.accumulate must be at least 1"),
    ],
)
def test_impossible_settings(wrong, wanted):
    with pytest.raises(ValueError, match=wanted):
        TrainConfig(**wrong)


def test_without_deepspeed_its_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"pip install 'scfm\[deepspeed\]'"):
        build_strategy(TrainConfig(strategy="deepspeed_2", accelerator="cpu"))


def test_a_drive_that_cannot_be_used(monkeypatch, tmp_path):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    wanted = {"strategy": "deepspeed_3", "offload": "parameters", "accelerator": "cpu"}
    config = TrainConfig(**wanted, offload_to=str(tmp_path / "none"))
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    with pytest.raises(ConfigError, match="needs libaio"):
        build_strategy(config)
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: True)
    with pytest.raises(ConfigError, match="none is no folder"):
        build_strategy(config)


def test_a_trainer_without_checkpoints_writes_none():
    trainer = build_trainer(TrainConfig(accelerator="cpu"), OptimConfig(), LoggingConfig(), [], [])
    assert trainer.checkpoint_callbacks == []


def test_the_norm_of_gradients_is_torchs_own():
    class Toy(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

    module = Toy()
    trainer = SimpleNamespace(model=module, accumulate_grad_batches=4)
    module.trainer = trainer  # pyright: ignore[reportAttributeAccessIssue]
    assert gradient_norm(module) is None
    module.layer(torch.ones(1, 3)).sum().backward()
    flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient_norm(module), flat.norm())
    assert engine_gradient_norm(module) is None
    assert undivided(module) == 1
