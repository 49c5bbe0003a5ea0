"""Outputs are whole or not there: read back by anndata, and failures made for real."""

import errno
import os
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm.data.read import open_counts
from scfm.data.write import (
    atomic_folder,
    atomic_path,
    check_new_folder,
    check_writable,
    copy_h5ad_with,
    hdf5_file,
    make_folder,
    put,
    put_obs,
    write_annotated,
    write_h5ad,
    write_h5ad_from,
)
from scfm.errors import CountsError, InputError, MissingFileError, OutputError, ScfmWarning


@pytest.fixture
def adata(rng) -> ad.AnnData:
    counts = rng.poisson(0.5, size=(90, 40)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"kind": pd.Categorical(["a", None, "b"] * 30), "depth": np.arange(90)},
        index=[f"C{i}" for i in range(90)],
    )
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs)
    adata.uns["note"] = {"text": "kept", "numbers": np.arange(3)}
    return adata


@pytest.fixture
def path(adata, tmp_path):
    (tmp_path / "in").mkdir()
    adata.write_h5ad(tmp_path / "in" / "cells.h5ad", compression="gzip")
    return tmp_path / "in" / "cells.h5ad"


@pytest.fixture
def embedding(rng) -> np.ndarray:
    return rng.normal(size=(90, 8)).astype(np.float32)


def adding(embedding):
    labels = pd.DataFrame({"label": pd.Categorical(["T", "B", "NK"] * 30), "sure": np.ones(90)})

    def write(file: h5py.File) -> None:
        put(file, "obsm/X_scfm", embedding)
        put(file, "uns/scfm", {"model": "tiny", "seed": 3})
        put_obs(file, labels)

    return write


def assert_annotated(out, adata, embedding) -> None:
    theirs = ad.read_h5ad(out)
    assert abs(theirs.X - adata.X).max() == 0
    pd.testing.assert_frame_equal(theirs.obs[["kind", "depth"]], adata.obs)
    assert list(theirs.obs.columns) == ["kind", "depth", "label", "sure"]
    assert list(theirs.obs["label"][:3]) == ["T", "B", "NK"]
    assert np.array_equal(theirs.obsm["X_scfm"], embedding)
    assert theirs.uns["scfm"]["model"] == "tiny"


def test_copy_adds_and_keeps_the_rest(path, adata, embedding, tmp_path):
    before = path.read_bytes()
    copy_h5ad_with(path, tmp_path / "out.h5ad", adding(embedding))
    assert_annotated(tmp_path / "out.h5ad", adata, embedding)
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["note"]["text"] == "kept"
    assert path.read_bytes() == before


def test_copy_onto_itself_and_again(path, adata, embedding):
    with open_counts(path, backed=True) as source:  # still open while it is replaced
        write_annotated(source, path, adding(embedding * 2))
        assert sum(rows.n_cells for rows in source.chunks(7)) == 90
    copy_h5ad_with(path, path, adding(embedding))  # in the place of what was added before
    assert_annotated(path, adata, embedding)
    assert [file.name for file in path.parent.iterdir()] == ["cells.h5ad"]


@pytest.mark.parametrize("chunk_cells", [1, 32, 1000])
def test_stream_into_a_new_file(adata, embedding, tmp_path, chunk_cells):
    write = adding(embedding)
    write_h5ad_from(open_counts(adata), tmp_path / "out.h5ad", write, chunk_cells=chunk_cells)
    assert_annotated(tmp_path / "out.h5ad", adata, embedding)
    theirs = ad.read_h5ad(tmp_path / "out.h5ad")
    assert isinstance(theirs.X, sp.csr_matrix)
    assert theirs.X.has_canonical_format
    again = open_counts(tmp_path / "out.h5ad", backed=True)
    assert again.counts_from == "X"


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
def test_annotated_copy_of_what_is_no_h5ad(adata, embedding, tmp_path):
    adata.write_zarr(tmp_path / "cells.zarr")
    with pytest.warns(ScfmWarning, match="nothing else it may hold"):
        write_annotated(
            open_counts(tmp_path / "cells.zarr"), tmp_path / "o.h5ad", adding(embedding)
        )
    assert_annotated(tmp_path / "o.h5ad", adata, embedding)


