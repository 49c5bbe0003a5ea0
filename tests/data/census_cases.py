"""SOMA experiments and Census copies written here, against the AnnData they were written from."""

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from scfm.data import soma_rows
from scfm.data.matrices import DenseRows, Rows
from scfm.data.read import open_counts
from scfm.data.soma_address import absolute_address, is_address, parse_address
from scfm.errors import (
    CountsError,
    EmptyCellError,
    InputError,
    LabelError,
    MissingFileError,
    ScfmWarning,
    UnreadableFileError,
)
from tests.data.test_read import assert_reads, dense

soma = pytest.importorskip(
    "tiledbsoma", reason="needs the extra census: pip install 'scfm[census]'"
)
census_package = pytest.importorskip("cellxgene_census", reason="needs the extra census")

import tiledbsoma.io  # noqa: E402, F401  without this there is no soma.io

from scfm.data.census import census_datasets  # noqa: E402
from scfm.data.export import ExportedDataset  # noqa: E402
from scfm.data.prepare import prepare  # noqa: E402
from scfm.data.prepare_plan import PrepareConfig  # noqa: E402
from scfm.data.store import Store  # noqa: E402

N_CELLS, N_GENES = 57, 31


@pytest.fixture
def counts(rng) -> np.ndarray:
    """Raw counts, dense, no empty cell; some beyond 16 bits."""
    counts = rng.poisson(0.7, size=(N_CELLS, N_GENES)).astype(np.int32)
    counts[:, 3] += 1
    counts[4, 5] = 100_000
    return counts


@pytest.fixture
def adata(counts, rng) -> ad.AnnData:
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["b", "a", None] * 19, categories=["b", "a"]),
            "donor": pd.Categorical([f"D & {i % 5}" for i in range(N_CELLS)]),
            "age": rng.integers(20, 80, N_CELLS),
            "score": rng.normal(size=N_CELLS),
            "is_primary_data": np.arange(N_CELLS) % 2 == 0,
        },
        index=[f"C{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame(
        {"feature_name": [f"G{i}" for i in range(N_GENES)]},
        index=[f"ENSG{i:011d}" for i in range(N_GENES)],
    )
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def write_soma(path: Path, adata: ad.AnnData, **options) -> str:
    """Write as tiledbsoma does and return the address."""
    soma.io.from_anndata(str(path), adata.copy(), measurement_name="RNA", **options)
    return f"soma:{path}"


@pytest.fixture
def address(adata, tmp_path) -> str:
    return write_soma(tmp_path / "cells.soma", adata)


@pytest.mark.parametrize("backed", [True, False, None])
def test_soma_gives_what_its_anndata_held(adata, counts, tmp_path, address, backed):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    theirs = open_counts(tmp_path / "cells.h5ad")
    with open_counts(address, backed=backed) as source:
        assert source.name == address
        assert source.format == "soma"
        assert source.path is None
        assert source.counts_from == "X['data']"
        assert source.in_memory == (backed is not True)
        assert_reads(source, counts)
        pd.testing.assert_frame_equal(source.var, theirs.var)
        pd.testing.assert_frame_equal(source.obs, theirs.obs)


def test_named_index_comes_back(adata, tmp_path):
    adata.obs.index.name, adata.var.index.name = "barcode", "gene_id"
    source = open_counts(write_soma(tmp_path / "named.soma", adata))
    pd.testing.assert_frame_equal(source.obs, adata.obs)
    pd.testing.assert_frame_equal(source.var, adata.var)


def test_a_path_object_names_the_same_cells(counts, address):
    assert_reads(open_counts(Path(address)), counts)


def test_it_pickles(adata, counts, address):
    source = pickle.loads(pickle.dumps(open_counts(address + "?obs=age > 30", backed=True)))
    assert_reads(source, counts[adata.obs["age"].to_numpy() > 30])


