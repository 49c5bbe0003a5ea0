"""scfm prepare as a user types it: real mixed files, a report to read, refusals, checks, export."""

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm.data.store import Store
from tests.cli.test_refusals import assert_refused, run
from tests.data.prepare_files import toy_file


@pytest.fixture
def files(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 40, obs={"cell_type": ["B"] * 40, "donor": ["d1"] * 40})
    toy_file(tmp_path / "b.h5ad", rng, 30, ids=True)
    return [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]


@pytest.fixture
def store(capsys, files, tmp_path):
    assert run(capsys, "prepare", *files, "--out", tmp_path / "store")[0] == 0
    return tmp_path / "store"


def test_prepare_says_what_it_did(capsys, files, tmp_path):
    code, out, err = run(capsys, "prepare", *files, "--out", tmp_path / "store", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["kind"], found["n_cells"], found["added"]) == ("store", 70, ["a.h5ad", "b.h5ad"])
    for words in (
        "look at files 2/2 files",
        "shuffle 70/70 cells",
        "70 cells (70 human) of 2 files, 60 genes",
        "all 70 cells read are kept",
        "obs: donor_id, cell_type",
        "Columns that many cells lack: donor_id (42.9 %), cell_type (42.9 %)",
        f"Report: {tmp_path / 'store' / 'report.html'}",
        f"scfm pretrain --data {tmp_path / 'store'} --out RUN\n",
    ):
        assert words in err, err


def test_thresholds_and_mapping(capsys, files, tmp_path):
    (tmp_path / "map.yaml").write_text(
        "columns: {kind: [cell_type]}\nfiles: {b.h5ad: {kind: '=unsorted'}}\n"
        "values: {kind: {B: B cell}}\n"
    )
    code, _, err = run(
        capsys,
        *("prepare", *files, "--out", tmp_path / "store", "--mapping", tmp_path / "map.yaml"),
        *("--min-genes", 40, "--min-counts", 100, "--max-mito", 0.5, "--obs", "donor"),
        *("--seed", 3, "--shard-cells", 30),
    )
    assert code == 0, err
    store = Store(tmp_path / "store")
    assert store.manifest.obs["kind"].categories == ("B cell", "unsorted")
    assert list(store.manifest.obs) == ["kind", "donor"]
    made = store.manifest.settings["prepare"][0]
    assert made["quality"] == {"min_genes": 40, "min_counts": 100, "max_mito": 0.5}
    assert made["seed"] == 3
    assert store.numbers("n_genes").min() >= 40


def test_adding_and_nothing_to_add(capsys, files, store, rng):
    code, _, err = run(capsys, "prepare", *files, "--out", store)
    assert code == 0
    assert err.count("its content is in already, as") == 2
    assert "Nothing was added: the store is as it was." in err
    more = toy_file(store.parent / "c.h5ad", rng, 10)
    code, _, err = run(capsys, "prepare", store.parent / "c.h5ad", "--out", store)
    assert code == 0, err
    assert "80 cells (80 human) of 3 files" in err
    assert "manifest 2" in err
    assert more.n_obs == 10


