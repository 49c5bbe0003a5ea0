"""scFoundation is pretrained by the same trainer: it learns, resumes, and is exported."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scfm
from scfm.config import to_yaml
from scfm.errors import Interrupted
from scfm.model.families import load_model
from scfm.model.scfoundation import ScfoundationModel
from scfm.objectives.regression import mean_squared_error
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_objective import MaskedObjectiveConfig
from scfm.tasks.pretrain_run import ScfoundationRun, load_run, read_run
from scfm.tasks.run_data import open_data
from scfm.tokens.vocab import GeneVocab
from scfm.train.datamodule import HeldOutLoader
from scfm.train.loggers import read_metrics
from tests.toys import toy_counts
from tests.train.toy_runs import assert_same_end, changed, stop_at
from tests.train.warm_processes import run_processes

SETTINGS = [
    *("train.accelerator=cpu", "logging.every_n_steps=1", "model.redraw_every=3"),
    *("model.d_model=16", "model.n_layers=1", "model.d_decoder=8", "model.n_decoder_layers=2"),
    *("model.d_head=8", "loader.batch_size=6", "loader.held_out_share=0.2"),
]


def first_genes(n: int) -> GeneVocab:
    """A small vocabulary of the family's form."""
    whole = GeneVocab.scfoundation()
    return replace(whole, symbols=whole.symbols[:n], ensembl_ids=whole.ensembl_ids[:n])


@pytest.fixture
def vocab() -> GeneVocab:
    return first_genes(60)