@pytest.mark.parametrize(
    ("value_filter", "select"),
    [
        ("kind == 'a'", lambda obs: obs["kind"] == "a"),
        ("age >= 40 and kind in ['a', 'b']", lambda obs: (obs["age"] >= 40) & obs["kind"].notna()),
        ("donor == 'D %26 2'", lambda obs: obs["donor"] == "D & 2"),
        ("is_primary_data == True", lambda obs: obs["is_primary_data"]),
        ("score < -100 or age > 0", lambda obs: obs["age"] > 0),
    ],
)
@pytest.mark.parametrize("backed", [True, False])
def test_filter(adata, counts, address, value_filter, select, backed):
    is_wanted = select(adata.obs).to_numpy()
    with open_counts(f"{address}?obs={value_filter}", backed=backed) as source:
        assert_reads(source, counts[is_wanted])
        wanted = adata.obs[is_wanted]
        for column in ("age", "score", "is_primary_data"):
            np.testing.assert_array_equal(source.obs[column], wanted[column])
        assert list(source.obs.index) == list(wanted.index)
        assert [str(v) for v in source.obs["kind"]] == [str(v) for v in wanted["kind"]]


def test_columns(adata, address):
    source = open_counts(f"{address}?columns=kind,age&obs=age > 50")
    wanted = adata.obs.loc[adata.obs["age"] > 50, ["kind", "age"]]
    assert list(source.obs.columns) == ["kind", "age"]
    assert list(source.obs.index) == list(wanted.index)
    np.testing.assert_array_equal(source.obs["age"], wanted["age"])


def test_small_reads_give_the_same(counts, address, monkeypatch):
    """Blocks of a few cells, learnt from what came before, join without a seam."""
    monkeypatch.setattr(soma_rows, "READ_VALUES", 100)
    reads = []
    read = soma_rows.SomaRows._read
    monkeypatch.setattr(
        soma_rows.SomaRows, "_read", lambda self, ids: reads.append(len(ids)) or read(self, ids)
    )
    with open_counts(address, backed=True) as source:
        reads.clear()
        list(source.chunks(1000))
        assert sum(reads) == N_CELLS
        assert max(reads) <= 10  # a cell has about 16 values
        assert_reads(source, counts)


def test_layer_and_raw_are_found(adata, counts, tmp_path):
    adata.raw = adata.copy()
    adata.layers["umi"] = adata.X.copy()
    adata.X = sp.csr_matrix(np.log1p(counts).astype(np.float32))
    path = write_soma(tmp_path / "layers.soma", adata)
    source = open_counts(path)
    assert source.counts_from == "raw.X"
    assert_reads(source, counts)
    assert_reads(open_counts(path, layer="umi"), counts)
    with pytest.raises(CountsError, match=r"X\['data'\] looks like log1p"):
        open_counts(path + "?measurement=RNA")
    assert_reads(open_counts(path + "?measurement=raw"), counts)
    with pytest.raises(CountsError, match=r"layer= \(--layer\) can be: data, umi, raw"):
        open_counts(path, layer="nosuch")


def test_dense_array(adata, counts, tmp_path):
    adata.X = counts.astype(np.float32)
    path = write_soma(tmp_path / "dense.soma", adata, X_kind=soma.DenseNDArray)
    is_wanted = adata.obs["age"].to_numpy() > 45
    for backed in (True, False):
        assert_reads(open_counts(path, backed=backed), counts)
        assert_reads(open_counts(path + "?obs=age > 45", backed=backed), counts[is_wanted])
    with open_counts(path, backed=True) as source:
        assert isinstance(source._rows, DenseRows)


def test_rows_of_every_kind_keep_to_the_protocol(address):
    with open_counts(address, backed=True) as source:
        assert isinstance(source._rows, Rows)


def test_empty_cell_is_refused_or_kept(adata, counts, tmp_path):
    counts[7] = 0
    adata.X = sp.csr_matrix(counts)
    path = write_soma(tmp_path / "empty.soma", adata)
    with pytest.raises(EmptyCellError, match="1 of 57 cells"):
        list(open_counts(path, backed=True).chunks(100))
    kept = list(open_counts(path, backed=True, keep_empty=True).chunks(100))
    np.testing.assert_array_equal(dense(open_counts(path, keep_empty=True), kept[0]), counts)


