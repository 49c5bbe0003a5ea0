"""The plan: its arithmetic, its verdict, its refusals; and three real steps beside it."""

import json

import numpy as np
import pytest

from scfm.cli.app import main
from scfm.config import load_config
from scfm.errors import ConfigError
from scfm.model.flops import batch_flops
from scfm.tasks.pretrain_run import PretrainRun
from scfm.tools.devices import GIB, GPUS, find_device
from scfm.tools.plan import PlanRequest, make_plan
from scfm.tools.plan_check import check_plan
from scfm.tools.plan_states import Parameters, states
from scfm.tools.plan_words import in_words


def config(*overrides, name="scfm-tiny"):
    return load_config(PretrainRun, name, overrides)


def plan(*overrides, name="scfm-tiny", **asked):
    return make_plan(config(*overrides, name=name), PlanRequest(**{"cells": 1e6, **asked}))


def test_work_by_hand():
    """tiny: 32 cells a step, of which 500 genes are kept and half hidden, with as many zeros."""
    found = plan("train.steps=10", genes_per_cell=500.0, cells=160.0).work
    visible, targets = 3 + 250, 500
    flops = batch_flops(config().model, [visible] * 32, [targets] * 32)
    assert found["tokens_per_step"] == 32 * (visible + targets)
    assert (found["epochs"], found["steps"]) == (2.0, 10)
    assert found["flops"] == pytest.approx(10 * flops)
    assert found["hours"] == pytest.approx(10 * flops / (0.4 * 66.9e12) / 3600)


def test_more_devices_share_the_batch_and_the_time():
    one, four = (plan("train.precision=32-true", name="scfm-3m", gpus=n) for n in (1, 4))
    assert one.work["cells_per_device"] == 4 * four.work["cells_per_device"]
    assert one.work["hours"] == pytest.approx(4 * four.work["hours"])
    assert one.memory["activations"] == pytest.approx(4 * four.memory["activations"])
    assert one.memory["weights"] == four.memory["weights"]
    assert four.settings["strategy"] == "ddp"


P = Parameters(
    by_part={"embedding": 400, "blocks": 600},
    largest=300,
    cast=500,
    largest_block=100,
    in_blocks=600,
)


@pytest.mark.parametrize(
    ("strategy", "precision", "weights", "gradients", "optimiser"),
    [  # bytes of 1,000 parameters on each of 4 processes
        ("ddp", "32-true", 4000, 4000, 8000),
        ("ddp", "bf16-mixed", 4000, 4000, 8000),
        ("ddp", "bf16-true", 2000, 2000, 4000),
        ("fsdp", "32-true", 1000, 1000, 2000),
        ("deepspeed_1", "32-true", 4000, 4000, 3000),
        ("deepspeed_2", "bf16-true", 2000, 500, 3000),
        ("deepspeed_3", "32-true", 1000, 1000, 3000),
    ],
)
def test_states_by_strategy(strategy, precision, weights, gradients, optimiser):
    """ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1), with its float32 copy."""
    train = config(f"train.strategy={strategy}", f"train.precision={precision}").train
    found = states(P, train, 4, "cuda")
    assert (found.weights, found.gradients, found.optimiser) == (weights, gradients, optimiser)


def test_offload_leaves_the_device():
    train = config("train.strategy=deepspeed_3", "train.offload=parameters").train
    found = states(P, train, 4, "cuda")
    assert found.weights == found.gradients == found.optimiser == 0


def test_verdict_and_what_to_try():
    """What is proposed fits when it is planned."""
    found = plan(name="scfm-10m", memory_gib=4.0)
    assert not found.fits
    assert found.try_next
    assert plan(*found.try_next, name="scfm-10m", memory_gib=4.0).fits
    assert " ".join(f"--set {s}" for s in found.try_next) in in_words(found)
    hopeless = plan(name="scfm-400m", memory_gib=0.75)
    assert hopeless.try_next == ()
    assert "larger devices" in in_words(hopeless)


def test_data_is_sampled(demo_cells):
    found = plan(data=(str(demo_cells / "pbmc3k.h5ad"),))
    tokens = found.work["tokens_per_step"] / found.work["cells_per_step"]
    assert "pbmc3k" in found.assumptions[0]
    assert 100 < found.settings["genes_per_cell"] < 512  # of about 800, tiny keeps 512
    assert tokens < 3 + 512 + 256


def test_known_devices_have_a_peak():
    for name in GPUS:
        assert find_device(name).peak_flops("bf16-mixed")
    with pytest.raises(ConfigError, match=r"--device abacus is not known. Known are cpu, b200"):
        find_device("abacus")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "0"], "--cells must be at least 1"),
        (["--cells", "nan"], "--cells must be at least 1"),
        (["--cells", "1e6", "--gpus", "0"], "--gpus must be at least 1"),
        (["--cells", "1e6", "--mfu", "1.5"], "--mfu is a share"),
        (["--cells", "1e6", "--memory", "-3"], "--memory must be above 0"),
        (["--cells", "1e6", "--genes-per-cell", "0"], "--genes-per-cell must be at least 1"),
        (["--cells", "1e6", "--device", "h10"], "Known are cpu, b200"),
        (
            ["--cells", "1e6", "--gpus", "3", "--set", "train.num_nodes=2"],
            "--gpus 3, in all, do not divide over train.num_nodes=2 machines",
        ),
    ],
)
def test_nonsense_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_command_prints_a_table_or_json(capsys):
    for json_too in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main(["plan", "--config", "scfm-100m", "--cells", "50e6", "--gpus", "8", *json_too])
        assert stopped.value.code == 0
    text, line = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    assert "8 x h100: ddp, bf16-mixed" in text
    assert text.rstrip().endswith("It fits.")
    found = json.loads(line)
    assert found["fits"]
    assert found["parameters"]["total"] == 111_001_022
    assert found["memory_total"] == pytest.approx(sum(found["memory"].values()))


def test_memory_has_every_part():
    run = config(name="scfm-3m")
    found = make_plan(run, PlanRequest(cells=1e6)).memory
    assert list(found) == [
        *("weights", "gradients", "optimiser", "activations", "workspace", "batches", "runtime")
    ]
    assert all(size > 0 and np.isfinite(size) for size in found.values())
    assert sum(found.values()) < 10 * GIB


@pytest.mark.slow
def test_three_real_steps_take_what_was_predicted(tmp_path, monkeypatch):
    """A batch whose activations dominate: within 15 % of the measured peak."""
    monkeypatch.chdir(tmp_path)
    run = config("train.precision=32-true", "loader.batch_size=8", name="scfm-3m")
    found = check_plan(run, PlanRequest(cells=1e6, device="cpu", genes_per_cell=1500.0))
    assert found["predicted"]["activations"] > 0.8 * found["predicted_bytes"]
    assert found["ratio"] == pytest.approx(1, abs=0.15)
    assert found["flops_per_s"] > 1e8
    assert list(tmp_path.iterdir()) == []


def test_check_says_what_it_cannot_try():
    with pytest.raises(ConfigError, match="tries one process"):
        check_plan(config("train.strategy=fsdp"), PlanRequest(cells=1e6))
