"""Stores: any cells, exactly; every damage found and named; appended to without disturbance."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numcodecs.zstd import Zstd

from scfm.data.manifest import Manifest, StoreGene, StoreGenes
from scfm.data.store import Store, is_store
from scfm.data.store_writer import StoreWriter
from scfm.errors import LabelError, MissingFileError, OutputError, StoreError
from tests.data.stores import TYPES, toy_genes, toy_rows, write_toy_store
from tests.data.test_blocks import dense

N_CELLS, N_GENES = 500, 300


@pytest.fixture
def rows(rng):
    return toy_rows(rng, N_CELLS, N_GENES)


@pytest.fixture
def folder(tmp_path, rows):
    """Three shards of 200, 200 and 100 cells in blocks of 64."""
    write_toy_store(tmp_path / "store", rows, toy_genes(N_GENES))
    return tmp_path / "store"


def shard_files(folder: Path) -> list[Path]:
    return sorted((folder / "shards").glob("*.cells"))


def read_all(folder: Path) -> np.ndarray:
    store = Store(folder)
    return dense(store.rows(np.arange(store.n_cells)), len(store.genes))


def test_any_cells_in_any_order(folder, rows, rng):
    store, wanted = Store(folder), dense(rows, N_GENES)
    assert store.n_cells == N_CELLS
    for n in (0, 1, 7, 200, 900):
        cells = rng.integers(0, N_CELLS, n)
        found = store.rows(cells)
        np.testing.assert_array_equal(dense(found, N_GENES), wanted[cells])
        np.testing.assert_array_equal(found.cell_index, cells)
    with pytest.raises(IndexError, match="0 to 499"):
        store.rows(np.array([500]))


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_few_kept_blocks_give_the_same(folder, rows, rng, keep):
    store = Store(folder)
    store.keep_blocks(keep)
    wanted = dense(rows, N_GENES)
    for _ in range(20):
        cells = rng.integers(0, N_CELLS, 40)
        np.testing.assert_array_equal(dense(store.rows(cells), N_GENES), wanted[cells])


def test_chunks_are_all_cells_once(folder, rows):
    parts = list(Store(folder).chunks(77))
    assert [part.n_cells for part in parts] == [77] * 6 + [38]
    found = np.concatenate([dense(part, N_GENES) for part in parts])
    np.testing.assert_array_equal(found, dense(rows, N_GENES))


def test_memory_of_kept_blocks_is_bounded(tmp_path, rng):
    rows = toy_rows(rng, 3_000, 200)
    write_toy_store(tmp_path / "s", rows, toy_genes(200), block_cells=16, shard_cells=1_000)
    store = Store(tmp_path / "s")
    store.keep_blocks(8)
    largest = max(int(store._reader(k).index["n_payload"].max()) for k in range(3))
    for cell in rng.integers(0, 3_000, 400):
        store.rows(np.array([cell]))
    assert 0 < store._cache.nbytes <= 8 * largest


def test_labels_numbers_and_tables(folder):
    store = Store(folder)
    codes, categories = store.column("cell_type")
    assert categories == list(TYPES)
    np.testing.assert_array_equal(codes[:200], np.arange(200) % 3)
    assert store.column("donor_id")[1] == [f"donor{i}" for i in range(7)]
    assert store.column("dataset")[1] == ["toy.h5ad"]
    np.testing.assert_array_equal(store.numbers("row")[:5], range(5))
    obs = store.obs
    assert len(obs) == N_CELLS
    assert obs.index[3] == "cell3"
    assert list(obs["cell_type"][:3]) == list(TYPES)
    assert list(store.var.index[:2]) == ["G0", "G1"]
    var, store_gene = store.dataset_var(0)
    assert list(var["symbol"][:2]) == ["G0", "G1"]
    np.testing.assert_array_equal(store_gene, np.arange(N_GENES))
    with pytest.raises(LabelError, match="cell_type, donor_id"):
        store.column("organ")


def test_a_store_can_be_pickled(folder, rows):
    store = pickle.loads(pickle.dumps(Store(folder)))
    np.testing.assert_array_equal(
        dense(store.rows(np.array([3])), N_GENES)[0], dense(rows, N_GENES)[3]
    )


def test_is_store(folder, tmp_path):
    assert is_store(folder)
    assert is_store(str(folder))
    assert not is_store(tmp_path)
    assert not is_store(tmp_path / "cells.h5ad")
    with pytest.raises(MissingFileError, match=r"Is .* a store"):
        Store(tmp_path)


def test_appending_disturbs_no_reader(folder, rows, rng):
    reader, before = Store(folder), read_all(folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    more = toy_rows(rng, 150, N_GENES + 50)
    genes = StoreGenes([*toy_genes(N_GENES).genes, *toy_genes(50, "H").genes])
    write_toy_store(folder, more, genes, name="more.h5ad")
    assert reader.n_cells == N_CELLS
    np.testing.assert_array_equal(dense(reader.rows(np.arange(N_CELLS)), N_GENES), before)
    for path, content in files.items():
        if path.name not in ("manifest.json", ".lock"):
            assert path.read_bytes() == content, path
    grown = Store(folder)
    assert (grown.n_cells, len(grown.genes)) == (N_CELLS + 150, N_GENES + 50)
    found = dense(grown.rows(np.arange(N_CELLS + 150)), N_GENES + 50)
    np.testing.assert_array_equal(found[:N_CELLS, :N_GENES], before)
    np.testing.assert_array_equal(found[N_CELLS:], dense(more, N_GENES + 50))
    assert set(grown.rows(np.arange(N_CELLS + 150)).dataset) == {0, 1}
    assert grown.manifest.sequence == 2
    assert grown.manifest.previous == reader.manifest.hash
    earlier = Store(folder, manifest=1)
    assert earlier.manifest.hash == reader.manifest.hash
    assert earlier.n_cells == N_CELLS


def test_verify_finds_nothing_wrong(folder):
    assert all(problem is None for _, problem in Store(folder).verify())


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.9])
def test_a_flipped_bit_is_found_and_named(folder, place):
    path = shard_files(folder)[1]
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 16
    path.write_bytes(raw)
    wrong = [(name, problem) for name, problem in Store(folder).verify() if problem]
    assert [name for name, _ in wrong] == [f"shards/{path.name}"]
    store = Store(folder)
    store.rows(np.arange(200))  # the first shard is as it was
    if place < 0.9:  # in a block, not in the index
        with pytest.raises(StoreError, match=f"{path.name} is damaged: block"):
            store.rows(np.arange(200, 400))


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_a_changed_table_of_a_data_set_is_found(folder, suffix):
    path = next((folder / "datasets").glob(f"*.{suffix}"))
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    wrong = [name for name, problem in Store(folder).verify() if problem]
    assert wrong == [f"datasets/{path.name}"]


def test_a_var_comes_back_whatever_its_names(tmp_path, rng):
    genes, columns = toy_genes(5), np.arange(5, dtype=np.int32)
    var = pd.DataFrame(
        {"store_gene": list("abcde"), "mixed": ["x", None, 3, 4.5, True]},
        index=pd.Index(genes.keys, name="gene"),
    )
    write_toy_store(tmp_path / "s", toy_rows(rng, 10, 5), genes)
    with StoreWriter(tmp_path / "s") as writer:
        assert writer.manifest is not None
        writer.write_dataset("other", var, columns, {})
        entry = replace(writer.manifest.datasets[0], id="other")
        writer.commit(genes=genes, shards=[], datasets=[entry], obs={}, settings={})
    found, store_gene = Store(tmp_path / "s").dataset_var(1)
    np.testing.assert_array_equal(store_gene, columns)
    assert found.index.name == "gene"
    assert list(found["store_gene"]) == list("abcde")
    assert list(found["mixed"]) == ["x", None, "3", "4.5", "True"]


def test_altered_tables_are_not_read(folder):
    """Reversed obs would be wrong labels, a shifted var counts of wrong genes; both still parse."""
    obs = sorted((folder / "shards").glob("*.parquet"))[0]
    table = pq.read_table(obs)
    pq.write_table(table.take(np.arange(len(table))[::-1]), obs)
    with pytest.raises(StoreError, match=rf"{obs.name} does not match its sha256"):
        Store(folder).column("cell_type")
    var = next((folder / "datasets").glob("*.parquet"))
    table = pq.read_table(var)
    shifted = np.roll(table.column("__store_gene__").to_numpy(), 1)
    pq.write_table(table.set_column(2, "__store_gene__", [shifted]), var)
    with pytest.raises(StoreError, match=rf"{var.name} does not match its sha256"):
        Store(folder).dataset_var(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("n_cells"), "not the sum"),
        (lambda m: m.update(n_cells=7), "not the sum"),
        (lambda m: m["shards"][0].update(n_cells="100"), "shards.0.n_cells"),
        (lambda m: m["shards"][0].update(n_blocks=9), "other blocks"),
        (lambda m: m["shards"][0].update(name="../../x/shards/1"), "no name of a file"),
        (lambda m: m["datasets"][0].update(id="../x"), "no name of a file"),
        (lambda m: m.update(shards=None), "shards"),
    ],
)
def test_an_altered_manifest_is_refused(folder, change, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=message):
        Store(folder)


def test_a_data_set_taken_from_the_manifest_is_missed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["datasets"] = []
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="cells are of more"):
        Store(folder).rows(np.array([3]))
    assert any("sha256" in str(problem) for _, problem in Store(folder).verify())


def test_a_lost_earlier_manifest_is_found(folder, rng):
    write_toy_store(folder, toy_rows(rng, 10, N_GENES), toy_genes(N_GENES), name="more.h5ad")
    (folder / "manifests" / "000001.json").unlink()
    wrong = [name for name, problem in Store(folder).verify() if problem]
    assert wrong == ["manifests/000001.json"]


def test_cells_called_alike_are_told_apart(folder, rng):
    write_toy_store(folder, toy_rows(rng, 10, N_GENES), toy_genes(N_GENES), name="more.h5ad")
    obs = Store(folder).obs
    assert obs.index.is_unique
    assert obs.index[3] == "cell3-toy.h5ad"
    assert list(obs.columns) == ["cell_type", "donor_id", "dataset"]


def test_a_damaged_block_leaves_the_others_readable(folder, rows):
    path = shard_files(folder)[1]
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    store = Store(folder)
    for _ in range(2):
        with pytest.raises(StoreError, match="block 0 does not match its checksum"):
            store.rows(np.array([200]))
    found = dense(store.rows(np.arange(264, 500)), N_GENES)
    np.testing.assert_array_equal(found, dense(rows, N_GENES)[264:])


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_truncated_shard_is_refused(folder, kept):
    path = shard_files(folder)[2]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw)) if isinstance(kept, float) else kept])
    with pytest.raises(StoreError, match=r"truncated: .* bytes, its manifest says"):
        Store(folder).rows(np.array([499]))


def test_a_missing_shard_is_refused(folder):
    shard_files(folder)[2].unlink()
    with pytest.raises(MissingFileError, match="no such file"):
        Store(folder).rows(np.array([499]))
    assert sum(problem is not None for _, problem in Store(folder).verify()) == 1


@pytest.mark.parametrize("suffix", ["cells", "parquet"])
def test_shards_of_two_stores_mixed_are_refused(folder, tmp_path, rng, suffix):
    """The file has the right name, but is another store's."""
    other = tmp_path / "other"
    write_toy_store(other, toy_rows(rng, N_CELLS, N_GENES), toy_genes(N_GENES, "X"))
    name = f"{shard_files(folder)[0].stem}.{suffix}"
    shutil.copy(other / "shards" / name, folder / "shards" / name)
    assert [name for name, problem in Store(folder).verify() if problem] == [f"shards/{name}"]


