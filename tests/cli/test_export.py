"""scfm export: a checkpoint -> a model folder; refusals name what there is."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from scfm.cli.app import main
from scfm.model.pretrained import ScfmModel
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_run import PretrainRun
from scfm.train.checkpoint import CheckpointConfig
from scfm.train.datamodule import LoaderConfig
from scfm.train.trainer import TrainConfig
from tests.toys import SIZES, toy_counts, toy_vocab


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    vocab = toy_vocab()
    anndata.AnnData(
        toy_counts(np.random.default_rng(1), 30, vocab.n_genes).astype(np.float32),
        var=pd.DataFrame(index=list(vocab.symbols)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(30)]),
    ).write_h5ad(folder / "cells.h5ad")
    run = PretrainRun(
        data=(str(folder / "cells.h5ad"),),
        model=SIZES,
        loader=LoaderConfig(batch_size=8, held_out_share=0.2),
        train=TrainConfig(steps=4, accelerator="cpu"),
        checkpoints=CheckpointConfig(every_n_steps=2),
    )
    pretrain(run, folder / "run", vocab=vocab)
    # the oracle for step 2: the schedule is of four steps, so a run of two would differ
    state = torch.load(folder / "run" / "checkpoints" / "step=2" / "state.pt", weights_only=True)
    torch.save(state["state_dict"], folder / "step2.pt")
    return folder / "run"


def export(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_newest_is_the_runs_own_model(run_folder, tmp_path, capsys):
    assert export(run_folder, "--out", tmp_path / "model", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(tmp_path / "model")
    ours = ScfmModel.from_pretrained(tmp_path / "model")
    theirs = ScfmModel.from_pretrained(run_folder / "model")
    for (name, x), y in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    volatile = {"seconds_of_last_session"}
    assert ours.provenance == {k: v for k, v in theirs.provenance.items() if k not in volatile}


def test_an_earlier_step(run_folder, tmp_path):
    assert export(f"{run_folder}@2", "--out", tmp_path / "model") == 0
    model = ScfmModel.from_pretrained(tmp_path / "model")
    assert model.provenance["steps"] == 2
    wanted = torch.load(run_folder.parent / "step2.pt", weights_only=True)
    for name, ours in model.state_dict().items():
        assert torch.equal(ours, wanted[f"model.{name}"]), name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{run}@3", "There are: 2, 4."),
        ("{run}@last", "must be a step"),
        ("{run}/checkpoints", "is no run folder"),
        ("{run}x@2", "is no run folder"),
    ],
)
def test_refusals(run_folder, tmp_path, capsys, source, message):
    assert export(source.format(run=run_folder), "--out", tmp_path / "model") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("out", ["/dev/null/model", "/dev/null/deeper/model"])
def test_output_below_a_file_is_refused(run_folder, capsys, out):
    assert export(run_folder, "--out", out) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_existing_output_is_refused(run_folder, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert export(run_folder, "--out", tmp_path / "model") == 2
    assert "exists already" in capsys.readouterr().err
