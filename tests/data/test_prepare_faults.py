"""`scfm prepare` when things go wrong: nothing lost, nothing half done visible, a clear message."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scfm.data import matrices
from scfm.data import prepare as module
from scfm.data.manifest import MANIFEST
from scfm.data.matrices import spread_rows
from scfm.data.prepare_plan import _spread
from scfm.data.quality import QualityConfig
from scfm.data.store import Store, is_store
from scfm.data.store_writer import StoreWriter
from scfm.errors import (
    ConfigError,
    CountsError,
    InputError,
    OutputError,
    ScfmError,
    UnreadableFileError,
)
from tests.data.prepare_files import all_files, make_store, toy_file
from tests.forked import Forked, limit_files

SETTINGS = {"shard_cells": 40, "block_cells": 8}


def prepare_and_end(out, inputs, kill_at, when, limit):
    """In a process of its own: prepare with small runs and shards, and count the renames that make
    files appear. The process ends, as by SIGKILL, before or after one of them; files may not grow
    beyond ``limit``."""
    limit_files(limit)
    module.run_bytes_for = lambda total: 4000  # pyright: ignore[reportAttributeAccessIssue]
    matrices.BLOCK_VALUES = 1500
    replace, seen = Path.replace, 0

    def counted(self, target):
        nonlocal seen
        seen += 1
        if seen == kill_at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = replace(self, target)
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Path.replace = counted
    try:
        make_store(inputs, out, **SETTINGS)
    except ScfmError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(seen)


def start_child(out, inputs, kill_at=0, when="after", limit=None):
    return Forked([__name__], prepare_and_end, out, inputs, kill_at, when, limit)


def child(*arguments, **options):
    return start_child(*arguments, **options).wait()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two files for a store, and one to add to it, with duplicates among them."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(3)
    kinds = {"cell_type": ["B", "T"] * 30}
    first = toy_file(folder / "a.h5ad", rng, 60, obs=kinds)
    for name in ("b", "c"):
        adata = toy_file(folder / f"{name}.h5ad", rng, 40, obs={"cell_type": ["NK"] * 40})
        adata.X = sp.vstack([adata.X[:36], first.X[:4]]).tocsr()
        adata.write_h5ad(folder / f"{name}.h5ad")
    return [folder / f"{name}.h5ad" for name in "abc"]


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory):
    """The store of the first two files, and with the third added; and the renames of each."""
    folder = tmp_path_factory.mktemp("whole")
    done = child(folder / "store", inputs[:2])
    assert done.returncode == 0, done.stderr
    first = all_files(folder / "store")
    added = child(folder / "store", inputs)
    assert added.returncode == 0, added.stderr
    return first, int(done.stdout), all_files(folder / "store"), int(added.stdout)


@pytest.mark.slow
def test_killed_at_any_point_goes_on_to_the_same_store(tmp_path, inputs, uninterrupted):
    """At ten random renames, of which a conversion is made: before or after each."""
    whole, n_renames, _, _ = uninterrupted
    rng = np.random.default_rng(11)
    points = [*rng.choice(np.arange(2, n_renames), 8, replace=False), n_renames - 1, n_renames]
    for number, point in enumerate(points):
        out = tmp_path / f"store{number}"
        killed = child(out, inputs[:2], point, ("before", "after")[number % 2])
        assert killed.returncode == -signal.SIGKILL
        if not (out / MANIFEST).exists():
            assert not is_store(out)  # nothing half done can be opened
        resumed = child(out, inputs[:2])
        assert resumed.returncode == 0, resumed.stderr
        assert all_files(out) == whole, point
        if number % 2:
            assert int(resumed.stdout) < n_renames - (point - 6) / 2, "work was done again"


@pytest.mark.slow
def test_killed_while_adding_leaves_the_store_as_it_was(tmp_path, inputs, uninterrupted):
    first, _, whole, n_renames = uninterrupted
    rng = np.random.default_rng(12)
    points = [*rng.choice(np.arange(2, n_renames - 2), 4, replace=False), n_renames - 1, n_renames]
    for number, point in enumerate(points):
        out = tmp_path / f"store{number}"
        for name, data in first.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
        killed = child(out, inputs, point, ("after", "before")[number % 2])
        assert killed.returncode == -signal.SIGKILL
        store = Store(out)
        assert store.n_cells in (96, 132)
        assert all(problem is None for _, problem in store.verify())
        assert Store(out, manifest=1).n_cells == 96
        resumed = child(out, inputs)
        assert resumed.returncode == 0, resumed.stderr
        assert all_files(out) == whole, point


@pytest.mark.slow
def test_killed_from_outside_at_random_moments(tmp_path, inputs, uninterrupted):
    out, rng = tmp_path / "store", np.random.default_rng(13)
    started = time.monotonic()
    assert child(tmp_path / "timed", inputs[:2]).returncode == 0
    takes = time.monotonic() - started
    for share in rng.uniform(0.5, 1, 4):
        process = start_child(out, inputs[:2])
        time.sleep(share * takes)
        process.kill()
        process.wait()
    resumed = child(out, inputs[:2])
    assert resumed.returncode == 0, resumed.stderr
    assert all_files(out) == uninterrupted[0]


def stopped_in_the_shuffle(monkeypatch, inputs, out, after=1, **settings):
    """A conversion that was interrupted when ``after`` shards were written."""
    write_shard, written = StoreWriter.write_shard, []

    def interrupted(self, name, *rest):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(name)
        return write_shard(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_store(inputs, out, **SETTINGS, **settings)


def test_what_is_done_is_not_done_again(tmp_path, inputs, monkeypatch):
    out = tmp_path / "store"
    stopped_in_the_shuffle(monkeypatch, inputs, out)
    assert not is_store(out)
    done = {path: path.stat().st_ino for path in (out / "shards").iterdir()}
    monkeypatch.setattr(module, "encode", lambda *_: pytest.fail("a file was read again"))
    monkeypatch.setattr(module, "make_plan", lambda *_, **__: pytest.fail("planned again"))
    make_store(inputs, out, **SETTINGS)
    assert {path: path.stat().st_ino for path in done} == done
    monkeypatch.undo()
    make_store(inputs, tmp_path / "whole", **SETTINGS)
    assert all_files(out) == all_files(tmp_path / "whole")


def test_other_settings_or_inputs_are_refused_by_name(tmp_path, inputs, monkeypatch):
    out = tmp_path / "store"
    stopped_in_the_shuffle(monkeypatch, inputs[:2], out)
    with pytest.raises(ConfigError, match=r"differs: .*c\.h5ad is new\. Go on with it by"):
        make_store(inputs, out, **SETTINGS)
    with pytest.raises(ConfigError, match=r"b\.h5ad is missing"):
        make_store(inputs[:1], out, **SETTINGS)
    with pytest.raises(ConfigError, match="the inputs are in another order"):
        make_store(inputs[1::-1], out, **SETTINGS)
    with pytest.raises(ConfigError, match=r"quality was .*, is .*; seed was 0, is 1.* --restart"):
        make_store(inputs[:2], out, **SETTINGS, seed=1, quality=QualityConfig(min_genes=3))
    make_store(inputs, out, **SETTINGS, restart=True)
    make_store(inputs, tmp_path / "whole", **SETTINGS)
    assert all_files(out) == all_files(tmp_path / "whole")


def test_a_source_that_changed_is_named(tmp_path, inputs, monkeypatch, rng):
    own = [tmp_path / path.name for path in inputs[:2]]
    for path, source in zip(own, inputs, strict=False):
        path.write_bytes(source.read_bytes())
    out = tmp_path / "store"
    stopped_in_the_shuffle(monkeypatch, own, out)
    os.utime(own[0])  # touched, not changed
    toy_file(own[1], rng, 41)
    with pytest.raises(InputError, match=r"b\.h5ad has changed since .* sha256 was \w+\.\.\., is"):
        make_store(own, out, **SETTINGS)
    own[1].unlink()
    with pytest.raises(InputError, match=r"b\.h5ad: no such file"):
        make_store(own, out, **SETTINGS)
    own[1].write_bytes(inputs[1].read_bytes())
    make_store(own, out, **SETTINGS)
    assert Store(out).n_cells == 96


def test_a_source_that_changes_while_it_is_read(tmp_path, inputs, monkeypatch, rng):
    path = tmp_path / "a.h5ad"
    path.write_bytes(inputs[0].read_bytes())
    judge = module.judge_cells

    def meanwhile(*arguments):
        toy_file(tmp_path / "new.h5ad", rng, 60)
        (tmp_path / "new.h5ad").replace(path)
        return judge(*arguments)

    monkeypatch.setattr(module, "judge_cells", meanwhile)
    with pytest.raises(InputError, match="has changed since the conversion began"):
        make_store([path], tmp_path / "store")
    assert not is_store(tmp_path / "store")


def test_two_at_once(tmp_path, inputs):
    make_store(inputs[:1], tmp_path / "store")
    with StoreWriter(tmp_path / "store"):
        script = "import sys; from scfm.cli.app import main; main(sys.argv[1:])"
        other = subprocess.run(
            [sys.executable, "-c", script, "prepare", str(inputs[1]), "--out", tmp_path / "store"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert other.returncode == 2
    assert f"is being written by another scfm (process {os.getpid()}" in other.stderr
    assert Store(tmp_path / "store").n_cells == 60


@pytest.mark.parametrize("limit", [1_500, 3_000, 6_000, 12_000])
def test_full_disk_then_room(tmp_path, inputs, uninterrupted, limit):
    out = tmp_path / "store"

    failed = child(out, inputs[:2], limit=limit)
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    assert "File too large" in failed.stderr
    assert not is_store(out)
    assert child(out, inputs[:2]).returncode == 0
    assert all_files(out) == uninterrupted[0]


def test_too_little_room_is_said_before_the_work(tmp_path, inputs, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3000))
    with pytest.raises(OutputError, match=r"takes about 0\.0 GB, 0\.0 GB are free"):
        make_store(inputs, tmp_path / "store")
    assert not (tmp_path / "store" / ".prepare").exists()


def spoiled(folder, rng):
    """One file of each kind that cannot be used, and a word that must be said of it."""
    made = {}

    def save(name, word, change):
        adata = toy_file(folder / name, rng, 30)
        change(adata)
        adata.write_h5ad(folder / name)
        made[folder / name] = word

    def log(adata):
        adata.X = (adata.X.multiply(1e4 / adata.X.sum(1))).tocsr().log1p()

    def fractions(adata):
        adata.X.data[::3] += 0.4

    def probes(adata):
        adata.var_names = [f"probe_{i}" for i in range(adata.n_vars)]

    def zebrafish(adata):
        adata.var_names = [f"ENSDARG{i:011d}" for i in range(adata.n_vars)]

    def other_counts(adata):
        adata.var_names = [*adata.var_names[:5], *(f"probe_{i}" for i in range(adata.n_vars - 5))]

    def nothing(adata):
        adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)

    def no_cells(adata):
        adata._inplace_subset_obs(slice(0, 0))

    save("log.h5ad", "looks like log1p of normalised counts", log)
    save("rsem.h5ad", "adata.X.round()", fractions)
    save("probes.h5ad", "None of the 60 columns", probes)
    save("zebrafish.h5ad", "Ensembl ids of another species", zebrafish)
    save("few.h5ad", "of the counts of few.h5ad fall on genes the model knows", other_counts)
    save("nothing.h5ad", "none of the cells looked at has a count", nothing)
    save("no_cells.h5ad", "is empty", no_cells)
    whole = (folder / "log.h5ad").read_bytes()
    (folder / "truncated.h5ad").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.h5ad").touch()
    (folder / "packed.h5ad").write_bytes(gzip.compress(whole))
    made[folder / "truncated.h5ad"] = "truncated, damaged or in use"
    made[folder / "empty.h5ad"] = "is an empty file"
    made[folder / "packed.h5ad"] = "is a gzip archive; unpack it first"
    made[folder / "absent.h5ad"] = "no such file"
    return made


def test_all_that_cannot_be_used_is_named_before_anything_is_written(tmp_path, rng, inputs):
    bad = spoiled(tmp_path, rng)
    with pytest.raises(InputError) as caught:
        make_store([*bad, inputs[0]], tmp_path / "store")
    message = str(caught.value)
    assert message.startswith("11 of 12 inputs cannot go into a store; nothing was written.")
    for path, word in bad.items():
        line = next(line for line in message.splitlines() if line.startswith(f"  {path}: "))
        assert word in line
    assert "--expected-counts" not in message  # a store has no such option
    assert message.endswith("the same command with --skip-refused.")
    assert not (tmp_path / "store").exists()
    prepared = make_store([*bad, inputs[0]], tmp_path / "store", skip_refused=True)
    assert prepared.added == ["a.h5ad"]
    assert set(prepared.refused) == {str(path) for path in bad}
    kept = prepared.manifest.settings["prepare"][0]["refused"]
    assert set(kept) == {path.name for path in bad}
    with pytest.raises(InputError, match="nothing to make a store of"):
        make_store(list(bad), tmp_path / "other", skip_refused=True)


def test_a_bad_value_late_in_a_file(tmp_path, rng, inputs):
    """It is met when the cells are read; the other files' work is kept."""
    bad = toy_file(tmp_path / "late.h5ad", rng, 3000)
    looked_at = [*_spread(3000), *spread_rows(3000)]
    late = np.setdiff1d(np.arange(3000), looked_at)[-1]
    bad.X.data[bad.X.indptr[late]] = 0.5
    bad.write_h5ad(tmp_path / "late.h5ad")
    three = [inputs[0], tmp_path / "late.h5ad", inputs[1]]
    with pytest.raises(
        InputError, match=r"0\.5 is no integer[\s\S]*1 of 3 files are done and kept"
    ):
        make_store(three, tmp_path / "store", **SETTINGS)
    assert not is_store(tmp_path / "store")
    prepared = make_store(three, tmp_path / "store", **SETTINGS, skip_refused=True)
    assert list(prepared.refused) == [str(tmp_path / "late.h5ad")]
    store = Store(tmp_path / "store")
    assert [entry.name for entry in store.manifest.datasets] == ["a.h5ad", "b.h5ad"]
    assert np.bincount(store.numbers("dataset")).tolist() == [60, 36]
    assert all(problem is None for _, problem in store.verify())