def test_a_manifest_of_another_vocabulary_is_refused(folder, tmp_path, rows):
    """Same cells, same sizes, other genes: counts would go to wrong genes."""
    other = tmp_path / "other"
    write_toy_store(other, rows, toy_genes(N_GENES, "X"))
    for path in (other / "genes").iterdir():
        shutil.copy(path, folder / "genes")
    foreign = json.loads((other / "manifest.json").read_text())
    ours = json.loads((folder / "manifest.json").read_text())
    for shard, mine in zip(foreign["shards"], ours["shards"], strict=True):
        shard.update(n_bytes=mine["n_bytes"], sha256=mine["sha256"])
    (folder / "manifest.json").write_text(json.dumps(foreign))
    with pytest.raises(StoreError, match="another list of 300 genes"):
        Store(folder).rows(np.array([0]))


def test_an_altered_list_of_genes_is_refused(folder):
    path = next((folder / "genes").iterdir())
    path.write_text(path.read_text().replace("G7\t", "G9999\t", 1))
    with pytest.raises(StoreError, match="was altered"):
        Store(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no manifest"),
        ('{"format": "scfm-store"', "no manifest"),
        ("[1, 2]", "no manifest"),
        ('{"format": "scfm-store", "version": 99}', "version 99"),
        ('{"format": "other", "version": 1}', "'other'"),
        ('{"format": "scfm-store", "version": 1, "n_cells": 1, "n_values": 1}', "Field required"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, text, message):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        Store(folder)


def test_a_manifest_comes_back(folder):
    raw = (folder / "manifest.json").read_bytes()
    manifest = Manifest.from_bytes(raw, "here")
    assert manifest.to_bytes() == raw
    assert Manifest.from_bytes(manifest.to_bytes(), "here") == manifest


def test_a_second_writer_is_refused(folder):
    with StoreWriter(folder), pytest.raises(OutputError, match=rf"process {os.getpid()}"):
        StoreWriter(folder)
    StoreWriter(folder).close()


def test_a_killed_writer_leaves_no_lock_and_no_partial_shard(folder, tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from scfm.data.store_writer import StoreWriter\n"
        "writer = StoreWriter(Path(sys.argv[1]))\nprint('locked', flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    with pytest.raises(OutputError, match=f"process {child.pid}"):
        StoreWriter(folder)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    for _ in range(50):
        try:
            StoreWriter(folder).close()
            break
        except OutputError:
            time.sleep(0.1)
    assert Store(folder).n_cells == N_CELLS


def test_genes_keep_their_places(rng):
    genes = toy_genes(5)
    more = genes.extended([StoreGene("G3", "x", "", "human"), StoreGene("N", "N", "", "mouse")])
    assert more.keys == ["G0", "G1", "G2", "G3", "G4", "N"]
    assert more.hash_of_first(5) == genes.sha256
    assert StoreGenes.from_bytes(more.to_bytes()).genes == more.genes
    assert more.position("N") == 5
    assert more.position("M") is None


def test_the_reader_in_the_description_of_the_format_reads_blocks(folder, rows):
    text = (Path(__file__).parents[2] / "docs" / "store_format.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    scope: dict = {}
    exec(code, scope)
    store, first = Store(folder), 0
    for shard in store.manifest.shards:
        raw = (folder / shard.cells_file).read_bytes()
        for entry in store._reader(store.manifest.shards.index(shard)).index:
            data = raw[entry["offset"] : entry["offset"] + entry["n_bytes"]]
            indptr, genes, counts, dataset = scope["read_block"](Zstd().decode(data))
            wanted = rows.part(first, first + len(dataset))
            for found, expected in zip(
                (indptr, genes, counts), (wanted.indptr, wanted.indices, wanted.counts), strict=True
            ):
                np.testing.assert_array_equal(found, expected)
            first += len(dataset)
    assert first == N_CELLS