@pytest.fixture
def run(tmp_path, rng, vocab) -> ScfoundationRun:
    adata = ad.AnnData(toy_counts(rng, 40, vocab.n_genes).astype(np.float32))
    adata.var_names = list(vocab.symbols)
    adata.obs_names = [f"c{i}" for i in range(40)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    more = ["train.steps=8", "train.validate_every=4", "checkpoints.every_n_steps=2"]
    found = load_run("scfoundation-tiny", [*SETTINGS, *more])
    assert isinstance(found, ScfoundationRun)
    return replace(found, data=(str(tmp_path / "cells.h5ad"),))


def test_the_family_comes_back_from_a_run_folder(run, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert read_run(tmp_path) == run


@pytest.mark.parametrize("stopped_at", [2, 5])  # before and after the features are drawn anew
def test_interrupted_run_ends_as_if_never_stopped(run, vocab, tmp_path, monkeypatch, stopped_at):
    """With dropout, masks and random features drawn in training."""
    run = changed(run, model={"dropout": 0.2})
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        with pytest.raises(Interrupted):
            pretrain(run, tmp_path / "stopped", vocab=vocab)
    resume(tmp_path / "stopped")
    pretrain(run, tmp_path / "straight", vocab=vocab)
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")


def test_exported_model_embeds(run, vocab, tmp_path):
    model = scfm.load(pretrain(run, tmp_path / "run", vocab=vocab))
    assert isinstance(model, ScfoundationModel)
    assert model.provenance["run"]["family"] == "scfoundation"
    adata = ad.read_h5ad(run.data[0])
    scfm.tl.embed(adata, model)
    assert adata.obsm["X_scfm"].shape == (40, 4 * 16)
    assert adata.uns["scfm"]["X_scfm"]["target_depth"] == "t4"
    assert adata.uns["scfm"]["X_scfm"]["pooling"] == "all"


def test_zeros_may_weigh_less():
    """Of a cell with one expressed gene and one zero: (4 + w x 1) / (1 + w)."""
    weight = torch.tensor([1.0, 0.25])
    found = mean_squared_error(
        torch.tensor([2.0, 1.0]), torch.zeros(2), torch.zeros(2, dtype=torch.long), 1, weight
    )
    assert found.item() == pytest.approx((4 + 0.25) / 1.25)
    assert MaskedObjectiveConfig(zero_weight=0.25).weights == {"decoder": 1.0}


@pytest.mark.multiprocess
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_2"])
def test_processes_make_the_same_steps(alone, demo_sample, tmp_path, strategy):
    """Over all genes, with random features drawn anew on the way; and the export is the model."""
    out = tmp_path / "run"
    settings = [f"train.strategy={strategy}", "train.accumulate=2"]
    found = numbers_of(train(demo_sample, out, 2, settings))
    for name, wanted in numbers_of(alone).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, err_msg=name)
    ours, theirs = (load_model(run).state_dict() for run in (out, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4, msg=name)
        if "directions" in name:
            assert torch.equal(ours[name], weight), name


@pytest.fixture(scope="module")
def demo_sample(demo_cells, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::50].copy().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def alone(demo_sample, tmp_path_factory) -> Path:
    """The oracle: one process, the whole batch at once."""
    return train(demo_sample, tmp_path_factory.mktemp("alone") / "run", 1, [])


def train(cells: Path, out: Path, n_processes: int, more: list[str]) -> Path:
    settings = [*SETTINGS, "train.steps=4", "train.validate_every=2", *more]
    done = run_processes(
        n_processes,
        [
            *("pretrain", "--config", "scfoundation-tiny", "--data", str(cells), "--out", str(out)),
            *(word for setting in settings for word in ("--set", setting)),
        ],
    )
    assert done.returncode == 0, done.stderr
    return out


def numbers_of(run: Path) -> dict[str, np.ndarray]:
    rows = read_metrics(run / "metrics.csv")
    names = ("loss", "gradient_norm", "val_loss")
    return {name: np.array([float(row[name]) for row in rows if row[name]]) for name in names}


@pytest.mark.slow
def test_guesses_better_than_the_mean_of_each_gene(demo_cells, tmp_path):
    """On real cells, by the squared error of held-out cells' selected genes."""
    vocab, cells = most_expressed(demo_cells / "zheng_facs_pbmc.h5ad", 200)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    run = load_run("scfoundation-tiny", ["train.accelerator=cpu", *LEARNING])
    run = replace(run, data=(str(tmp_path / "cells.h5ad"),))
    pretrain(run, tmp_path / "run", vocab=vocab)
    errors = [
        float(r["val_loss"]) for r in read_metrics(tmp_path / "run/metrics.csv") if r["val_loss"]
    ]
    of_means = error_of_gene_means(run, vocab)
    assert errors[0] > of_means > 1.05 * errors[-1]


LEARNING = [
    *("loader.batch_size=16", "loader.held_out_share=0.1", "optim.lr=3.0e-3"),
    *("train.steps=120", "train.validate_every=40", "input.minimum_coverage=0"),
    "loader.max_held_out=128",
]


def most_expressed(path: Path, n: int) -> tuple[GeneVocab, ad.AnnData]:
    """The genes with most counts, as a vocabulary, and the cells."""
    cells, whole = ad.read_h5ad(path), GeneVocab.scfoundation()
    names = cells.var.get("symbol", cells.var_names)
    totals = dict(zip(names, np.asarray(cells.X.sum(0)).ravel(), strict=True))
    known = sorted(range(whole.n_genes), key=lambda g: -totals.get(whole.symbols[g], 0))[:n]
    chosen = sorted(known)
    return replace(
        whole,
        symbols=tuple(whole.symbols[g] for g in chosen),
        ensembl_ids=tuple(whole.ensembl_ids[g] for g in chosen),
    ), cells


def error_of_gene_means(run: ScfoundationRun, vocab: GeneVocab) -> float:
    """The validation loss of guessing every gene's mean over the training cells."""
    data = open_data(run, vocab)
    (member,) = data.pool.members
    shown = member.tokenizer.shown(
        data.pool.sources[0].rows(np.flatnonzero(data.split.is_training))
    )
    sums = np.bincount(shown.gene_ids, weights=shown.values, minlength=len(vocab))
    means = torch.tensor(sums / shown.n_cells, dtype=torch.float32)
    found = []
    for batch in HeldOutLoader(data.pool, data.split.judged):
        cells = batch.cells
        cell_of = torch.repeat_interleave(torch.arange(cells.n_cells), cells.offsets.diff().long())
        loss = mean_squared_error(
            means[cells.gene_ids[cells.is_target]],
            cells.target_values[cells.is_target],
            cell_of[cells.is_target],
            cells.n_cells,
        )
        found.append((cells.n_cells, loss.item()))
    sizes, losses = np.array(found).T
    return float(np.average(losses, weights=sizes))
