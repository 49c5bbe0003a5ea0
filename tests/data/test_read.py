"""Every format against the reader of its own makers, or a matrix written by hand."""

import gzip
import logging
import pickle
import shutil
import tracemalloc
import zipfile

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.io
import scipy.sparse as sp

from scfm.data.matrices import BLOCK_VALUES, DenseRows, as_matrix
from scfm.data.read import open_counts
from scfm.errors import InputError, ScfmWarning

N_CELLS, N_GENES = 57, 31


@pytest.fixture
def counts(rng) -> np.ndarray:
    """Raw counts, dense, no empty cell."""
    counts = rng.poisson(0.7, size=(N_CELLS, N_GENES)).astype(np.float32)
    counts[:, 3] += 1
    return counts


@pytest.fixture
def adata(counts) -> ad.AnnData:
    genes = [f"G{i}" for i in range(N_GENES)]
    cells = [f"C{i}" for i in range(N_CELLS)]
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b", None] * 19)}, index=cells)
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))


def dense(source, rows) -> np.ndarray:
    """CountRows as a matrix, after checking what CountRows promises."""
    for row in range(rows.n_cells):
        columns = rows.indices[rows.indptr[row] : rows.indptr[row + 1]]
        assert (np.diff(columns) > 0).all()
    assert (rows.counts != 0).all()
    assert rows.indptr[0] == 0
    assert rows.indptr[-1] == len(rows.indices) == len(rows.counts)
    shape = (rows.n_cells, len(source.var))
    return sp.csr_matrix((rows.counts, rows.indices, rows.indptr), shape).toarray()


def assert_reads(source, wanted: np.ndarray, dtype=np.int32) -> None:
    """Chunks of several sizes and rows in any order give ``wanted``."""
    assert source.n_cells == len(wanted)
    assert len(source.obs) == len(wanted)
    for n_cells in (1, 7, len(wanted), 10 * len(wanted)):
        chunks = list(source.chunks(n_cells))
        assert [rows.n_cells for rows in chunks[:-1]] == [n_cells] * (len(chunks) - 1)
        assert all(rows.counts.dtype == dtype for rows in chunks)
        assert np.array_equal(np.concatenate([dense(source, rows) for rows in chunks]), wanted)
        index = np.concatenate([rows.cell_index for rows in chunks])
        assert np.array_equal(index, np.arange(len(wanted)))
    order = np.array([5, 0, 5, len(wanted) - 1, 3, 4])
    rows = source.rows(order)
    assert np.array_equal(dense(source, rows), wanted[order])
    assert np.array_equal(rows.cell_index, order)
    assert source.rows(np.array([], dtype=np.int64)).n_cells == 0


@pytest.mark.parametrize("backed", [True, False, None])
@pytest.mark.parametrize("stored", ["csr", "csc", "dense", "float64", "int64", "uint16", "bool"])
def test_h5ad(adata, counts, tmp_path, stored, backed):
    if stored == "csc":
        adata.X = sp.csc_matrix(counts)
    elif stored == "dense":
        adata.X = counts
    elif stored == "bool":
        counts = counts > 0
        adata.X = sp.csr_matrix(counts)
    elif stored != "csr":
        adata.X = sp.csr_matrix(counts.astype(stored))
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    with open_counts(path, backed=backed) as source:
        assert source.name == str(path)
        assert source.counts_from == "X"
        assert_reads(source, counts)
        theirs = ad.read_h5ad(path)
        pd.testing.assert_frame_equal(source.obs, theirs.obs)
        pd.testing.assert_frame_equal(source.var, theirs.var)


@pytest.mark.parametrize("backed", [True, False])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")  # while writing the file
@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
def test_zarr(adata, counts, tmp_path, kind, backed, zipped):
    adata.X = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind](counts)
    path = tmp_path / "cells.zarr"
    adata.write_zarr(path)
    theirs = ad.read_zarr(path)
    if zipped:
        archive = tmp_path / "cells.zarr.zip"
        with zipfile.ZipFile(archive, "w") as store:
            for file in sorted(path.rglob("*")):
                store.write(file, file.relative_to(path))
        path = archive
    with open_counts(path, backed=backed) as source:
        assert_reads(source, counts)
        pd.testing.assert_frame_equal(source.obs, theirs.obs)


