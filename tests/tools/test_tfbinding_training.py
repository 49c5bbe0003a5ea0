"""scfm finetune tfbinding: a file of windows -> a run folder that says what was reached."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from scfm.cli.app import main
from scfm.data.region_examples import open_regions
from scfm.data.region_sampling import pairs, part_examples
from scfm.data.region_split import TEST
from scfm.errors import ConfigError, ScfmWarning
from scfm.model.dna_folder import load_binding
from scfm.tasks.tfbinding import predict_logits
from scfm.tasks.tfbinding_run import BindingData, SplitConfig, load_binding_run
from scfm.tasks.tfbinding_scores import task_scores
from scfm.tools.tfbinding_training import finetune_tfbinding, read_binding_run, split_of
from scfm.train.loggers import read_metrics
from tests.toys_regions import BASES, window_regions

SMALL = [
    *("model.first_filters=8", "model.d_model=8", "model.n_blocks=1", "model.d_hidden=8"),
    *("model.second_pool=10", "train.steps=4", "train.validate_every=2", "fine_tuning.steps=2"),
    *("train.accelerator=cpu", "loader.batch_size=32", "logging.every_n_steps=1"),
    *(
        "augment.deletion=4",
        "augment.insertion=4",
        "augment.shift=4",
        "checkpoints.every_n_steps=2",
    ),
]
CHROMS = ["--validation-chroms", "chr2", "--test-chroms", "3"]


@pytest.fixture
def file(rng, tmp_path):
    """Windows on chr1, chr2 and chr3, and some on chr8 whose labels were kept back."""
    windows = window_regions(rng, n=240, length=40, chroms=("chr1", "chr2", "chr3", "chr8"))
    labels = windows.label_table.copy()
    labels[windows.chrom == "chr8"] = 0
    keys = [
        f"{chrom}:{start}-{end}"
        for chrom, start, end in zip(windows.chrom, windows.start, windows.end, strict=True)
    ]
    letters = np.array(list(BASES))[windows.codes]
    sequences = np.array(["".join(row) for row in letters])
    path = tmp_path / "windows.npz"
    np.savez(path, keys=np.array(keys), seq=sequences, Y=labels, tasks=np.array(["AP1", "SP1"]))
    return path


def sets(overrides):
    return [text for override in overrides for text in ("--set", override)]


def finetune(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "tfbinding", *map(str, arguments)])
    return stop.value.code


def test_from_the_command_line(file, tmp_path, capsys):
    out = tmp_path / "run"
    assert finetune(file, "--out", out, *CHROMS, *sets(SMALL), "--json") == 0
    said = capsys.readouterr()
    assert "without labels" in said.err  # chr8
    assert "mean AUPR" in said.err
    printed = json.loads(said.out.splitlines()[-1])
    metrics = json.loads((out / "metrics.json").read_text())
    assert printed["test"] == metrics["test"]
    model, examples = load_binding(out), open_regions(file)
    run = load_binding_run(str(out / "config.yaml"))
    with pytest.warns(ScfmWarning, match="without labels"):
        split = split_of(examples, run.split)
    assert split.training_chroms == ("chr1",)
    region, group = pairs(examples, part_examples(examples, split, TEST))
    logits = predict_logits(model, examples, region, group)
    wanted = task_scores(logits, examples.labels(region, group), model.tasks)
    assert metrics["test"]["aupr"] == pytest.approx(wanted.mean_aupr)
    assert metrics["test"]["n_windows"] == len(region)
    assert metrics["validation"]["aupr"] == pytest.approx(model.provenance["validation_aupr"])
    assert metrics["model"] == model.provenance["weights_sha256"]
    assert model.config.length == 40
    assert model.config.n_tracks == 0
    assert str(tmp_path) not in json.dumps(model.provenance)
    assert [int(row["step"]) for row in read_metrics(out / "metrics.csv")] == [0, 1, 2, 3, 4]
    assert (out / "fine_tuning" / "metrics.csv").exists()
    # a second run does not overwrite; a resumed one finds nothing left to do
    before = (out / "metrics.json").read_text()
    assert finetune(file, "--out", out, *CHROMS, *sets(SMALL)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert finetune("--out", out, "--resume") == 0
    assert (out / "metrics.json").read_text() == before


def test_resume_changes_nothing_that_is_computed(file, tmp_path):
    run = dataclasses.replace(
        load_binding_run("tfbinding-seqacc", SMALL),
        data=BindingData(path=str(file)),
        split=SplitConfig(validation_chroms=("chr2",), test_chroms=("chr3",)),
    )
    with pytest.warns(ScfmWarning, match="chr8"):
        finetune_tfbinding(run, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optim\.lr would change it"):
        read_binding_run(tmp_path / "run", ("optim.lr=1",))
    assert (
        read_binding_run(tmp_path / "run", ("logging.every_n_steps=3",)).logging.every_n_steps == 3
    )
    started = dataclasses.replace(run, start=str(tmp_path / "run"))
    with pytest.warns(ScfmWarning, match="chr8"):
        found = finetune_tfbinding(started, tmp_path / "second")
    assert found["best"]["stage"] in (0, 1)
    provenance = load_binding(tmp_path / "second").provenance
    curve = provenance["validation_curves"][0]
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert curve[0][1] == pytest.approx(first["validation"]["aupr"])
    swapped = SplitConfig(validation_chroms=("chr2",), test_chroms=("chr1",))
    leaking = dataclasses.replace(started, split=swapped)
    with (
        pytest.warns(ScfmWarning, match="chr8"),
        pytest.raises(ConfigError, match=r"--test-chroms: the model has seen .* \(chr1\)"),
    ):
        finetune_tfbinding(leaking, tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test-chroms", "chr8", "--validation-chroms", "chr2"], "labels are not in the file"),
        (["--test-chroms", "chr9", "--validation-chroms", "chr2"], "No region lies on chr9"),
        ([*CHROMS, "--track", "atac"], "NAME=FILE"),
        ([*CHROMS, "--config", "scfm-tiny"], "of family 'scfm'"),
        ([*CHROMS, "--held-out-groups", "T"], "no group of"),
        ([*CHROMS, "--set", "model.filters=3"], "unknown key"),
        ([*CHROMS, "--set", "train.strategy=fsdp"], "train.strategy=ddp"),
    ],
)
def test_refusals(file, tmp_path, capsys, arguments, message):
    assert finetune(file, "--out", tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_data_or_run(tmp_path, capsys):
    assert finetune("--out", tmp_path / "run") == 2
    assert "Name their file" in capsys.readouterr().err
    assert finetune("--out", tmp_path / "run", "--resume") == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_two_processes_make_a_run(file, tmp_path):
    """The norms' statistics are each process's own, so only the beginning is one process's."""
    assert finetune(file, "--out", tmp_path / "one", *CHROMS, *sets(SMALL)) == 0
    command = [sys.executable, "-m", "scfm.cli", "finetune", "tfbinding", str(file), "--out"]
    command += [str(tmp_path / "two"), *CHROMS, *sets([*SMALL, "train.devices=2"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert one[0] == two[0]
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one[1:], two[1:], strict=True):
        assert float(theirs["loss"]) == pytest.approx(float(ours["loss"]), rel=0.25)
    assert load_binding(tmp_path / "two").tasks == ("AP1", "SP1")
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert metrics[0]["n_bound_examples"] == metrics[1]["n_bound_examples"]
