"""Annbatch collections: of its own layout written here, and of its own making where it installs."""

import pickle
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scfm.data.annbatch import ENCODING, StackedRows, members_of
from scfm.data.matrices import Rows, SparseRows, from_scipy
from scfm.data.read import open_counts
from scfm.errors import CountsError, EmptyCellError, UnreadableFileError
from tests.data.test_read import assert_reads, dense

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),  # while writing
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
]

N_CELLS, N_GENES = 130, 31
SIZES = [11] * 11 + [9]  # twelve parts: dataset_10 must come after dataset_9


@pytest.fixture
def counts(rng) -> np.ndarray:
    counts = rng.poisson(0.7, size=(N_CELLS, N_GENES)).astype(np.float32)
    counts[:, 3] += 1
    return counts


@pytest.fixture
def adata(counts) -> ad.AnnData:
    kinds = np.array(["a", "b", "c", "d"])[np.sort(np.arange(N_CELLS) % 4)]
    obs = pd.DataFrame(
        {"kind": pd.Categorical(kinds), "age": np.arange(N_CELLS)},
        index=[f"C{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def parts_of(adata: ad.AnnData, sizes: list[int]) -> list[ad.AnnData]:
    stops = np.cumsum(sizes)
    return [adata[stop - size : stop].copy() for size, stop in zip(sizes, stops, strict=True)]


def write_collection(path: Path, parts: list[ad.AnnData]) -> Path:
    """What annbatch 0.3 lays out: AnnData groups dataset_N under a root with its mark."""
    root = zarr.open_group(path, mode="w")
    for number, part in enumerate(parts):
        ad.io.write_elem(root, f"dataset_{number}", part)
    root.attrs.update({"encoding-type": ENCODING, "encoding-version": "0.1.0"})
    return path


@pytest.mark.parametrize("backed", [True, False, None])
def test_parts_are_one_source(adata, counts, tmp_path, backed):
    path = write_collection(tmp_path / "cells.zarr", parts_of(adata, SIZES))
    with open_counts(path, backed=backed) as source:
        assert source.name == str(path)
        assert source.format == "annbatch"
        assert source.counts_from == "X"
        assert source.in_memory == (backed is not True)
        assert_reads(source, counts)
        pd.testing.assert_frame_equal(source.obs, adata.obs)
        pd.testing.assert_frame_equal(source.var, adata.var)
        again = pickle.loads(pickle.dumps(source))
    assert_reads(again, counts)
    assert len(source.fingerprint()) == 64


def test_groups_are_ordered_by_number(adata, tmp_path):
    path = write_collection(tmp_path / "cells.zarr", parts_of(adata, SIZES))
    assert members_of(zarr.open_group(path, mode="r")) == [f"dataset_{i}" for i in range(12)]


def test_dense_and_sparse_parts_and_layers(adata, counts, tmp_path):
    adata.layers["counts"] = adata.X.copy()
    parts = parts_of(adata, [60, 70])
    parts[1].layers["counts"] = parts[1].layers["counts"].toarray()
    for part in parts:
        part.X = np.log1p(part.X.toarray())
    path = write_collection(tmp_path / "cells.zarr", parts)
    for backed in (True, False):
        with open_counts(path, backed=backed) as source:
            assert source.counts_from == "layers['counts']"
            assert_reads(source, counts)
    with pytest.raises(CountsError, match="X looks like log1p"):
        open_counts(path, layer="X")


def test_rows_across_parts(adata, counts, tmp_path, rng):
    path = write_collection(tmp_path / "cells.zarr", parts_of(adata, SIZES))
    with open_counts(path, backed=True) as source:
        cells = rng.integers(0, N_CELLS, 300)
        assert np.array_equal(dense(source, source.rows(cells)), counts[cells])


def test_stacked_rows_keep_to_the_protocol(counts):
    stack = StackedRows([from_scipy(sp.csr_matrix(part)) for part in np.split(counts, 2)])
    assert isinstance(stack, Rows)
    assert stack.n_stored == np.count_nonzero(counts)
    assert isinstance(stack.load(), SparseRows)


def test_empty_cell_is_found_without_reading(adata, counts, tmp_path):
    counts[40] = 0
    adata.X = sp.csr_matrix(counts)
    path = write_collection(tmp_path / "cells.zarr", parts_of(adata, SIZES))
    with pytest.raises(EmptyCellError, match=r"1 of 130 cells .*\[40\]"):
        open_counts(path, backed=True)


def test_other_genes_in_one_part_are_refused(adata, tmp_path):
    parts = parts_of(adata, [60, 70])
    parts[1] = parts[1][:, ::-1].copy()
    path = write_collection(tmp_path / "cells.zarr", parts)
    with pytest.raises(UnreadableFileError, match=r"genes of .*dataset_1 are not those of"):
        open_counts(path)


def test_other_width_no_shared_matrix_by_gene_and_no_part(adata, tmp_path):
    parts = parts_of(adata, [60, 70])
    path = write_collection(tmp_path / "width.zarr", [parts[0], parts[1][:, :9].copy()])
    with pytest.raises(UnreadableFileError, match="9 columns in one dataset and 31 in another"):
        open_counts(path)
    parts[1].layers["counts"], parts[1].X = parts[1].X, None
    path = write_collection(tmp_path / "apart.zarr", parts)
    with pytest.raises(UnreadableFileError, match="no matrix is in all of its 2 datasets"):
        open_counts(path)
    by_gene = ad.AnnData(sp.csc_matrix(adata.X), obs=adata.obs, var=adata.var)
    path = write_collection(tmp_path / "csc.zarr", [by_gene])
    with pytest.raises(UnreadableFileError, match="stored by gene"):
        open_counts(path)
    path = write_collection(tmp_path / "none.zarr", [])
    with pytest.raises(UnreadableFileError, match="annbatch collection without a dataset"):
        open_counts(path)


def test_what_annbatch_itself_wrote(adata, counts, tmp_path):
    annbatch = pytest.importorskip(
        "annbatch",
        reason=f"annbatch needs Python 3.12, this is {sys.version_info.major}."
        f"{sys.version_info.minor}: pip install annbatch",
    )
    files = []
    for number, part in enumerate(parts_of(adata, [60, 70])):
        files.append(tmp_path / f"{number}.h5ad")
        part.write_h5ad(files[-1])
    path = tmp_path / "theirs.zarr"
    collection = annbatch.DatasetCollection(path)
    collection.add_adatas(files, dataset_size=40, shuffle_chunk_size=8)
    theirs = [ad.io.read_elem(group) for group in collection]
    assert len(theirs) > 1
    wanted = np.vstack([part.X.toarray() for part in theirs])
    names = np.concatenate([part.obs_names for part in theirs])
    for backed in (True, False):
        with open_counts(path, backed=backed) as source:
            assert source.format == "annbatch"
            assert_reads(source, wanted)
            assert list(source.obs.index) == list(names)
            # and they are the cells it was given, in another order
            place = [int(name.removeprefix("C")) for name in source.obs.index]
            assert sorted(place) == list(range(N_CELLS))
            np.testing.assert_array_equal(wanted, counts[place])
            assert isinstance(source.obs["kind"].dtype, pd.CategoricalDtype)
            assert list(source.obs["kind"]) == list(adata.obs["kind"].iloc[place])
