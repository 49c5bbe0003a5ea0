"""What comes out of a store is what went in: counts, names, columns and order."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from scfm.data.blocks import concatenate, encode, gene_key64, take
from scfm.data.counts import CellSource
from scfm.data.export import ExportedDataset, export
from scfm.data.manifest import DatasetEntry, ObsColumn, StoreGene, StoreGenes
from scfm.data.prepare import prepare
from scfm.data.prepare_plan import PrepareConfig
from scfm.data.read import open_counts
from scfm.data.store import Store
from scfm.data.store_writer import StoreWriter
from scfm.errors import InputError, OutputError, StoreError
from tests.data.test_read import dense

GENES = [f"ENSG{i:011d}" for i in range(60)]
OBS = {
    "cell_type": ObsColumn("category", ("B", "NK", "T")),
    "age": ObsColumn("integer"),
    "score": ObsColumn("number"),
    "is_primary": ObsColumn("boolean"),
    "note": ObsColumn("string"),
}
SIZES = (150, 97, 210)


def toy_file(rng: np.random.Generator, number: int, n_cells: int) -> ad.AnnData:
    """Cells over some of the genes in an order of their own; counts beyond a byte and two bytes."""
    genes = rng.permutation(GENES)[: 40 + number]
    counts = rng.poisson(0.6, (n_cells, len(genes))) * rng.choice(
        [1, 1, 1, 300, 70_000], (n_cells, len(genes))
    )
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["B", "T"], n_cells)),
            "age": rng.integers(0, 2**60, n_cells),
            "score": rng.normal(size=n_cells),
            "is_primary": rng.random(n_cells) < 0.5,
            "note": [f"n{i}" for i in range(n_cells)],
        },
        index=[f"f{number}-{i}" for i in range(n_cells)],
    )
    if number == 1:  # this file lacks two of the columns, and some values of others
        obs = obs.drop(columns=["note", "score"])
        obs.loc[obs.index[3:9], "cell_type"] = np.nan
        obs["age"] = pd.array(
            [None if i % 5 == 0 else v for i, v in enumerate(obs["age"])], "Int64"
        )
    var = pd.DataFrame(
        {
            "feature_name": [f"S{name[-2:]}" for name in genes],
            "length": rng.integers(1, 9, len(genes)),
        },
        index=pd.Index(genes),
    )
    return ad.AnnData(sp.csr_matrix(counts.astype(np.int32)), obs=obs, var=var)


def arrow_obs(part: ad.AnnData, number: int, rows: np.ndarray) -> pa.Table:
    n = part.n_obs
    columns = {
        "dataset": pa.array(np.full(n, number, np.int32)),
        "row": pa.array(rows.astype(np.int64)),
        "n_genes": pa.array(np.diff(part.X.indptr).astype(np.int32)),
        "name": pa.array(part.obs_names.to_list()),
    }
    kinds = [
        pa.dictionary(pa.int32(), pa.string()),
        pa.int64(),
        pa.float64(),
        pa.bool_(),
        pa.string(),
    ]
    for name, kind in zip(OBS, kinds, strict=True):
        if name in part.obs:
            values = part.obs[name].astype(object).where(part.obs[name].notna(), None)
            columns[name] = pa.array(values.to_list(), kind)
        else:
            columns[name] = pa.nulls(n, kind)
    return pa.table(columns)


@pytest.fixture
def files(rng) -> list[ad.AnnData]:
    return [toy_file(rng, number, n_cells) for number, n_cells in enumerate(SIZES)]


@pytest.fixture
def kept(files, rng) -> list[np.ndarray]:
    """Rows of each file that prepare would keep."""
    return [np.sort(rng.choice(file.n_obs, file.n_obs - 17, replace=False)) for file in files]


@pytest.fixture
def folder(files, kept, rng, tmp_path) -> Path:
    """A shuffled store of several shards, as prepare writes it."""
    return write_store(tmp_path / "store", files, kept, rng)


def write_store(folder, files, kept, rng, shard_cells=130) -> Path:
    genes = StoreGenes(StoreGene(name, "", name, "human") for name in rng.permutation(GENES))
    parts, tables, entries = [], [], []
    with StoreWriter(folder, block_cells=16) as writer:
        for number, (file, rows) in enumerate(zip(files, kept, strict=True)):
            part = file[rows].copy()
            (chunk,) = open_counts(part).chunks(10_000)
            store_gene = np.array([genes.position(name) for name in part.var_names], np.int32)
            parts.append(encode(chunk, store_gene, gene_key64(genes.keys), number))
            tables.append(arrow_obs(part, number, rows))
            writer.write_dataset(f"{number:06d}", file.var, store_gene, {})
            entries.append(
                DatasetEntry(
                    id=f"{number:06d}",
                    name="same.h5ad" if number else "first.h5ad",
                    path=f"/data/{number}.h5ad",
                    sha256=f"{number}" * 64,
                    species="human",
                    counts_from="X",
                    n_read=file.n_obs,
                    n_cells=len(rows),
                )
            )
        cells, obs = concatenate(parts), pa.concat_tables(tables).unify_dictionaries()
        order = rng.permutation(cells.n_cells)
        cells, obs = take(cells, order), obs.take(pa.array(order))
        shards = []
        for k, first in enumerate(range(0, cells.n_cells, shard_cells)):
            places = np.arange(first, min(first + shard_cells, cells.n_cells))
            part = take(cells, places)
            table = obs.take(pa.array(places))
            shards.append(writer.write_shard(writer.shard_name(k), part, table, genes))
        writer.commit(genes=genes, shards=shards, datasets=entries, obs=OBS, settings={})
    return folder


@pytest.mark.parametrize("budget", [2**29, 30_000, 1])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_data_set_comes_back(files, kept, folder, tmp_path, number, budget):
    out = tmp_path / "back.h5ad"
    export(Store(folder), out, dataset=f"{number:06d}", budget=budget)
    back, wanted = ad.read_h5ad(out), files[number][kept[number]].copy()
    assert back.X.dtype == np.int32
    assert back.X.has_sorted_indices
    assert (back.X != wanted.X).nnz == 0
    assert list(back.obs_names) == list(wanted.obs_names)
    pd.testing.assert_frame_equal(back.var, wanted.var)
    assert list(back.obs.columns) == list(wanted.obs.columns)
    for name in wanted.obs:
        ours, theirs = back.obs[name], wanted.obs[name]
        assert list(ours.isna()) == list(theirs.isna())
        assert ours.dropna().to_list() == theirs.dropna().to_list()
    assert back.obs["cell_type"].cat.categories.to_list() == ["B", "T"]
    assert back.obs["is_primary"].dtype == bool
    assert str(back.obs["age"].dtype) == ("Int64" if number == 1 else "int64")
    about = back.uns["scfm_store"]
    assert about["manifest"] == Store(folder).manifest.hash
    assert about["sha256"] == str(number) * 64
    assert open_counts(out).counts_from == "X"


def test_passes_keep_to_the_budget(folder, monkeypatch):
    passes = []
    gathered = ExportedDataset._gathered

    def watched(self, cell_index):
        rows = gathered(self, cell_index)
        passes.append(8 * len(rows.counts))
        return rows

    monkeypatch.setattr(ExportedDataset, "_gathered", watched)
    source = ExportedDataset(Store(folder), "first.h5ad", budget=10_000)
    n_cells = [rows.n_cells for rows in source.chunks(32)]
    assert sum(n_cells) == source.n_cells
    assert max(n_cells) == 32
    assert len(passes) >= sum(passes) // 5_000
    assert max(passes) <= 5_000


def test_it_is_a_source(files, kept, folder, rng):
    source = ExportedDataset(Store(folder), "000002")
    assert isinstance(source, CellSource)
    assert list(source.source_rows) == list(kept[2])
    cells = rng.integers(0, source.n_cells, 50)
    rows = source.rows(cells)
    assert np.array_equal(dense(source, rows), files[2].X.toarray()[kept[2][cells]])
    assert np.array_equal(rows.cell_index, cells)


def test_the_whole_store_in_its_order(files, kept, folder, tmp_path):
    store, out = Store(folder), tmp_path / "all.h5ad"
    export(store, out)
    back = ad.read_h5ad(out)
    assert back.shape == (sum(map(len, kept)), len(GENES))
    assert back.var_names.to_list() == store.genes.keys
    assert set(back.obs["dataset"]) == {"first.h5ad", "same.h5ad", "same.h5ad (2)"}
    (rows,) = store.chunks(10_000)
    assert np.array_equal(back.X.toarray(), dense(store, rows))
    names = list(back.obs["dataset"].cat.categories)
    for number, file in enumerate(files):
        mine = back[back.obs["dataset"] == names[number], file.var_names]
        wanted = file[mine.obs["dataset_row"].to_numpy()]
        assert np.array_equal(mine.X.toarray(), wanted.X.toarray())
        assert list(mine.obs_names) == list(wanted.obs_names)
        assert [str(v) for v in mine.obs["cell_type"]] == [str(v) for v in wanted.obs["cell_type"]]


def test_the_only_data_set_needs_no_name(files, kept, rng, tmp_path):
    folder = write_store(tmp_path / "one", files[:1], kept[:1], rng)
    export(Store(folder), tmp_path / "back.h5ad")
    back = ad.read_h5ad(tmp_path / "back.h5ad")
    assert (back.X != files[0][kept[0]].X).nnz == 0
    assert list(back.var_names) == list(files[0].var_names)


def test_what_prepare_made_of_real_cells_comes_back(demo_cells, tmp_path, rng):
    """Through all of it: genes matched, empty cells and doubles dropped, cells shuffled."""
    real = ad.read_h5ad(demo_cells / "pbmc3k.h5ad")
    given = {}
    for name, n_cells in (("one.h5ad", 150), ("two.h5ad", 90)):
        part = real[rng.choice(1_000, n_cells, replace=False)]
        part = part[:, rng.permutation(part.n_vars)[:8_000]].copy()
        part.X = sp.vstack([sp.csr_matrix((2, part.n_vars), dtype=np.int32), part.X[2:]]).tocsr()
        part.obs["donor_id"] = pd.Categorical(rng.choice(["d1", "d2"], n_cells))
        part.var["symbol"] = [f"{name[0]}-{gene}" for gene in part.var_names]
        part.write_h5ad(tmp_path / name)
        given[name] = ad.read_h5ad(tmp_path / name)
    files, config = [str(tmp_path / name) for name in given], PrepareConfig(shard_cells=60)
    symbols, ids = list(real.var_names), [""] * real.n_vars
    prepare(files, tmp_path / "store", config, symbols=symbols, ensembl_ids=ids)
    store = Store(tmp_path / "store")
    assert len(store.manifest.shards) > 1
    for name, file in given.items():
        entry = next(e for e in store.manifest.datasets if e.name.endswith(name))
        source = export(store, tmp_path / "back.h5ad", dataset=entry.id)
        assert isinstance(source, ExportedDataset)
        assert set(range(2, file.n_obs)).issuperset(source.source_rows)  # the first two are empty
        back, wanted = ad.read_h5ad(tmp_path / "back.h5ad"), file[source.source_rows].copy()
        assert source.n_cells == entry.n_cells == file.n_obs - sum(entry.dropped.values())
        assert (back.X != wanted.X).nnz == 0
        pd.testing.assert_frame_equal(back.var, wanted.var)
        assert list(back.obs_names) == list(wanted.obs_names)
        for column in ("cell_type", "donor_id"):
            assert list(back.obs[column]) == list(wanted.obs[column])


def test_names_of_files_and_the_second_of_a_name(files, kept, folder):
    store = Store(folder)
    assert ExportedDataset(store, "same.h5ad").entry.id == "000001"
    assert ExportedDataset(store, "same.h5ad (2)").entry.id == "000002"
    with pytest.raises(InputError, match=r"no data set 'x'; there is: first.h5ad, same.h5ad, "):
        ExportedDataset(store, "x")


def test_without_names_of_cells_their_rows_are_names(files, kept, folder, tmp_path, monkeypatch):
    table = Store.obs_table
    monkeypatch.setattr(Store, "obs_table", lambda *args: table(*args).drop_columns(["name"]))
    assert list(ExportedDataset(Store(folder), "first.h5ad").obs.index) == [str(r) for r in kept[0]]


# --- refusals, and nothing lost -------------------------------------------------------------


def test_other_endings_are_refused(folder, tmp_path):
    with pytest.raises(OutputError, match=r"Give it that ending"):
        export(Store(folder), tmp_path / "out.zarr")


def test_a_flipped_bit_leaves_what_was_there(folder, tmp_path):
    out = tmp_path / "out.h5ad"
    out.write_text("before")
    shard = max((folder / "shards").glob("*.cells"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 3] ^= 4
    shard.write_bytes(raw)
    with pytest.raises(StoreError, match="checksum"):
        export(Store(folder), out)
    assert out.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"store", "out.h5ad"}


def test_var_of_another_data_set_is_found_out(folder, tmp_path):
    datasets = folder / "datasets"
    shutil.copy(datasets / "000000.parquet", datasets / "000002.parquet")
    with pytest.raises(StoreError, match="does not match its sha256"):
        export(Store(folder), tmp_path / "out.h5ad", dataset="000002")


FULL_DISK = """
    import resource, signal, sys
    from scfm.data.export import export
    from scfm.data.store import Store
    from scfm.errors import OutputError

    store = Store(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        export(store, sys.argv[2])
    except OutputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
"""


def test_a_full_disk_leaves_nothing(folder, tmp_path):
    """In a process whose files may not grow beyond a limit."""
    out = tmp_path / "out.h5ad"
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert f"Cannot write {out}: File too large" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
