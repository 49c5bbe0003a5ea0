"""The commands from end to end on small real data, as a user types them."""

import json
import signal
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

from tests.cli.test_refusals import run
from tests.forked import start_scfm
from tests.toys import toy_adata

SMALL = (
    *("--set", "model.d_model=16", "--set", "model.n_heads=2", "--set", "loader.batch_size=8"),
    *("--set", "train.steps=4", "--set", "train.validate_every=2"),
    *("--set", "logging.every_n_steps=1", "--set", "train.accelerator=cpu"),
)


@pytest.fixture(scope="module")
def some_cells(demo_cells, tmp_path_factory):
    """160 real cells of the bundled PBMC3k."""
    path = tmp_path_factory.mktemp("cells") / "pbmc.h5ad"
    ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::17].copy().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def run_folder(some_cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    command = [sys.executable, "-m", "scfm.cli.app", "pretrain", "--data", some_cells]
    done = subprocess.run(
        [*map(str, command), "--out", str(out), *SMALL, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["model"] == str(out / "model")
    assert "useful tokens/s" in done.stderr
    assert "cells/s" in done.stderr
    return out


def test_run_folder_is_complete(run_folder):
    found = {p.name for p in run_folder.iterdir()}
    assert {"config.yaml", "data.json", "metrics.csv", "checkpoints", "model"} <= found
    assert (run_folder / "checkpoints" / "step=4").exists()
    made = json.loads((run_folder / "model" / "provenance.json").read_text())
    assert made["steps"] == 4
    assert [name for name, _ in made["data"]["files"]] == ["pbmc.h5ad"]
    assert "/" not in json.dumps(made["run"]["data"])  # no path of the machine it was made on


def test_embed_annotate_info(capsys, run_folder, some_cells, tmp_path):
    out = tmp_path / "embedded.h5ad"
    code, stdout, err = run(
        capsys, "embed", some_cells, "--model", run_folder, "--out", out, "--json"
    )
    assert code == 0, err
    assert json.loads(stdout.splitlines()[-1])["genes"]["species"] == "human"
    assert "counts covered" in err
    embedded = ad.read_h5ad(out)
    assert embedded.obsm["X_scfm"].shape == (159, 16)
    assert np.isfinite(embedded.obsm["X_scfm"]).all()

    code, _, err = run(
        capsys,
        *("annotate", some_cells, "--reference", some_cells, "--label", "cell_type"),
        *("--model", run_folder, "--out", tmp_path / "annotated.h5ad"),
    )
    assert code == 0, err
    assert "cells labelled by" in err
    assert {"scfm_cell_type", "scfm_confidence"} <= set(
        ad.read_h5ad(tmp_path / "annotated.h5ad").obs
    )

    code, stdout, _ = run(capsys, "info", run_folder)
    assert code == 0
    assert "4 steps" in stdout
    assert "pbmc.h5ad" in stdout
    code, stdout, _ = run(capsys, "info", some_cells, "--json")
    assert code == 0
    found = json.loads(stdout)
    assert (found["n_cells"], found["counts_from"]) == (159, "X")


def test_batch_size_and_gene_order_do_not_matter(capsys, run_folder, some_cells, tmp_path, rng):
    adata = ad.read_h5ad(some_cells)[:30].copy()
    adata.write_h5ad(tmp_path / "few.h5ad")
    adata[:, rng.permutation(adata.n_vars)].copy().write_h5ad(tmp_path / "permuted.h5ad")
    found = []
    for name, size in (("few", 64), ("few", 1), ("permuted", 64)):
        source = tmp_path / f"{name}.h5ad"
        out = tmp_path / "out.h5ad"
        code, _, err = run(
            capsys,
            *("embed", source, "--model", run_folder, "--out", out, "--batch-size", size),
        )
        assert code == 0, err
        found.append(ad.read_h5ad(out).obsm["X_scfm"])
    assert np.abs(found[0] - found[1]).max() < 1e-4
    assert np.abs(found[0] - found[2]).max() < 1e-4


def test_help_and_version(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("demo", "pretrain", "embed", "annotate", "info"):
        assert command in out
    assert run(capsys, "--version")[1].startswith("scfm ")


def test_bf16_and_wandb_offline(some_cells, tmp_path):
    """Neither needs a network, an account or a GPU."""
    pytest.importorskip("wandb")
    out = tmp_path / "run"
    asked = ["--set", "train.precision=bf16-mixed", "--set", "logging.wandb=offline"]
    done = start_scfm("pretrain", "--out", out, "--data", some_cells, *SMALL, *asked).wait()
    assert done.returncode == 0, done.stderr
    assert next((out / "wandb").glob("offline-run-*")).is_dir()
    assert (out / "model" / "model.safetensors").exists()
    assert len((out / "metrics.csv").read_text().splitlines()) == 5  # a header and four steps


def test_ctrl_c_leaves_a_resumable_checkpoint(some_cells, tmp_path):
    out = tmp_path / "run"
    endless = [*SMALL, "--set", "train.steps=100000", "--data", some_cells]
    process = start_scfm("pretrain", "--out", out, *endless)
    process.signal_after("step 3/", signal.SIGINT)
    stopped = process.wait()
    assert stopped.returncode == 2, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert f"scfm pretrain --out {out} --resume" in stopped.stderr
    checkpoint = next((out / "checkpoints").iterdir())
    stopped_at = int(checkpoint.stem.split("=")[1])

    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace("steps: 100000", f"steps: {stopped_at + 2}"))
    done = start_scfm("pretrain", "--out", out, "--resume").wait()
    assert done.returncode == 0, done.stderr
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_embed_leaves_what_was_there(toy_model_folder, tmp_path, rng, sent):
    toy_adata(rng, n_cells=20_000).write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "out.h5ad").write_text("an earlier result")
    asked = ("--model", toy_model_folder, "--out", tmp_path / "out.h5ad")
    process = start_scfm("embed", tmp_path / "in.h5ad", *asked)
    process.signal_after("embed ", sent)
    stopped = process.wait()
    assert stopped.returncode == 2, stopped.stderr
    assert "scfm: Stopped on request" in stopped.stderr
    assert (tmp_path / "out.h5ad").read_text() == "an earlier result"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]


def test_full_disk_leaves_the_old_output(toy_model_folder, tmp_path, rng):
    """A real limit on file size, in a process of its own: the write itself fails."""
    toy_adata(rng, n_cells=3000).write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "out.h5ad").write_text("an earlier result")
    limit = (tmp_path / "in.h5ad").stat().st_size + 50_000

    asked = ("--model", toy_model_folder, "--out", tmp_path / "out.h5ad")
    done = start_scfm("embed", tmp_path / "in.h5ad", *asked, most_bytes=limit).wait()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "space" in done.stderr or "large" in done.stderr
    assert (tmp_path / "out.h5ad").read_text() == "an earlier result"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]