def write_tenx_v3(path, matrix: sp.csc_matrix, kinds: list[str]) -> None:
    """As Cell Ranger 3 writes: genes x cells, CSC."""
    n_genes, n_cells = matrix.shape
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([f"AAAC{i}-1" for i in range(n_cells)], "S")
        group["data"] = matrix.data.astype(np.int32)
        group["indices"] = matrix.indices.astype(np.int64)
        group["indptr"] = matrix.indptr.astype(np.int64)
        group["shape"] = np.array(matrix.shape, np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(n_genes)], "S")
        features["name"] = np.array([f"G{i}" for i in range(n_genes)], "S")
        features["feature_type"] = np.array(kinds, "S")
        features["genome"] = np.array(["GRCh38"] * n_genes, "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")


@pytest.mark.parametrize("backed", [True, False])
def test_tenx_v3_h5_keeps_gene_expression_only(counts, tmp_path, backed):
    path = tmp_path / "filtered_feature_bc_matrix.h5"
    kinds = ["Gene Expression"] * 20 + ["Antibody Capture"] * 8 + ["Gene Expression"] * 3
    write_tenx_v3(path, sp.csc_matrix(counts.T), kinds)
    theirs = sc.read_10x_h5(path)  # keeps Gene Expression only, as we do
    with pytest.warns(ScfmWarning, match="23 'Gene Expression' features .* 8 'Antibody Capture'"):
        source = open_counts(path, backed=backed)
    assert_reads(source, theirs.X.toarray())
    assert source.format == "10x h5"
    assert list(source.obs.index) == list(theirs.obs_names)
    pd.testing.assert_frame_equal(source.var[theirs.var.columns], theirs.var)


def test_tenx_h5_without_genes_is_refused(counts, tmp_path):
    path = tmp_path / "antibodies.h5"
    write_tenx_v3(path, sp.csc_matrix(counts.T), ["Antibody Capture"] * N_GENES)
    with pytest.raises(InputError, match=r"no 'Gene Expression' features, only 31 'Antibody"):
        open_counts(path)


