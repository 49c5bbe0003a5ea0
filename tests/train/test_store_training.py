"""Runs on stores: the same end however often interrupted, on the manifest they began with; donors
held out whole, and copies across the two sides said aloud."""

import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scfm.data.store import Store
from scfm.errors import InputError, Interrupted, LabelError, ScfmWarning
from scfm.model.pretrained import ScfmModel
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_run import PretrainRun
from scfm.tasks.run_data import open_data
from scfm.train.checkpoint import CheckpointConfig
from scfm.train.datamodule import LoaderConfig
from scfm.train.optim import OptimConfig
from scfm.train.trainer import TrainConfig
from tests.toy_stores import write_store
from tests.toys import SIZES, toy_adata, toy_vocab
from tests.train.toy_runs import assert_same_end, stop_at


def with_donors(adata: ad.AnnData, *donors: str) -> ad.AnnData:
    adata.obs["donor_id"] = [donors[i % len(donors)] for i in range(adata.n_obs)]
    return adata


@pytest.fixture
def store(rng, tmp_path) -> Path:
    data = {
        "a.h5ad": with_donors(toy_adata(rng, 60), "d1", "d2", "d3"),
        "b.h5ad": with_donors(toy_adata(rng, 41), "d4", "d5"),
    }
    return write_store(tmp_path / "store", data, obs=("donor_id", "cell_type"))


@pytest.fixture
def run(store) -> PretrainRun:
    return PretrainRun(
        data=(str(store),),
        model=SIZES,
        loader=LoaderConfig(batch_size=9, lanes=6, prefetch=2, held_out_share=0.2),
        optim=OptimConfig(warmup_steps=2),
        train=TrainConfig(steps=8, validate_every=4, accelerator="cpu"),
        checkpoints=CheckpointConfig(every_n_steps=3),
        logging=replace(PretrainRun().logging, every_n_steps=1),
    )


def stopped(run, out, monkeypatch, step: int = 5) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted):
            pretrain(run, out, vocab=toy_vocab())