def test_write_h5ad_equals_anndata_own(adata, tmp_path):
    write_h5ad(adata, tmp_path / "ours.h5ad")
    adata.write_h5ad(tmp_path / "theirs.h5ad")
    ours, theirs = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    assert abs(ours.X - theirs.X).max() == 0
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    pd.testing.assert_frame_equal(ours.var, theirs.var)
    assert ours.uns["note"]["text"] == "kept"
    assert open_counts(tmp_path / "ours.h5ad").n_cells == 90
    write_annotated(open_counts(tmp_path / "ours.h5ad"), tmp_path / "ours.h5ad", lambda file: None)


def test_output_of_another_ending_is_refused(adata, path, tmp_path):
    with pytest.raises(OutputError, match="Give it that ending"):
        write_annotated(open_counts(path), tmp_path / "o.zarr", lambda file: None)


def test_put_obs_refusals(path, embedding, tmp_path):
    with pytest.raises(InputError, match="obs has 90 rows, the columns to add have 3"):
        copy_h5ad_with(path, path, lambda file: put_obs(file, pd.DataFrame({"a": [1, 2, 3]})))
    with hdf5_file(tmp_path / "old.h5ad", "w") as file:
        file["obs"] = np.zeros(3, dtype=[("index", "S3")])
        with pytest.raises(InputError, match=r"anndata < 0\.7"):
            put_obs(file, pd.DataFrame({"a": [1, 2, 3]}))