def test_verify(capsys, files, store):
    code, _, err = run(capsys, "prepare", "--verify", store, "--sources")
    assert code == 0, err
    assert "every block of 70 cells decodes; 2 source files unchanged" in err
    files[1].write_bytes(files[0].read_bytes())
    result = run(capsys, "prepare", "--verify", store, "--sources")
    assert_refused(result, "the source of b.h5ad has changed: sha256 was")
    files[1].unlink()
    assert_refused(run(capsys, "prepare", "--verify", store, "--sources"), "no longer there")
    shard = next((store / "shards").glob("*.cells"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 3] ^= 16
    shard.write_bytes(raw)
    result = run(capsys, "prepare", "--verify", store)
    assert_refused(result, f"shards/{shard.name}", "checksum", "make it anew from its sources")
    assert_refused(run(capsys, "prepare", "--verify", store.parent), "is no store", "scfm prepare")


def test_export(capsys, files, store, tmp_path):
    out = tmp_path / "again.h5ad"
    code, _, err = run(capsys, "prepare", "--export", out, store, "--dataset", "a.h5ad")
    assert code == 0, err
    assert "40 cells, 60 genes" in err
    theirs, ours = ad.read_h5ad(files[0]), ad.read_h5ad(out)
    assert abs(theirs.X - ours.X).max() == 0
    assert list(theirs.obs_names) == list(ours.obs_names)
    result = run(capsys, "prepare", "--export", out, store, "--dataset", "z.h5ad")
    assert_refused(result, "z.h5ad", "a.h5ad")


def test_info(capsys, store):
    code, out, _ = run(capsys, "info", store)
    assert code == 0
    assert "70 cells (70 human) of 2 files, 60 genes" in out
    assert re.search(r"a\.h5ad +40 of 40 cells, human, X, sha256 \w{12}", out)
    code, out, _ = run(capsys, "info", store, "--json")
    found = json.loads(out)
    assert found["manifest_sha256"] == Store(store).manifest.hash
    assert found["obs"]["cell_type"] == {"kind": "category", "n_categories": 1}


def test_refusals(capsys, files, tmp_path):
    out = tmp_path / "store"
    assert_refused(run(capsys, "prepare", *files), "--out STORE")
    assert_refused(
        run(capsys, "prepare", *files, "--out", out, "--mapping", tmp_path / "no.yaml"), "no.yaml"
    )
    assert_refused(run(capsys, "prepare", *files, "--out", out, "--obs", "n_genes"), "its own")
    assert_refused(
        run(capsys, "prepare", *files, "--out", out, "--minimum-coverage", 3), "share in [0, 1]"
    )
    (tmp_path / "text.h5ad").write_text("not HDF5")
    result = run(capsys, "prepare", *files, tmp_path / "text.h5ad", "--out", out)
    assert_refused(result, "1 of 3 inputs", "text.h5ad: is not HDF5 but text", "--skip-refused")
    assert not out.exists()
    code, _, err = run(
        capsys, "prepare", *files, tmp_path / "text.h5ad", "--out", out, "--skip-refused"
    )
    assert code == 0
    assert f"left out {tmp_path / 'text.h5ad'}: is not HDF5 but text" in err
    assert "text.h5ad" in (out / "report.html").read_text()


def test_verify_takes_one_store(capsys, files):
    code, _, err = run(capsys, "prepare", "--verify", *files)
    assert code == 2
    assert "--verify takes one store, got 2 paths" in re.sub(r"[\s│]+", " ", err)


@pytest.mark.slow
def test_the_mixed_real_files(capsys, shared_data, tmp_path):
    """Human and mouse, symbols and Ensembl ids, eleven technologies: `scfm prepare *.h5ad`."""
    if shared_data is None:
        pytest.skip("the larger real data lies beside a development checkout only")
    paths = sorted((shared_data / "rna").glob("*.h5ad"))
    out = tmp_path / "store"
    code, _, err = run(capsys, "prepare", *paths, "--out", out)
    assert code == 0, err
    store = Store(out)
    assert [entry.name for entry in store.manifest.datasets] == [path.name for path in paths]
    n_read = 0
    dataset, row, n_counts = (store.numbers(name) for name in ("dataset", "row", "n_counts"))
    for number, (path, entry) in enumerate(zip(paths, store.manifest.datasets, strict=True)):
        adata = ad.read_h5ad(path)
        n_read += adata.n_obs
        assert entry.n_read == adata.n_obs == entry.n_cells + sum(entry.dropped.values())
        assert entry.species == ("mouse" if path.name.startswith("mouse") else "human")
        mine = np.flatnonzero(dataset == number)
        totals = np.asarray(adata.X.sum(1)).ravel()[row[mine]]
        np.testing.assert_array_equal(n_counts[mine], totals)
    assert store.n_cells == n_read - 1  # one cell of mouse_oligodendrocyte is there twice
    page = (out / "report.html").read_text()
    for words in ("24,155 cells of 17 files", "Worth a look", "mouse cells", "the same file"):
        assert words in page


def test_report_is_self_contained_and_escapes(capsys, tmp_path, rng):
    name = "<b>odd & name.h5ad"
    toy_file(tmp_path / name, rng, 20, obs={"cell_type": ["<script>x</script>"] * 20})
    code, _, err = run(capsys, "prepare", tmp_path / name, "--out", tmp_path / "store")
    assert code == 0, err
    page = (tmp_path / "store" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "&lt;b&gt;odd &amp; name.h5ad" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "20 cells of 1 file, shuffled" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--verify", "STORE", "--export", "x.h5ad"), "--export cannot be used with --verify"),
        (("--verify", "STORE", "--out", "x"), "--out cannot be used with --verify: leave it out"),
        (("--export", "x.h5ad", "STORE", "--out", "x"), "--out cannot be used with --export"),
        (("--export", "x.h5ad", "STORE", "--sources"), "--sources cannot be used with --export"),
        (
            ("--verify", "STORE", "--min-genes", "5", "--seed", "3"),
            "--min-genes, --seed cannot be used with --verify: leave them out",
        ),
        (("STORE", "--out", "x", "--sources"), "--sources says nothing without --verify"),
        (("STORE", "--out", "x", "--dataset", "a"), "--dataset says nothing without --export"),
    ],
)
def test_options_that_do_nothing_are_refused(
    capsys, store, tmp_path, arguments, words, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = run(capsys, "prepare", *(store if a == "STORE" else a for a in arguments))
    assert_refused(result, words)
    assert not (tmp_path / "x.h5ad").exists()


def test_mouse_cells_want_orthologs_to_be_trained_on(capsys, store, tmp_path):
    names = ["Cd3e", "Cd68", "Ptprc", "Irf4", "Cd19", "Ms4a1", "Gapdh", "Actb", "Cd4", "Cd8a"]
    counts = sp.csr_matrix(np.arange(1, 51, dtype=np.float32).reshape(5, 10))
    mouse = ad.AnnData(counts, var=pd.DataFrame(index=names))
    mouse.obs_names = [f"m{i}" for i in range(5)]
    mouse.write_h5ad(tmp_path / "mouse.h5ad")
    for out, wanted in ((tmp_path / "mice", "holds 5 mouse"), (store, "holds 70 human cells and")):
        code, _, err = run(capsys, "prepare", tmp_path / "mouse.h5ad", "--out", out)
        assert code == 0, err
        last = err.rstrip().splitlines()[-1]
        assert last == (
            f"Train on it: scfm pretrain --data {out} --out RUN --set input.orthologs=true"
        )
        assert wanted in err
        note = "--set input.orthologs=true for scfm pretrain, --orthologs for the other"
        assert note in err


def test_an_unfinished_conversion_is_called_that(capsys, tmp_path):
    store = tmp_path / "store"
    (store / ".prepare").mkdir(parents=True)
    for arguments in (
        ("info", store),
        ("prepare", "--verify", store),
        ("prepare", "--export", tmp_path / "x.h5ad", store),
        ("prepare", store, "--out", tmp_path / "other"),
    ):
        result = run(capsys, *arguments)
        assert_refused(result, "conversion is unfinished", f"--out {store}", "--restart")