@pytest.mark.parametrize("loader", [{}, {"batch_tokens": 900}, {"balance": "dataset"}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_interrupted_run_ends_as_if_never_stopped(run, tmp_path, monkeypatch, loader, accumulate):
    run = replace(
        run,
        loader=replace(run.loader, **loader),
        train=replace(run.train, accumulate=accumulate),
    )
    pretrain(run, tmp_path / "straight", vocab=toy_vocab())
    stopped(run, tmp_path / "stopped", monkeypatch)
    resume(tmp_path / "stopped")
    assert_same_end(tmp_path / "straight", tmp_path / "stopped")


def test_a_run_goes_on_with_the_manifest_it_began_with(run, store, rng, tmp_path, monkeypatch):
    """More cells came into the store meanwhile: the run does not see them."""
    pretrain(run, tmp_path / "straight", vocab=toy_vocab())
    stopped(run, tmp_path / "stopped", monkeypatch)
    write_store(
        store, {"c.h5ad": with_donors(toy_adata(rng, 30), "d6")}, obs=("donor_id", "cell_type")
    )
    resume(tmp_path / "stopped")
    assert_same_end(tmp_path / "straight", tmp_path / "stopped")
    recorded = json.loads((tmp_path / "stopped" / "data.json").read_text())
    assert recorded["n_cells"] == 101
    assert recorded["stores"] == [
        {
            "path": str(store),
            "manifest": 1,
            "manifest_sha256": Store(store, manifest=1).manifest.hash,
        }
    ]
    provenance = ScfmModel.from_pretrained(tmp_path / "stopped").provenance
    assert provenance["data"]["stores"] == [["store", Store(store, manifest=1).manifest.hash]]


def test_a_store_without_the_manifest_of_the_run_is_refused(run, store, tmp_path, monkeypatch):
    stopped(run, tmp_path / "run", monkeypatch)
    (store / "manifests" / "000001.json").unlink()
    with pytest.raises(InputError, match=r"manifest it then had .* is gone"):
        resume(tmp_path / "run")


def test_another_store_in_its_place_is_refused(run, store, rng, tmp_path, monkeypatch):
    stopped(run, tmp_path / "run", monkeypatch)
    store.rename(tmp_path / "old")
    with pytest.raises(InputError, match=r"is gone\. Put it back"):
        resume(tmp_path / "run")
    write_store(store, {"a.h5ad": with_donors(toy_adata(rng, 60), "d1")}, obs=("donor_id",))
    with pytest.raises(InputError, match="another store than this run was started with"):
        resume(tmp_path / "run")


def test_donors_are_held_out_whole(run, tmp_path):
    held_out = replace(run.loader, held_out_by="donor_id", held_out_share=0.3, max_held_out=7)
    pretrain(replace(run, loader=held_out), tmp_path / "run", vocab=toy_vocab())
    recorded = json.loads((tmp_path / "run" / "data.json").read_text())
    found = recorded["held_out"]
    assert found["by"] == "donor_id"
    assert len(found["groups"]) + found["n_groups_training"] == 5
    assert found["n_judged"] == 7
    assert recorded["n_training"] + recorded["n_held_out"] == 101
    assert 0 < recorded["n_held_out"] <= 0.3 * 101
    assert (found["copies_in_training"]["exact"], found["copies_in_training"]["near"]) == (0, 0)


def test_no_donor_is_on_both_sides_of_a_mixed_pool(run, rng, tmp_path):
    """A store and a file that share donors."""
    with_donors(toy_adata(rng, 40), "d1", "d4", "d9").write_h5ad(tmp_path / "more.h5ad")
    loader = replace(run.loader, held_out_by="donor_id", held_out_share=0.4)
    run = replace(run, data=(*run.data, str(tmp_path / "more.h5ad")), loader=loader)
    data = open_data(run, toy_vocab())
    codes, names = data.pool.column("donor_id")
    sides = [
        {names[c] for c in codes[side]} for side in (data.split.is_training, data.split.is_held_out)
    ]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(names) == {"d1", "d2", "d3", "d4", "d5", "d9"}


def test_copies_across_the_two_sides_are_said_aloud(run, rng, tmp_path):
    """One donor's cells under another name: the split by donor cannot know, the hashes do."""
    one = with_donors(toy_adata(rng, 30), "d1")
    one.X = sp.csr_matrix(rng.poisson(2, one.shape).astype(np.float32))
    one.write_h5ad(tmp_path / "one.h5ad")
    with_donors(one.copy(), "renamed").write_h5ad(tmp_path / "two.h5ad")
    loader = replace(run.loader, held_out_by="donor_id", held_out_share=0.5)
    data = (str(tmp_path / "one.h5ad"), str(tmp_path / "two.h5ad"))
    run = replace(run, data=data, loader=loader, train=replace(run.train, steps=1))
    with pytest.warns(ScfmWarning, match=r"30 of 30 held-out cells .* are exact copies"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    recorded = json.loads((tmp_path / "run" / "data.json").read_text())
    assert recorded["held_out"]["copies_in_training"]["exact"] == 30


def test_cells_without_a_donor_are_said_aloud(run, rng, tmp_path):
    adata = with_donors(toy_adata(rng, 40), "d1", "d2")
    adata.obs.loc[adata.obs_names[:3], "donor_id"] = np.nan
    adata.write_h5ad(tmp_path / "cells.h5ad")
    loader = replace(run.loader, held_out_by="donor_id", held_out_share=0.5)
    run = replace(run, data=(str(tmp_path / "cells.h5ad"),), loader=loader)
    with pytest.warns(ScfmWarning, match="3 cells have no value in 'donor_id'"):
        data = open_data(run, toy_vocab())
    assert data.split.is_training[:3].all()


def test_a_column_that_is_not_there_is_named(run):
    loader = replace(run.loader, held_out_by="study")
    with pytest.raises(LabelError, match=r"no obs column 'study'.*donor_id"):
        open_data(replace(run, loader=loader), toy_vocab())


def test_a_store_trains_as_its_blocks_do_whatever_is_kept(run, store, tmp_path, monkeypatch):
    """How many blocks are kept in memory is speed, not result."""
    pretrain(run, tmp_path / "one", vocab=toy_vocab())
    original = Store.keep_blocks
    monkeypatch.setattr(Store, "keep_blocks", lambda self, n: original(self, 2))
    pretrain(run, tmp_path / "two", vocab=toy_vocab())
    assert_same_end(tmp_path / "one", tmp_path / "two")


def test_a_file_on_disk_trains_in_blocks(run, rng, tmp_path, monkeypatch):
    """Directly on h5ad, larger than what is read into memory; and again after a stop."""
    monkeypatch.setattr("scfm.data.read.MEMORY_LIMIT", 0)
    toy_adata(rng, 100).write_h5ad(tmp_path / "cells.h5ad")
    run = replace(run, data=(str(tmp_path / "cells.h5ad"),))
    assert open_data(run, toy_vocab()).pool.blocks.n_cells.max() == 16
    pretrain(run, tmp_path / "straight", vocab=toy_vocab())
    stopped(run, tmp_path / "stopped", monkeypatch)
    resume(tmp_path / "stopped")
    assert_same_end(tmp_path / "straight", tmp_path / "stopped")
