"""scfm finetune celltype from end to end: the folder it leaves, what uses it, what it refuses."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scfm
from scfm.errors import ConfigError, ScfmWarning
from scfm.evaluate.integration_scores import integration_scores
from scfm.model.base import save_model
from scfm.tasks.celltype import CelltypeConfig
from scfm.tools.annotation import annotate_file
from scfm.tools.celltype_finetuning import finetune_celltype
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig
from tests.cli.test_refusals import assert_refused, run
from tests.toys import toy_adata, toy_model, toy_scfoundation, toy_scmulan

SHORT = ("--set", "train.steps=4", "--set", "train.validate_every=2", "--device", "cpu")
TRAIN = TrainConfig(steps=4, validate_every=2, accelerator="cpu")


def labelled(n_cells: int = 90) -> ad.AnnData:
    """Two types in six donors; a few cells without a label."""
    adata = toy_adata(np.random.default_rng(7), n_cells=n_cells)
    adata.obs["donor"] = [f"d{i % 6}" for i in range(n_cells)]
    adata.obs["cell_type"] = adata.obs["cell_type"].map({"A": "T cell", "B": "B cell"}).astype(str)
    adata.obs.loc[adata.obs_names[:3], "cell_type"] = [None, "NA", "unknown"]
    return adata


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("finetune")
    labelled().write_h5ad(folder / "cells.h5ad")
    save_model(toy_model(), folder / "model")
    return {"cells": folder / "cells.h5ad", "model": folder / "model", "folder": folder}


@pytest.fixture(scope="module")
def tuned(files) -> Path:
    """The command as a user types it, with LoRA on held-out donors."""
    import contextlib
    import io

    from scfm.cli.app import main

    out = files["folder"] / "run"
    command = [
        *("finetune", "celltype", files["cells"], "--label", "cell_type", "--holdout", "donor"),
        *("--model", files["model"], "--out", out, *SHORT, "--json"),
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        main(list(map(str, command)))
    assert stopped.value.code in (None, 0)
    assert json.loads(printed.getvalue().splitlines()[-1])["model"] == str(out / "model")
    return out


def test_the_folder_says_what_was_done(tuned):
    assert {p.name for p in tuned.iterdir()} == {
        *("config.yaml", "metrics.csv", "metrics.json", "model")
    }
    found = json.loads((tuned / "metrics.json").read_text())
    made = json.loads((tuned / "model" / "provenance.json").read_text())["finetuned"]
    assert next(iter(found)) == "verdict"
    assert found["verdict"] == made["verdict"]
    keys = [method["key"] for method in found["evaluation"]["methods"]]
    assert keys == ["finetuned", "probe", "majority", "pca_logistic", "hvg_logistic"]
    groups = made["split"]["groups"]
    donors = [*groups["training"], *groups["validation"], *groups["judged"]]
    assert sorted(donors) == [f"d{i}" for i in range(6)]
    sizes = [made["split"][f"n_{side}"] for side in ("training", "validation", "judged")]
    assert sum(sizes) == 87
    assert made["data"]["left_out"] == {"no label": 3}
    assert found["best_step"] == made["best_step"]
    assert found["validation_curve"][0][0] == 0
    card = (tuned / "model" / "README.md").read_text()
    assert found["verdict"] in card
    assert "T cell (CL:0000084)" in card
    assert "no 'donor' is on two sides" in card
    assert str(tuned.parent) not in card + json.dumps(made)  # no path of this machine


def test_annotation_needs_no_reference(tuned, files, tmp_path):
    """By AnnData and by file alike, and whatever the batch size; the classifier's own argmax."""
    model, adata = scfm.load(tuned), ad.read_h5ad(files["cells"])
    scfm.tl.annotate(adata, model, min_confidence=0.0)
    known = adata.obs["cell_type"].isin(["T cell", "B cell"])
    said = adata.obs["scfm_cell_type"].astype(str)
    assert (said[known] == adata.obs["cell_type"].astype(str)[known]).all()
    assert list(adata.obs["scfm_cell_type"].cat.categories) == ["B cell", "T cell", "unknown"]
    other = np.where(said == "T cell", "B cell", "T cell")
    np.testing.assert_array_equal(adata.obs["scfm_runner_up"].astype(str), other)
    assert adata.uns["scfm"]["scfm"]["by"] == "classifier"
    assert adata.uns["scfm"]["scfm"]["terms"] == {"B cell": "CL:0000236", "T cell": "CL:0000084"}
    summary = annotate_file(
        files["cells"], model, tmp_path / "out.h5ad", min_confidence=0.0, batch_size=7
    )
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_series_equal(out.obs["scfm_cell_type"], adata.obs["scfm_cell_type"])
    np.testing.assert_allclose(
        out.obs["scfm_confidence"], adata.obs["scfm_confidence"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(out.obsm["X_scfm"], adata.obsm["X_scfm"], rtol=1e-4, atol=1e-5)
    assert "classifier of 2 types" in str(summary)
    scfm.tl.embed(adata, model, key_added="again")
    np.testing.assert_allclose(adata.obsm["again"], adata.obsm["X_scfm"], rtol=1e-5, atol=1e-5)


def test_a_name_more_likely_wrong_than_right_is_not_given(tuned):
    """However well the validation cells are named: others will come."""
    assert scfm.load(tuned).calibration["threshold"] >= 0.5


def test_unsure_cells_are_unknown(tuned, files):
    model, adata = scfm.load(tuned), ad.read_h5ad(files["cells"])
    model.calibration = {**model.calibration, "temperature": 20.0}  # of toys, they are all sure
    scfm.tl.annotate(adata, model)
    middle = float(adata.obs["scfm_confidence"].sort_values().iloc[44:46].mean())
    scfm.tl.annotate(adata, model, min_confidence=middle)
    is_sure = adata.obs["scfm_confidence"] >= middle
    assert ((adata.obs["scfm_cell_type"] == "unknown") == ~is_sure).all()
    assert 0 < is_sure.mean() < 1
    with pytest.raises(ConfigError, match="says types by its classifier"):
        scfm.tl.annotate(adata, model, smooth=True)


def test_info_names_the_types(capsys, tuned):
    code, out, _ = run(capsys, "info", tuned)
    assert code == 0
    assert "says 2 types: B cell, T cell" in out
    assert "finetune celltype" in out
    code, out, _ = run(capsys, "info", tuned, "--json")
    assert json.loads(out)["classifier"]["labels"] == ["B cell", "T cell"]


@pytest.mark.parametrize("make", [toy_scfoundation, toy_scmulan])
def test_other_families(make, tmp_path):
    config = CelltypeConfig(method="full", train=TRAIN)
    found = finetune_celltype(
        *(labelled(), make(), tmp_path / "run"),
        label_key="cell_type",
        holdout="donor",
        config=config,
    )
    assert found is not None
    assert found.evaluation is not None
    assert found.evaluation.method("finetuned").macro_f1.value > 0.9
    adata = labelled(30)
    scfm.tl.annotate(adata, tmp_path / "run", min_confidence=0)
    known = adata.obs["cell_type"].isin(["T cell", "B cell"])
    assert (adata.obs["scfm_cell_type"].astype(str) == adata.obs["cell_type"])[known].all()


def test_fine_tuning_never_ends_above_the_probe_in_validation_loss(tmp_path):
    """Even where every step does harm: then the probe is what is kept. Labels are drawn by lot."""
    adata = labelled()
    adata.obs["cell_type"] = np.random.default_rng(1).choice(["A", "B"], len(adata))
    harm = CelltypeConfig(
        method="full", train=TRAIN, judged_share=0, optim=OptimConfig(lr=3.0, warmup_steps=0)
    )
    with pytest.warns(ScfmWarning, match="optimistic about new donors"):
        found = finetune_celltype(
            *(adata, toy_model(), tmp_path / "run"), label_key="cell_type", config=harm
        )
    assert found is not None
    assert found.fitted.best_step == 0
    assert found.evaluation is None
    assert found.verdict.startswith("No cells were held out")
    model = scfm.load(tmp_path / "run")
    untouched = toy_model().state_dict()
    assert all((model.state_dict()[name] == w).all() for name, w in untouched.items())


def test_batches_are_brought_together_and_types_kept_apart(tmp_path):
    """Judged by scfm evaluate integration's own scores, before and after; a strong batch effect."""
    adata = toy_adata(np.random.default_rng(3), n_cells=120)
    batch = np.random.default_rng(4).integers(0, 2, 120)
    counts = adata.X.toarray()
    counts[batch == 1, 20:32] += 25
    adata.X = counts
    adata.obs["batch"] = [f"b{b}" for b in batch]
    config = CelltypeConfig(
        method="full",
        train=TrainConfig(steps=30, validate_every=30, accelerator="cpu"),
        optim=OptimConfig(lr=3e-3, warmup_steps=5),
        integrate="contrastive",
        judged_share=0,
    )
    with pytest.warns(ScfmWarning, match="optimistic"):
        finetune_celltype(
            *(adata, toy_model(), tmp_path / "run"),
            label_key="cell_type",
            batch_key="batch",
            config=config,
        )
    scores = []
    for model in (toy_model(), scfm.load(tmp_path / "run")):
        scfm.tl.embed(adata, model)
        obs = (adata.obs["cell_type"].to_numpy(), adata.obs["batch"].to_numpy())
        scores.append(integration_scores(adata.obsm["X_scfm"], *obs))
    before, after = scores
    assert after["batch"] > before["batch"] + 0.03
    assert after["biological"] > before["biological"] + 0.1


def one_type(obs):
    return obs.assign(cell_type="T cell")


def no_labels(obs):
    return obs.assign(cell_type=np.nan)


def one_donor(obs):
    return obs.assign(donor="d")


def measurements(obs):
    return obs.assign(cell_type=np.linspace(0, 1, len(obs)))


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (one_type, (), ["only 'T cell' is left", "--label"]),
        (no_labels, (), ["no type is left", "--label"]),
        (one_donor, (), ["cannot be held out", "only 'd'", "--holdout"]),
        (measurements, (), ["a measurement", "--label"]),
        (None, ("--label", "celltype"), ["no obs column 'celltype'", "cell_type"]),
        (None, ("--holdout", "site"), ["no obs column 'site'", "donor"]),
        (None, ("--method", "prompt"), ["method", "'probe', 'partial', 'lora' or 'full'"]),
        (None, ("--set", "optimm.lr=1"), ["unknown key 'optimm'", "Did you mean 'optim'"]),
        (None, ("--set", "judged_share=0.95"), ["judged_share"]),
        (None, ("--integrate", "contrastive"), ["no batches are named", "--batch-key"]),
        (None, ("--batch-key", "donor"), ["batches have no meaning", "--integrate"]),
        (
            None,
            ("--integrate", "contrastive", "--batch-key", "donor", "--method", "probe"),
            ["a probe leaves it as it is"],
        ),
        (None, ("--pooling", "maximum"), ["pooling is 'maximum'"]),
        (None, ("--species", "mouse"), ["mouse"]),
    ],
)
def test_what_cannot_be_learned_from_is_refused(capsys, files, tmp_path, change, more, words):
    adata = ad.read_h5ad(files["cells"])
    if change is not None:
        adata.obs = change(adata.obs)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    given = {
        "--label": "cell_type",
        "--holdout": "donor",
        **dict(zip(more[::2], more[1::2], strict=True)),
    }
    result = run(
        capsys,
        *("finetune", "celltype", tmp_path / "cells.h5ad", "--model", files["model"]),
        *("--out", tmp_path / "run", "--device", "cpu"),
        *(word for pair in given.items() for word in pair),
    )
    assert_refused(result, *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_files_is_not_written_into(capsys, files, tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    result = run(
        capsys,
        *("finetune", "celltype", files["cells"], "--model", files["model"], "--label"),
        *("cell_type", "--holdout", "donor", "--out", tmp_path, "--device", "cpu"),
    )
    assert_refused(result, "already holds files")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_rare_types_and_codes_are_said(tmp_path):
    adata = labelled()
    adata.obs.loc[adata.obs_names[10], "cell_type"] = "platelet"
    config = CelltypeConfig(method="probe")
    with pytest.warns(ScfmWarning, match="'platelet' .* there is one cell each"):
        found = finetune_celltype(
            *(adata, toy_model(), tmp_path / "run"),
            label_key="cell_type",
            holdout="donor",
            config=config,
        )
    assert found is not None
    assert scfm.load(tmp_path / "run").classifier.spec.labels == ("B cell", "T cell")
    adata.obs["code"] = np.arange(len(adata)) % 2
    with pytest.warns(ScfmWarning, match="holds codes"):
        finetune_celltype(
            *(adata, toy_model(), tmp_path / "codes"),
            label_key="code",
            holdout="donor",
            config=config,
        )
    assert scfm.load(tmp_path / "codes").classifier.spec.labels == ("0", "1")


def test_types_back_off_in_the_ontology(tuned, files, tmp_path):
    """Two types are both lymphocytes: a threshold that neither reaches alone says so."""
    model, cells = scfm.load(tuned), ad.read_h5ad(files["cells"])
    model.calibration = {**model.calibration, "temperature": 20.0}  # of toys, they are all sure
    how = {"ontology": True, "ontology_threshold": 0.99}
    scfm.tl.annotate(cells, model, **how)
    names = cells.obs["scfm_ontology_name"].astype(str)
    assert set(names[cells.obs["scfm_confidence"] < 0.99]) == {"lymphocyte"}
    annotate_file(files["cells"], model, tmp_path / "out.h5ad", **how)
    back = ad.read_h5ad(tmp_path / "out.h5ad").obs
    pd.testing.assert_series_equal(back["scfm_ontology_term"], cells.obs["scfm_ontology_term"])