def write_tenx_v2(path, **genomes: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for genome, counts in genomes.items():
            matrix = sp.csc_matrix(counts.T)
            group = file.create_group(genome)
            group["barcodes"] = np.array([f"AAAC{i}-1" for i in range(matrix.shape[1])], "S")
            group["genes"] = np.array([f"ENSG{i:011d}" for i in range(matrix.shape[0])], "S")
            group["gene_names"] = np.array([f"G{i}" for i in range(matrix.shape[0])], "S")
            group["data"] = matrix.data.astype(np.int32)
            group["indices"], group["indptr"] = matrix.indices, matrix.indptr
            group["shape"] = np.array(matrix.shape)


@pytest.mark.parametrize("backed", [True, False])
def test_tenx_v2_h5(counts, tmp_path, backed):
    path = tmp_path / "filtered_gene_bc_matrices.h5"
    write_tenx_v2(path, GRCh38=counts)
    theirs = sc.read_10x_h5(path)
    with open_counts(path, backed=backed) as source:
        assert source.counts_from == "X"
        assert_reads(source, theirs.X.toarray())
        pd.testing.assert_frame_equal(source.var, theirs.var)


def test_tenx_v2_h5_of_two_genomes_wants_a_choice(counts, tmp_path):
    path = tmp_path / "barnyard.h5"
    write_tenx_v2(path, hg19=counts, mm10=counts[:, ::-1])
    with pytest.raises(InputError, match=r"2 genomes: hg19, mm10. .*layer='hg19'"):
        open_counts(path)
    source = open_counts(path, layer="mm10")
    assert source.counts_from == "mm10"
    assert_reads(source, sc.read_10x_h5(path, genome="mm10").X.toarray())


def write_mtx(folder, counts, *, version: int, gzipped: bool, prefix: str = "", kinds=None) -> None:
    folder.mkdir(exist_ok=True)
    kinds = kinds or ["Gene Expression"] * counts.shape[1]
    scipy.io.mmwrite(folder / f"{prefix}matrix.mtx", sp.coo_matrix(counts.T.astype(int)))
    extra = [f"\t{kind}" if version == 3 else "" for kind in kinds]
    features = [f"ENSG{i:011d}\tG{i // 2}{kind}\n" for i, kind in enumerate(extra)]
    name = "features" if version == 3 else "genes"
    (folder / f"{prefix}{name}.tsv").write_text("".join(features))
    barcodes = "".join(f"AAAC{i}-1\n" for i in range(len(counts)))
    (folder / f"{prefix}barcodes.tsv").write_text(barcodes)
    if gzipped:
        for file in list(folder.glob(f"{prefix}*.[mt][ts][xv]")):
            (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()


@pytest.mark.parametrize(("version", "gzipped"), [(2, False), (3, True)])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")  # anndata's
def test_mtx_folder(counts, tmp_path, version, gzipped, prefix):
    folder = tmp_path / "mtx"
    write_mtx(folder, counts, version=version, gzipped=gzipped, prefix=prefix)
    theirs = sc.read_10x_mtx(folder, make_unique=False, prefix=prefix or None)
    source = open_counts(folder)
    assert source.format == "10x mtx"
    assert_reads(source, theirs.X.toarray())
    assert list(source.var.index) == list(theirs.var_names)  # not unique, and kept so
    assert list(source.var["gene_ids"]) == list(theirs.var["gene_ids"])
    assert list(source.obs.index) == list(theirs.obs_names)


@pytest.mark.parametrize(("version", "gzipped"), [(2, True), (3, False)])
def test_mtx_packed_otherwise_than_cell_ranger_does(counts, tmp_path, version, gzipped):
    write_mtx(tmp_path / "mtx", counts, version=version, gzipped=gzipped)
    assert_reads(open_counts(tmp_path / "mtx"), counts)


def test_mtx_of_several_modalities_keeps_genes(counts, tmp_path):
    kinds = ["Gene Expression"] * 29 + ["Peaks"] * 2
    write_mtx(tmp_path / "mtx", counts, version=3, gzipped=True, kinds=kinds)
    with pytest.warns(ScfmWarning, match="29 'Gene Expression' .* left out: 2 'Peaks'"):
        source = open_counts(tmp_path / "mtx")
    assert_reads(source, counts[:, :29])


def test_mtx_of_several_samples_wants_a_file(counts, tmp_path):
    write_mtx(tmp_path / "mtx", counts, version=3, gzipped=True, prefix="a_")
    write_mtx(tmp_path / "mtx", counts[::-1], version=3, gzipped=True, prefix="b_")
    with pytest.raises(InputError, match=r"2 matrices \(a_matrix.mtx.gz, b_matrix.mtx.gz\)"):
        open_counts(tmp_path / "mtx")
    assert_reads(open_counts(tmp_path / "mtx" / "b_matrix.mtx.gz"), counts[::-1])


@pytest.mark.parametrize("backed", [True, False])
def test_loom(counts, tmp_path, backed):
    path = tmp_path / "cells.loom"
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=counts.T, chunks=(8, 8), compression="gzip")
        file["layers/spliced"] = counts.T - 0.5
        file["row_attrs/Gene"] = np.array([f"G{i}" for i in range(N_GENES)], "S")
        file["row_attrs/Accession"] = np.array([f"ENSG{i}" for i in range(N_GENES)], object)
        file["col_attrs/CellID"] = np.array([f"C{i}" for i in range(N_CELLS)], "S")
        file["col_attrs/Age"] = np.arange(N_CELLS)
        file["col_attrs/PCs"] = np.zeros((N_CELLS, 2))  # no column of a table
    with open_counts(path, backed=backed) as source:
        assert_reads(source, counts)
        assert list(source.var.index) == [f"G{i}" for i in range(N_GENES)]
        assert list(source.var["Accession"]) == [f"ENSG{i}" for i in range(N_GENES)]
        assert list(source.obs.index) == [f"C{i}" for i in range(N_CELLS)]
        assert list(source.obs.columns) == ["Age"]


def test_loom_layer(counts, tmp_path):
    path = tmp_path / "cells.loom"
    with h5py.File(path, "w") as file:
        file["matrix"] = np.log1p(counts.T * 1.7)
        file["layers/counts"] = counts.T
        file["row_attrs/var_names"] = np.array([f"G{i}" for i in range(N_GENES)], "S")
        file.create_group("col_attrs")
    source = open_counts(path)
    assert source.counts_from == "layers['counts']"
    assert_reads(source, counts)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, np.asarray])
def test_anndata_in_memory_is_not_copied(adata, counts, kind):
    if kind is not sp.coo_matrix:  # which AnnData itself does not take as X
        adata.X = kind(counts)
    before = adata.X.copy()
    source = open_counts(adata)
    assert source.name == "AnnData"
    assert source.var is adata.var
    assert_reads(source, counts)
    assert abs(adata.X - before).max() == 0
    if kind is sp.csr_matrix:
        assert np.shares_memory(source._rows.values, adata.X.data)


def test_anndata_view(adata, counts):
    assert_reads(open_counts(adata[10:40, ::2]), counts[10:40, ::2])


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_anndata_backed(adata, counts, tmp_path, kind):
    adata.X = kind(counts)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert_reads(open_counts(backed), counts)
    backed.file.close()


def normalised(adata: ad.AnnData) -> ad.AnnData:
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    return logged