def test_fingerprint_is_of_the_content(adata, address, tmp_path):
    found = open_counts(address).fingerprint()
    assert found == open_counts(address, backed=True).fingerprint()
    assert len(found) == 64
    some = open_counts(address + "?obs=age > 30").fingerprint()
    all_by_filter = open_counts(address + "?obs=age > 0").fingerprint()
    assert some != found == all_by_filter
    with soma.open(address.removeprefix("soma:"), "w") as experiment:  # one value, rewritten
        cells = pa.table(
            {"soma_dim_0": [3], "soma_dim_1": [3], "soma_data": pa.array([9], pa.int32())}
        )
        experiment.ms["RNA"].X["data"].write(cells)
    assert open_counts(address).fingerprint() != found


def test_file_fingerprint_is_its_sha256(adata, tmp_path):
    import hashlib

    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    assert open_counts(path).fingerprint() == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(TypeError, match="no fingerprint"):
        open_counts(adata).fingerprint()


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("?obs=nosuch == 1", InputError, "'nosuch|nosuch == 1.*Columns: age, "),
        ("?obs=kind ==", InputError, "not understood.*Columns: age"),
        ("?obs=kind == 'nosuch'", InputError, "no cell meets .*nosuch"),
        ("?columns=kind,nosuch", LabelError, "no 'nosuch'; columns= can name: age, "),
        ("?measurement=ADT", InputError, "no measurement 'ADT'; measurement= can be: RNA"),
        ("?version=stable", InputError, "'version=stable' is not understood.*measurement, obs"),
        ("?obs", InputError, "'obs' is not understood"),
        ("?obs=age > 1&obs=age > 2", InputError, "each once"),
    ],
)
def test_refusals_say_what_there_is(address, query, error, message):
    with pytest.raises(error, match=message):
        _ = open_counts(address + query).obs


def test_no_place_no_folder_no_experiment(tmp_path, address):
    with pytest.raises(InputError, match="names no place"):
        open_counts("soma:")
    with pytest.raises(MissingFileError, match="no such folder"):
        open_counts(f"soma:{tmp_path}/nosuch")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadableFileError, match="cannot be read as a SOMA experiment"):
        open_counts(f"soma:{tmp_path}/folder")
    with pytest.raises(UnreadableFileError, match="not a SOMAExperiment"):
        open_counts(address + "/obs")


def test_damage_is_told(address):
    place = Path(address.removeprefix("soma:"))
    (fragment,) = place.glob("ms/RNA/X/data/__fragments/*/a0.tdb")
    fragment.write_bytes(fragment.read_bytes()[:-60])
    with pytest.raises(UnreadableFileError, match="cannot be read as a SOMA experiment"):
        open_counts(address)


