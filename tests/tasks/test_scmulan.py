"""scMulan is pretrained by the same trainer: it learns words, resumes, and is exported."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.config import to_yaml
from scfm.errors import ConfigError, Interrupted, LabelError
from scfm.model.families import load_model
from scfm.model.scmulan import ScmulanModel
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_objective import SentenceObjectiveConfig
from scfm.tasks.pretrain_run import ScmulanRun, load_run, read_run
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.words import Words
from scfm.train.loggers import read_metrics
from tests.toys import toy_counts
from tests.train.toy_runs import assert_same_end, changed, stop_at
from tests.train.warm_processes import run_processes

WORDS = ["tokens.columns=[organ, coarse, fine]", "tokens.types=[coarse, fine]"]
SETTINGS = [
    *("train.accelerator=cpu", "logging.every_n_steps=1", "tokens.n_genes=30", *WORDS),
    *("model.d_model=16", "model.n_layers=2", "model.n_heads=2"),
    *("loader.batch_size=6", "loader.held_out_share=0.2"),
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """Forty cells of four types, each with genes of its own, of two organs."""
    rng = np.random.default_rng(5)
    symbols = GeneVocab.human().symbols[:60]
    kind = np.arange(40) % 4
    counts = toy_counts(rng, 40, 60).toarray()
    for of_kind in range(4):
        counts[kind == of_kind, 8 * of_kind : 8 * of_kind + 8] += rng.poisson(20, (10, 8))
    adata = ad.AnnData(counts.astype(np.float32))
    adata.var_names, adata.obs_names = list(symbols), [f"c{i}" for i in range(40)]
    adata.obs["organ"] = ["Blood", "Heart"] * 20
    adata.obs["coarse"] = [["T cell", "T cell", "B cell", "B cell"][k] for k in kind]
    adata.obs["fine"] = [["CD4 T", "CD8 T", "naive B", "plasma"][k] for k in kind]
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture
def run(cells) -> ScmulanRun:
    more = ["train.steps=6", "train.validate_every=3", "checkpoints.every_n_steps=2"]
    found = load_run("scmulan-tiny", [*SETTINGS, *more])
    assert isinstance(found, ScmulanRun)
    return replace(found, data=(str(cells),))


def test_the_family_comes_back_from_a_run_folder(run, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert read_run(tmp_path) == run


def test_vocabulary_is_of_the_data_and_without_data_the_published(run):
    words = Words(run.vocab())
    assert list(words.columns) == ["organ", "coarse", "fine"]
    assert run.vocab().n_genes == 30
    assert replace(run, data=()).vocab() == GeneVocab.scmulan()


def test_bins_of_tokens_and_model_must_agree():
    with pytest.raises(ConfigError, match=r"model\.n_bins \(10\) and tokens\.n_bins \(5\)"):
        load_run("scmulan-tiny", ["tokens.n_bins=5"])


@pytest.mark.parametrize("stopped_at", [3])
def test_interrupted_run_ends_as_if_never_stopped(run, tmp_path, monkeypatch, stopped_at):
    """With dropout, shuffled genes and sentences drawn in training."""
    run = changed(run, model={"dropout": 0.2})
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        with pytest.raises(Interrupted):
            pretrain(run, tmp_path / "stopped")
    resume(tmp_path / "stopped")
    pretrain(run, tmp_path / "straight")
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")


def test_data_without_the_column_are_refused_before_anything_is_written(run, tmp_path):
    run = changed(run, tokens={"columns": ("tissue",), "types": ()})
    with pytest.raises(LabelError, match="tissue"):
        pretrain(run, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_trained_model_says_types_and_makes_cells_of_them(cells, tmp_path):
    """Types with genes of their own are learned in seconds, and generated with these genes."""
    run = replace(load_run("scmulan-tiny", [*SETTINGS, *LEARNING]), data=(str(cells),))
    model = scfm.load(pretrain(run, tmp_path / "run"))
    assert isinstance(model, ScmulanModel)
    assert model.types == ("coarse", "fine")
    assert 0 < model.provenance["share_in_vocabulary"] <= 1
    losses = [
        float(r["val_loss"]) for r in read_metrics(tmp_path / "run/metrics.csv") if r["val_loss"]
    ]
    assert losses[-1] < 0.5 * losses[0]
    adata = ad.read_h5ad(cells)
    scfm.tl.annotate(adata, model, min_confidence=0.0)
    assert (adata.obs["scfm_cell_type"].astype(str) == adata.obs["fine"]).mean() > 0.8
    made = scfm.tl.generate(model, {"fine": "plasma"}, n_cells=30, end_weight=0.1)
    means = {kind: gene_means(adata, made, kind) for kind in adata.obs["fine"].unique()}
    ours = np.asarray(made.X.mean(0)).ravel()
    r = {kind: np.corrcoef(ours, mean)[0, 1] for kind, mean in means.items()}
    assert max(r, key=lambda kind: r[kind]) == "plasma"


LEARNING = [
    *("train.steps=600", "train.validate_every=200", "optim.lr=5.0e-3", "model.d_model=32"),
    *("loader.batch_size=16", "tokens.annotate_share=0.5", "tokens.generate_share=0.5"),
    *("tokens.complete_share=0", "objective.metadata_weight=30"),
]


def gene_means(real: ad.AnnData, made: ad.AnnData, kind: str) -> np.ndarray:
    """Mean log1p(cp10k) of a type's real cells, over the genes of the made ones."""
    counts = real.X.astype(np.float64)
    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    columns = real.var_names.get_indexer(made.var_names)
    return values[(real.obs["fine"] == kind).to_numpy()][:, columns].mean(0)


def test_options_of_the_objective_are_checked():
    with pytest.raises(ValueError, match="value_weight must be at least 0"):
        SentenceObjectiveConfig(value_weight=-1.0)
    with pytest.raises(ConfigError, match=r"objective\.end_target: .*'last' or 'always'"):
        load_run("scmulan-tiny", ["objective.end_target=never"])


@pytest.mark.multiprocess
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_3"])
def test_processes_make_the_same_steps(alone, cells, tmp_path, strategy):
    """Heads are asked for some words and for none; sharded weights must be whole then."""
    out = tmp_path / "run"
    found = numbers_of(train(cells, out, 2, [f"train.strategy={strategy}", "train.accumulate=2"]))
    for name, wanted in numbers_of(alone).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, err_msg=name)
    ours, theirs = (load_model(run).state_dict() for run in (out, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def alone(cells, tmp_path_factory) -> Path:
    """The oracle: one process, the whole batch at once."""
    return train(cells, tmp_path_factory.mktemp("alone") / "run", 1, [])


def train(cells: Path, out: Path, n_processes: int, more: list[str]) -> Path:
    settings = [*SETTINGS, "train.steps=4", "train.validate_every=2", *more]
    done = run_processes(
        n_processes,
        [
            *("pretrain", "--config", "scmulan-tiny", "--data", str(cells), "--out", str(out)),
            *(word for setting in settings for word in ("--set", setting)),
        ],
    )
    assert done.returncode == 0, done.stderr
    return out


def numbers_of(run: Path) -> dict[str, np.ndarray]:
    rows = read_metrics(run / "metrics.csv")
    names = ("loss", "gradient_norm", "val_loss")
    return {name: np.array([float(row[name]) for row in rows if row[name]]) for name in names}