@pytest.mark.parametrize("on_disk", [True, False])
def test_counts_are_found_where_they_are(adata, counts, tmp_path, on_disk, caplog):
    def opened(data, **options):
        if not on_disk:
            return open_counts(data, **options)
        data.write_h5ad(tmp_path / "cells.h5ad")
        return open_counts(tmp_path / "cells.h5ad", **options)

    logged = normalised(adata)
    in_raw = logged[:, :9].copy()
    in_raw.raw = adata
    source = opened(in_raw)
    assert source.counts_from == "raw.X"
    assert len(source.var) == N_GENES  # raw's own genes, not those of X
    assert_reads(source, counts)

    in_layer = logged.copy()
    in_layer.layers["counts"] = adata.X
    in_layer.raw = adata
    with caplog.at_level(logging.INFO, logger="scfm"):
        source = opened(in_layer)
    assert source.counts_from == "layers['counts']"
    assert "X looks like log1p" in caplog.text
    assert_reads(source, counts)
    assert opened(in_layer, layer="raw").counts_from == "raw.X"

    named = logged.copy()
    named.layers["umi"] = sp.csr_matrix(counts)
    assert opened(named, layer="umi").counts_from == "layers['umi']"
    assert opened(adata, layer="X").counts_from == "X"


def test_x_may_be_absent(adata, counts, tmp_path):
    data = ad.AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    data.write_h5ad(tmp_path / "cells.h5ad")
    assert open_counts(data).counts_from == "layers['counts']"
    assert_reads(open_counts(tmp_path / "cells.h5ad"), counts)


def test_unsorted_duplicate_and_zero_entries_are_tidied():
    indptr, indices = np.array([0, 4, 6]), np.array([2, 0, 2, 1, 1, 0])
    matrix = sp.csr_matrix((np.array([1.0, 2, 3, 0, 5, 4]), indices, indptr), (2, 3))
    source = open_counts(ad.AnnData(matrix.copy()))
    assert np.array_equal(dense(source, source.rows(np.arange(2))), [[2, 0, 4], [4, 5, 0]])


def test_float_noise_on_integers_is_rounded(adata, counts, rng):
    adata.X = sp.csr_matrix(counts * (1 + rng.uniform(-1e-4, 1e-4, counts.shape)))
    assert_reads(open_counts(adata), counts)


def test_expected_counts(adata, counts, rng):
    expected = (counts * 40 + rng.random(counts.shape) * (counts > 1)).astype(np.float32)
    adata.X = sp.csr_matrix(expected)
    assert_reads(open_counts(adata, expected_counts=True), expected, dtype=np.float32)
    adata.layers["counts"] = sp.csr_matrix(counts)  # integers are the surer thing
    assert open_counts(adata, expected_counts=True).counts_from == "layers['counts']"