def test_missing_source(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.h5ad"):
        copy_h5ad_with(tmp_path / "none.h5ad", tmp_path / "out.h5ad", lambda file: None)


FAILURES = [KeyboardInterrupt(), CountsError("bad chunk"), RuntimeError("model"), OSError("odd")]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("way", ["path", "copy", "stream"])
def test_an_interrupted_write_leaves_the_old_output(path, adata, tmp_path, failure, way):
    out = tmp_path / "out" / "cells.h5ad"
    out.parent.mkdir()
    out.write_text("old")

    def write(file):
        put(file, "obsm/X_scfm", np.zeros((90, 4)))
        raise failure

    def attempt():
        if way == "copy":
            copy_h5ad_with(path, out, write)
        elif way == "stream":
            write_h5ad_from(open_counts(adata), out, write)
        with atomic_path(out) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(type(failure)) as caught:
        attempt()
    assert caught.value is failure
    assert out.read_text() == "old"
    assert list(out.parent.iterdir()) == [out]


def test_atomic_path_keeps_suffix_mode_and_link(tmp_path):
    target, link = tmp_path / "real.csv.gz", tmp_path / "link.csv.gz"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffixes[-2:] == [".csv", ".gz"]
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(tmp_path.iterdir()) == [link, target]


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import anndata as ad, numpy as np
    from scfm.data import write
    from scfm.data.read import open_counts
    from scfm.errors import OutputError

    way, path, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    source, adata = open_counts(path), ad.read_h5ad(path)
    limit = path.stat().st_size + 200_000 if way == "copy" else 40_000
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    rng = np.random.default_rng(0)

    def add(file):
        for i in range(20):
            write.put(file, f"obsm/X_{i}", rng.random((90, 100)))
            write.put(file, f"uns/{i}", {"a": rng.random(2000), "b": {"c": "text"}})

    try:
        if way in ("copy", "copy at once"):
            write.copy_h5ad_with(path, out, add)
        elif way == "stream":
            write.write_h5ad_from(source, out, add, chunk_cells=10)
        elif way == "adata":
            adata.obsm["X"] = rng.random((90, 1000))
            write.write_h5ad(adata, out)
        elif way == "folder":
            with write.atomic_folder(out.parent, marker=out.name) as folder:
                (folder / "weights").write_bytes(bytes(10**6))
        else:
            with write.atomic_path(out) as temporary:
                temporary.write_bytes(bytes(10**6))
    except OutputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
"""


@pytest.mark.parametrize("way", ["path", "copy", "copy at once", "stream", "adata", "folder"])
def test_a_full_disk_leaves_the_old_output(adata, tmp_path, way):
    """In a process whose files may not grow; an HDF5 that cannot flush would crash at its exit."""
    source, out = tmp_path / "cells.h5ad", tmp_path / "out" / "cells.h5ad"
    adata.obsm["wide"] = np.random.default_rng(1).random((90, 100))
    adata.write_h5ad(source)
    out.parent.mkdir()
    out.write_text("old")
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), way, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    what = out.parent if way == "folder" else out
    assert f"Cannot write {what}: File too large" in done.stderr
    assert "What was there before is untouched. Make room, or choose another --out" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == "old"
    assert list(out.parent.iterdir()) == [out]
    assert sorted(tmp_path.iterdir()) == [source, out.parent]


@contextmanager
def no_permission(folder):
    """As a user who may not write there; root may write everywhere and becomes nobody."""
    folder.chmod(0o500)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.parametrize("way", [check_writable, check_new_folder, atomic_path, atomic_folder])
def test_unwritable_folder(tmp_path, way):
    folder = tmp_path / "locked"
    folder.mkdir()
    refusal = pytest.raises(
        OutputError, match=r"Cannot write .*out: Permission denied\. Choose ano"
    )
    with no_permission(folder), refusal:
        if way in (check_writable, check_new_folder):
            way(folder / "out")
        else:
            with way(folder / "out"):
                pytest.fail("it was refused only after the work")
    assert not list(folder.iterdir())


def test_wrong_kind_of_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"No such file or directory\. Make the .*mkdir -p .*new"):
        check_writable(tmp_path / "new" / "out.h5ad")
    with pytest.raises(OutputError, match=r"out\.h5ad: .*file is no folder\. Choose another --out"):
        check_writable(tmp_path / "file" / "out.h5ad")
    with pytest.raises(OutputError, match=r"it is a folder. Name a file in it: .*/NAME"):
        check_writable(tmp_path)
    with (
        pytest.raises(OutputError, match=r"it is a file\. Choose another name"),
        atomic_folder(tmp_path / "file"),
    ):
        pass
    check_writable(tmp_path / "out.h5ad")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("way", [atomic_folder, make_folder, check_new_folder])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/proc/x/m", r"Cannot write /proc/x/m\b.* in /proc\b.*No such file or directory"),
        ("/proc/x", r"Cannot write /proc/x in /proc: No such file or directory"),
        ("/dev/full/m", r"Cannot write /dev/full/m: /dev/full is no folder"),
        ("/dev/full/x/m", r"Cannot write /dev/full/x/m: /dev/full is no folder"),
        ("TMP/file/m", r"Cannot write .*file/m: .*file is no folder"),
        ("TMP/file/x/m", r"Cannot write .*file/x/m: .*file is no folder"),
        ("TMP/loop/m", r"Cannot write .*loop/m: .*"),
        ("TMP/nowhere/m", r"Cannot write .*nowhere/m\b.* in /proc\b"),
        ("TMP/" + 300 * "m", r"Cannot write .*mm in .*: File name too long"),
    ],
)
def test_places_where_no_folder_can_be(tmp_path, way, place, said):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to("/proc/y")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=rf"{said}.*Choose another --out") as refused:
        entered(way, place.replace("TMP", str(tmp_path)))
    assert "mkdir" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "x"


def entered(way, out):
    if way is not atomic_folder:
        way(out)
    else:
        with way(out):
            pytest.fail("it was refused only after the work")


@pytest.mark.parametrize("code", ["EROFS", "EACCES", "EEXIST", "ENOENT", "ENOTDIR"])
def test_a_folder_above_that_cannot_be_made(tmp_path, monkeypatch, code):
    """As on a read-only file system, which no test can mount."""

    def refuse(self, *args, **kwargs):
        raise OSError(getattr(errno, code), "no", str(tmp_path / "a"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    reason = re.escape(os.strerror(getattr(errno, code)))
    for way in (atomic_folder, make_folder):
        with pytest.raises(OutputError, match=rf"Cannot write .*a/b/c.*{reason}.*another --out"):
            entered(way, tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_missing_is_not_the_output_s_fault(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out" / "model"):
        (tmp_path / "source.h5ad").read_bytes()


def test_a_new_folder_may_lie_in_new_folders(tmp_path):
    check_new_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="exists already"):
        check_new_folder(tmp_path)


def test_atomic_folder(tmp_path):
    out = tmp_path / "runs" / "model"
    for content in ("first", "second"):
        with atomic_folder(out, marker="config.json") as folder:
            (folder / "config.json").write_text(content)
            (folder / content).touch()
        assert (out / "config.json").read_text() == content
        assert sorted(file.name for file in out.iterdir()) == ["config.json", content]

    def interrupted():
        with atomic_folder(out, marker="config.json") as folder:
            (folder / "config.json").write_text("third")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (out / "config.json").read_text() == "second"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("marker", [None, "config.json"])
def test_atomic_folder_does_not_replace_a_home(tmp_path, marker):
    (tmp_path / "thesis.tex").touch()
    refusal = pytest.raises(OutputError, match="holds files that are not an earlier result")
    with refusal, atomic_folder(tmp_path, marker=marker):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with atomic_folder(empty, marker=marker) as folder:
        (folder / "x").touch()
    assert (empty / "x").exists()