def test_extra_is_asked_for(address, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(InputError, match=r"package tiledbsoma.*pip install 'scfm\[census\]'"):
        open_counts(address)


# --- addresses ------------------------------------------------------------------------------


def test_addresses_are_told_from_paths():
    assert is_address("soma:x")
    assert is_address(Path("census:homo_sapiens"))
    assert not is_address("cells.h5ad")
    assert not is_address("data/soma:x")
    assert not is_address(ad.AnnData(np.ones((1, 1))))


@pytest.mark.parametrize(
    "text",
    [
        "soma:s3://bucket/cells.soma?obs=tissue == 'lung' and age > 3",
        "census:homo_sapiens?version=2025-11-08&obs=cell_type == 'a %26 b'&columns=a,b",
        "census:mus_musculus?uri=s3://bucket/census&dataset=x",
    ],
)
def test_an_address_is_its_own_text(text):
    assert str(parse_address(text)) == text
    assert str(parse_address(str(Path(text)))) == text  # which loses a slash
    assert absolute_address(text) == text


def test_absolute_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_address("soma:x?obs=a == 1") == f"soma:{tmp_path}/x?obs=a == 1"
    assert absolute_address("census:homo_sapiens?uri=c") == f"census:homo_sapiens?uri={tmp_path}/c"


# --- the Census -----------------------------------------------------------------------------

DATASETS = ["ds-one", "ds-two", "ds-three"]


@pytest.fixture
def census(adata, counts, tmp_path) -> Path:
    """A copy of the Census in small: three datasets, of which each measured other genes."""
    rng = np.random.default_rng(5)
    of_cell = rng.integers(0, 3, N_CELLS)
    is_measured = np.ones((3, N_GENES), dtype=bool)
    is_measured[1, 10:14] = False
    is_measured[2, 12:20] = False
    is_measured[:, 30] = False
    counts *= is_measured[of_cell]
    adata.X = sp.csr_matrix(counts.astype(np.float32))
    adata.obs["dataset_id"] = pd.Categorical(np.array(DATASETS)[of_cell])
    adata.obs["nnz"] = (counts > 0).sum(1).astype(np.int64)
    adata.obs["raw_sum"] = counts.sum(1).astype(np.float64)
    adata.var["feature_id"] = adata.var.index
    root = tmp_path / "census"
    with soma.Collection.create(str(root)) as collection:
        info = collection.add_new_collection("census_info")
        schema = pa.schema([("soma_joinid", pa.int64()), ("dataset_id", pa.large_string())])
        with info.add_new_dataframe("datasets", schema=schema, domain=[[0, 99]]) as frame:
            ids = [20, 21, 22, 23]  # not from 0, and one that this organism lacks
            frame.write(pa.table({"soma_joinid": ids, "dataset_id": [*DATASETS, "ds-mouse"]}))
        collection.add_new_collection("census_data")
    organism = str(root / "census_data" / "homo_sapiens")
    soma.io.from_anndata(organism, adata.copy(), measurement_name="RNA", X_layer_name="raw")
    with soma.open(organism, "w") as experiment:
        kind, shape = pa.uint8(), (99, N_GENES)
        name = "feature_dataset_presence_matrix"
        with experiment.ms["RNA"].add_new_sparse_ndarray(name, type=kind, shape=shape) as array:
            dataset, gene = np.nonzero(is_measured)
            values = pa.array(np.ones(len(gene)), kind)
            array.write(
                pa.table({"soma_dim_0": dataset + 20, "soma_dim_1": gene, "soma_data": values})
            )
    with soma.open(str(root / "census_data"), "w") as data:
        data.set("homo_sapiens", soma.open(organism), use_relative_uri=True)
    return root


def test_census_copy(census, adata, counts):
    with pytest.warns(ScfmWarning, match="3 datasets, which measured 30 genes together but only"):
        source = open_counts(f"census:Homo sapiens?uri={census}")
    assert source.format == "census"
    assert source.counts_from == "X['raw']"
    assert_reads(source, counts[:, :30])  # gene 30 was measured by none
    assert list(source.var["feature_name"]) == [f"G{i}" for i in range(30)]
    assert list(source.obs.index) == list(adata.obs.index)


def test_a_dataset_of_the_census_knows_its_genes(census, adata, counts):
    address = f"census:homo_sapiens?uri={census}"
    addresses = census_datasets(address)
    assert addresses == [f"{address}&dataset={name}" for name in sorted(DATASETS)]
    assert census_datasets(addresses[0]) == addresses[:1]
    is_unmeasured = {
        "ds-one": [30],
        "ds-two": [10, 11, 12, 13, 30],
        "ds-three": [*range(12, 20), 30],
    }
    for one in addresses:
        name = one.rpartition("=")[2]
        source = open_counts(one, backed=True)
        genes = np.setdiff1d(np.arange(N_GENES), is_unmeasured[name])
        assert_reads(source, counts[adata.obs["dataset_id"] == name][:, genes])
        assert list(source.var.index) == list(adata.var.index[genes])
    n_cells = sum(open_counts(one).n_cells for one in addresses)
    assert n_cells == N_CELLS


def test_census_filter_and_dataset_together(census, adata):
    source = open_counts(
        f"census:homo_sapiens?uri={census}&dataset=ds-one&obs=age > 50 or kind == 'a'"
    )
    obs = adata.obs
    is_wanted = (obs["dataset_id"] == "ds-one") & ((obs["age"] > 50) | (obs["kind"] == "a"))
    assert list(source.obs.index) == list(obs.index[is_wanted])


def test_census_datasets_of_a_filter(census, adata):
    wanted = sorted(adata.obs.loc[adata.obs["age"] > 77, "dataset_id"].unique())
    found = census_datasets(f"census:homo_sapiens?uri={census}&obs=age > 77")
    assert [address.rpartition("=")[2] for address in found] == wanted


def test_census_refusals(census, tmp_path):
    with pytest.raises(InputError, match="no organism 'yeti'; there is: homo_sapiens"):
        open_counts(f"census:yeti?uri={census}")
    with pytest.raises(InputError, match="version= or uri=, not both"):
        open_counts(f"census:homo_sapiens?uri={census}&version=stable")
    with pytest.raises(UnreadableFileError, match=r"is no Census|cannot be read as a SOMA"):
        open_counts(f"census:homo_sapiens?uri={census}/census_info")
    with pytest.raises(UnreadableFileError):
        open_counts(f"census:homo_sapiens?uri={tmp_path}/nosuch")


def test_prepare_takes_the_census_dataset_by_dataset(census, adata, counts, tmp_path):
    """A store of it: each dataset with the genes it measured, and its cells as they were."""
    out = tmp_path / "store"
    config = PrepareConfig(minimum_coverage=0.0)  # the genes of these tests are made up
    genes = {"symbols": list(adata.var["feature_name"]), "ensembl_ids": list(adata.var_names)}
    prepare([f"census:homo_sapiens?uri={census}"], out, config, **genes)
    manifest = Store(out).manifest
    assert [entry.name.rpartition("=")[2] for entry in manifest.datasets] == sorted(DATASETS)
    assert manifest.n_cells == N_CELLS
    for entry in manifest.datasets:
        source = ExportedDataset(Store(out), entry.id)
        is_wanted = adata.obs["dataset_id"] == entry.name.rpartition("=")[2]
        assert list(source.obs.index) == list(adata.obs.index[is_wanted])
        genes = [int(name[4:]) for name in source.var.index]
        rows = source.rows(np.arange(source.n_cells))
        assert np.array_equal(dense(source, rows), counts[is_wanted][:, genes])


@pytest.fixture
def directory(census, monkeypatch):
    """What the Census's web site answers, served on this machine: releases and mirrors."""
    from cellxgene_census import _release_directory as releases

    release = {
        "release_date": None,
        "release_build": "2025-11-08",
        "soma": {"uri": str(census), "relative_uri": census.name, "s3_region": "us-west-2"},
        "h5ads": {"uri": "", "relative_uri": "", "s3_region": "us-west-2"},
        "flags": {"lts": True},
    }
    mirror = {"provider": "file", "base_uri": f"{census.parent}/", "region": ""}
    answers = {
        "/releases": {"stable": "2025-11-08", "2025-11-08": release},
        "/mirrors": {"default": "here", "here": mirror},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(releases, "CELL_CENSUS_RELEASE_DIRECTORY_URL", f"{base}/releases")
    monkeypatch.setattr(releases, "CELL_CENSUS_MIRRORS_DIRECTORY_URL", f"{base}/mirrors")
    yield base
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("directory")
def test_a_release_is_named_by_its_date(counts):
    """ "stable" is another release next year: what is opened, and written down, is its date."""
    with pytest.warns(ScfmWarning, match="3 datasets"):
        source = open_counts("census:homo_sapiens")
    assert source.name == "census:homo_sapiens?version=2025-11-08"
    assert_reads(source, counts[:, :30])
    with pytest.warns(ScfmWarning, match="3 datasets"):
        again = open_counts(source.name)
    assert again.fingerprint() == source.fingerprint()


@pytest.mark.usefixtures("directory")
def test_an_unknown_release_is_refused():
    with pytest.raises(UnreadableFileError, match=r"cannot open the Census .*1999-01-01"):
        open_counts("census:homo_sapiens?version=1999-01-01")


def test_no_network_is_told(monkeypatch):
    from cellxgene_census import _release_directory as releases

    nowhere = "http://127.0.0.1:9/releases"
    monkeypatch.setattr(releases, "CELL_CENSUS_RELEASE_DIRECTORY_URL", nowhere)
    with pytest.raises(UnreadableFileError, match=r"cannot open the Census.*network"):
        open_counts("census:homo_sapiens")