def test_non_unique_names(adata, counts, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["obs/_index"][:] = "same"
        file["var/_index"][:] = "same"
    source = open_counts(tmp_path / "cells.h5ad")
    assert set(source.obs.index) == set(source.var.index) == {"same"}
    assert_reads(source, counts)


def test_weird_obs_columns(adata, counts, tmp_path):
    adata.obs["nullable"] = pd.array([1, None, 3] * 19, dtype="Int64")
    adata.obs["flag"] = pd.array([True, None, False] * 19, dtype="boolean")
    adata.obs["odd"] = 1
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with open_counts(tmp_path / "cells.h5ad", backed=True) as source:
        pd.testing.assert_frame_equal(source.obs, adata.obs, check_names=False)
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["obs/odd"].attrs["encoding-type"] = "of-the-future"
    with pytest.warns(ScfmWarning, match="obs: cannot read 'odd'; left out"):
        obs = open_counts(tmp_path / "cells.h5ad").obs
    pd.testing.assert_frame_equal(obs, adata.obs.drop(columns="odd"), check_names=False)


def test_old_h5ad(counts, tmp_path):
    """The layout of anndata 0.6: tables as compound datasets."""
    path = tmp_path / "old.h5ad"
    matrix = sp.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", matrix.shape
        group["data"], group["indices"] = matrix.data, matrix.indices
        group["indptr"] = matrix.indptr
        for key, length in (("obs", N_CELLS), ("var", N_GENES)):
            names = [(f"{key}{i}".encode(),) for i in range(length)]
            file[key] = np.array(names, dtype=[("index", "S10")])
    source = open_counts(path)
    assert source.format != "h5ad"  # so that no copy of it is written into
    assert_reads(source, counts)
    assert source.var.index[3] == "var3"


def test_rows_out_of_range(adata):
    with pytest.raises(IndexError, match="cells 0 to 56"):
        open_counts(adata).rows(np.array([57]))


@pytest.mark.parametrize("backed", [True, False])
def test_source_travels_to_another_process(adata, counts, tmp_path, backed):
    adata.layers["umi"] = adata.X
    adata.write_h5ad(tmp_path / "cells.h5ad")
    source = open_counts(tmp_path / "cells.h5ad", layer="umi", backed=backed)
    again = pickle.loads(pickle.dumps(source))
    assert again.counts_from == source.counts_from
    assert_reads(again, counts)


class Counting:
    """An array on disk that counts how often each element is read."""

    def __init__(self, array: np.ndarray, chunk: int) -> None:
        self.array, self.chunks, self.dtype, self.shape = array, (chunk,), array.dtype, array.shape
        self.reads = np.zeros(-(-len(array) // chunk), dtype=int)

    def __getitem__(self, part):
        start, stop, _ = part.indices(len(self.array))
        if stop > start:
            self.reads[start // self.chunks[0] : -(-stop // self.chunks[0])] += 1
        return self.array[part]


@pytest.mark.parametrize("chunk", [1000, 8934, 10**6])
def test_each_storage_chunk_is_decoded_once(rng, monkeypatch, chunk):
    from scfm.data import matrices

    monkeypatch.setattr(matrices, "BLOCK_VALUES", 5000)
    matrix = sp.random(900, 200, density=0.2, format="csr", random_state=1)
    indices, values = Counting(matrix.indices, chunk), Counting(matrix.data, chunk)
    rows = matrices.SparseRows(matrix.indptr, indices, values, 200)
    blocks = list(rows.blocks())
    assert (indices.reads == 1).all()
    assert (values.reads == 1).all()
    assert np.array_equal(np.concatenate([block.values for block in blocks]), matrix.data)
    assert sum(len(block.indptr) - 1 for block in blocks) == 900


def test_dense_blocks_follow_storage_chunks(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = file.create_dataset("x", shape=(30_000, 5000), chunks=(64, 64), dtype="f4")
        by_gene = DenseRows(stored, by_gene=True)
        assert by_gene.block_rows % 64 == 0
        assert by_gene.block_rows * 30_000 <= BLOCK_VALUES
        assert as_matrix(stored).shape == by_gene.shape[::-1]


def test_backed_memory_does_not_grow_with_the_file(rng, tmp_path, monkeypatch):
    """Peak Python memory of a pass over a file and one four times as long."""
    from scfm.data import matrices

    monkeypatch.setattr(matrices, "BLOCK_VALUES", 20_000)
    peaks = []
    for n_cells in (2000, 8000):
        matrix = sp.random(n_cells, 500, density=0.1, format="csr", random_state=2)
        matrix.data = np.ceil(matrix.data * 9).astype(np.float32)
        path = tmp_path / f"{n_cells}.h5ad"
        ad.AnnData(matrix).write_h5ad(path, compression="gzip")
        source = open_counts(path, backed=True)
        tracemalloc.start()
        assert sum(int(rows.counts.sum()) for rows in source.chunks(100)) == matrix.sum()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 0.5 * matrix.data.nbytes * 2


def test_large_csc_says_what_it_takes(adata, counts, tmp_path, monkeypatch):
    from scfm.data import read

    monkeypatch.setattr(read, "MEMORY_LIMIT", 100)
    adata.X = sp.csc_matrix(counts)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(ScfmWarning, match=r"stored by gene \(CSC\).*adata.X.tocsr\(\)"):
        source = open_counts(tmp_path / "cells.h5ad")
    assert_reads(source, counts)


def test_real_files_equal_anndata(shared_data, demo_cells):
    files = sorted((shared_data / "rna").glob("*.h5ad")) if shared_data else []
    files = [file for file in files if file.stat().st_size < 2e6] or sorted(
        demo_cells.glob("*.h5ad")
    )[:2]
    for path in files:
        theirs = ad.read_h5ad(path).X
        with open_counts(path, backed=True) as source:
            chunks = list(source.chunks(64))
        ours = np.concatenate([rows.counts for rows in chunks])
        columns = np.concatenate([rows.indices for rows in chunks])
        theirs = sp.csr_matrix(theirs)
        theirs.eliminate_zeros()
        theirs.sort_indices()
        assert np.array_equal(ours, theirs.data)
        assert np.array_equal(columns, theirs.indices)


def test_name_does_not_decide_the_format(adata, counts, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    shutil.move(tmp_path / "cells.h5ad", tmp_path / "cells.h5")
    assert_reads(open_counts(tmp_path / "cells.h5"), counts)