def test_work_damaged_on_disk_does_not_reach_the_store(tmp_path, inputs, monkeypatch):
    out = tmp_path / "store"
    stopped_in_the_shuffle(monkeypatch, inputs, out, after=0)
    run = next((out / ".prepare" / "files").rglob("*.run"))
    raw = bytearray(run.read_bytes())
    raw[len(raw) // 3] ^= 1
    run.write_bytes(raw)
    with pytest.raises(UnreadableFileError, match=r"\.run is damaged.*--restart"):
        make_store(inputs, out, **SETTINGS)
    make_store(inputs, out, **SETTINGS, restart=True)
    assert Store(out).n_cells == 132


def test_leftovers_of_killed_writes_are_swept(tmp_path, inputs):
    out = tmp_path / "store"
    make_store(inputs[:1], out, **SETTINGS)
    for name in ("shards/.000002-00000.ab12.tmp.cells", "datasets/stray-1.json"):
        (out / name).touch()
    (out / "shards" / "000002-00099.cells").touch()  # of a conversion that was begun anew
    make_store(inputs, out, **SETTINGS)
    store = Store(out)
    listed = {shard.cells_file for shard in store.manifest.shards}
    assert {f"shards/{path.name}" for path in (out / "shards").glob("*.cells")} == listed
    assert not list(out.rglob("*.tmp*"))
    assert not (out / "datasets" / "stray-1.json").exists()


def test_the_plan_is_plain_json(tmp_path, inputs, monkeypatch):
    stopped_in_the_shuffle(monkeypatch, inputs, tmp_path / "store")
    text = (tmp_path / "store" / ".prepare" / "plan.json").read_text()
    assert module.Plan.from_json(text).to_json() == text
    assert json.loads(text)["files"][0]["sha256"]
    assert ad.read_h5ad(json.loads(text)["files"][0]["path"]).n_obs == 60


def test_late_fractions_are_not_told_of_options_that_prepare_has_not(tmp_path, rng):
    bad = toy_file(tmp_path / "late.h5ad", rng, 3000)
    late = np.setdiff1d(np.arange(3000), [*_spread(3000), *spread_rows(3000)])[-1]
    bad.X.data[bad.X.indptr[late]] = 1.5
    bad.write_h5ad(tmp_path / "late.h5ad")
    toy_file(tmp_path / "a.h5ad", rng, 20)
    both = [tmp_path / "a.h5ad", tmp_path / "late.h5ad"]
    with pytest.raises(CountsError) as caught:
        make_store(both, tmp_path / "store", **SETTINGS)
    prepared = make_store(both, tmp_path / "store", **SETTINGS, skip_refused=True)
    for said in (str(caught.value), prepared.refused[str(both[1])]):
        assert "1.5" in said
        assert "adata.X.round()" in said
        assert "expected_counts" not in said
        assert "--expected-counts" not in said
