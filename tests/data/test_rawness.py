"""Each refusal of scfm.data.read, by its message; each accepted edge beside it."""

import re

import anndata as ad
import h5py
import numpy as np
import pytest
import scanpy as sc
import scipy.io
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.matrices import RawRows
from scfm.data.rawness import judge
from scfm.data.read import open_counts
from scfm.errors import (
    CountsError,
    EmptyCellError,
    InputError,
    MissingFileError,
    UnreadableFileError,
)


@pytest.fixture
def counts(rng) -> np.ndarray:
    counts = rng.negative_binomial(1, 0.2, size=(400, 60)).astype(np.float32)
    counts[:, 3] += 1
    return counts


def opened(matrix, **options):
    return open_counts(ad.AnnData(sp.csr_matrix(matrix)), **options)


def drained(source, n_cells=50):
    return list(source.chunks(n_cells))


@pytest.mark.parametrize("expected_counts", [False, True])
def test_log_values(counts, expected_counts):
    adata = ad.AnnData(sp.csr_matrix(counts))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    high = adata.X.max()
    message = (
        rf"X looks like log1p of normalised counts: max {high:.1f}, non-integer; every cell sums "
        r'to 10,000 after expm1\. .*layer= \(--layer.*adata\.layers\["counts"\]'
    )
    with pytest.raises(CountsError, match=message):
        open_counts(adata, expected_counts=expected_counts)
    with pytest.raises(CountsError, match="looks like log1p"):  # without a common total
        open_counts(adata[:, :40].copy(), expected_counts=expected_counts)


def test_log_values_with_counts_elsewhere_name_the_layer(counts):
    adata = ad.AnnData(sp.csr_matrix(np.log1p(counts / 3)), layers={"umi": sp.csr_matrix(counts)})
    with pytest.raises(CountsError, match=r"layers\['umi'\] looks like raw counts.*--layer umi"):
        open_counts(adata)
    with pytest.raises(CountsError, match=r"there is no 'counts'; layer=.* can be: X, umi"):
        open_counts(adata, layer="counts")


def test_every_matrix_is_described(counts):
    logged = np.log1p(counts / 3)
    adata = ad.AnnData(sp.csr_matrix(logged), layers={"counts": sp.csr_matrix(-counts)})
    adata.raw = ad.AnnData(sp.csr_matrix(counts + 0.5))
    with pytest.raises(CountsError) as refusal:
        open_counts(adata)
    for sentence in ("X looks like log1p", "layers['counts'] holds negative", "raw.X holds non-in"):
        assert sentence in str(refusal.value)


def test_normalised_values(counts):
    adata = ad.AnnData(sp.csr_matrix(counts))
    sc.pp.normalize_total(adata, target_sum=1e6)
    for expected_counts in (False, True):
        with pytest.raises(CountsError, match=r"X is normalised: every cell sums to 1,000,000"):
            open_counts(adata, expected_counts=expected_counts)


def test_scaled_values(counts):
    adata = ad.AnnData(counts)
    sc.pp.log1p(adata)
    sc.pp.scale(adata, max_value=10)
    with pytest.raises(CountsError, match=r"looks like scaled values \(z-scores\): min -\d"):
        open_counts(adata)


def test_negative_values(counts):
    counts[7, 7] = -3
    with pytest.raises(CountsError, match="X holds negative values: min -3"):
        opened(counts)


@pytest.mark.parametrize(("bad", "name"), [(np.nan, "NaN"), (np.inf, "an infinite value")])
def test_missing_values(counts, bad, name):
    counts[0, 0] = bad
    with pytest.raises(CountsError, match=f"X holds {name}, which no count can be"):
        opened(counts)


def test_non_integers(counts):
    message = r"non-integer values: \d+% of them, for example .*expected_counts=True \(--expected"
    with pytest.raises(CountsError, match=message):
        opened(counts * 5 + 0.25)


def test_counts_above_int32(counts):
    counts[3, 3] = 3e9
    with pytest.raises(CountsError, match=r"X holds 3e\+09, above the largest count \(2,147,483,6"):
        opened(counts)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.nan, "NaN is not a count"),
        (-np.inf, "an infinite value is not a count"),
        (-2, "-2 is negative"),
        (2.5, "2.5 is no integer. If they are expected counts"),
        (2**31, r"2\.14748e\+09 is above the largest count scfm holds"),
    ],
)
@pytest.mark.parametrize("backed", [True, False])
@pytest.mark.parametrize("on_disk", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_a_bad_value_in_an_unsampled_row_is_found(
    counts, tmp_path, monkeypatch, bad, message, backed, on_disk
):
    """Rows 0 to 255 are sampled in eight runs; row 34 lies between two of them."""
    monkeypatch.setattr("scfm.data.matrices.BLOCK_VALUES", 1000)
    counts[34, 11] = bad
    ad.AnnData(on_disk(counts)).write_h5ad(tmp_path / "cells.h5ad")
    if on_disk is sp.csc_matrix:  # its sample is of values: it may see the bad one at once
        with pytest.raises(CountsError, match=r"cells\.h5ad: X"):
            drained(open_counts(tmp_path / "cells.h5ad", backed=backed))
        return
    where = rf"cells\.h5ad: X, cell 34, gene '11': {message}"
    with open_counts(tmp_path / "cells.h5ad", backed=backed) as source:
        with pytest.raises(CountsError, match=where):
            drained(source)
        with pytest.raises(CountsError, match=where):
            source.rows(np.array([1, 34]))
        assert source.rows(np.array([33, 35])).n_cells == 2


def test_a_bad_last_value_is_found_when_its_chunk_is_read(counts, tmp_path, monkeypatch):
    monkeypatch.setattr("scfm.data.matrices.BLOCK_VALUES", 1000)
    monkeypatch.setattr("scfm.data.matrices.SAMPLE_ROWS", 8)
    matrix = sp.csr_matrix(counts)
    source = opened(matrix)
    source._rows.values[-1] = np.nan
    good = []
    with pytest.raises(CountsError, match=r"cell 399, .* NaN"):
        good.extend(rows.n_cells for rows in source.chunks(10))
    assert 300 < sum(good) < 400


def test_expected_counts_are_checked_too(counts):
    expected = counts * 20 + np.float32(0.5) * (counts > 2)
    for bad, message in ((np.nan, "NaN is not a count"), (-0.5, "-0.5 is negative")):
        broken = expected.copy()
        broken[34, 11] = bad
        with pytest.raises(CountsError, match=message):
            drained(opened(broken, expected_counts=True))


@pytest.mark.parametrize("stored", [sp.csr_matrix, np.asarray])
def test_empty_cells(counts, stored):
    counts[[5, 9, 17, 399]] = 0
    message = (
        r"4 of \d+ cells have no counts \(first rows: \[5, 9, 17\]\)\. "
        r"Filter them with scanpy\.pp\.filter_cells\(adata, min_counts=1\)"
    )
    with pytest.raises(EmptyCellError, match=message):
        drained(open_counts(ad.AnnData(stored(counts))))


def test_empty_cell_of_explicit_zeros(counts):
    matrix = sp.csr_matrix(counts)
    matrix.data[matrix.indptr[34] : matrix.indptr[35]] = 0
    with pytest.raises(EmptyCellError, match=r"1 of 400 cells .*\[34\]"):
        drained(opened(matrix))


def test_all_cells_empty(counts):
    with pytest.raises(EmptyCellError, match="none of the cells looked at has a count in X"):
        opened(counts * 0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_to_read(shape):
    with pytest.raises(InputError, match=f"X is empty, {shape[0]} cells x {shape[1]} genes"):
        opened(np.zeros(shape))


def test_no_matrix_at_all():
    with pytest.raises(CountsError, match="neither X nor layers"):
        open_counts(ad.AnnData(shape=(3, 4)))


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match=r"cells\.h5ad: no such file or folder"):
        open_counts(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_h5ad(counts, tmp_path, share):
    path = tmp_path / "cells.h5ad"
    ad.AnnData(sp.csr_matrix(counts)).write_h5ad(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UnreadableFileError, match=r"cells\.h5ad: cannot be read; it is truncated"):
        open_counts(path)


def test_h5ad_damaged_in_the_middle(counts, tmp_path):
    path = tmp_path / "cells.h5ad"
    ad.AnnData(sp.csr_matrix(counts)).write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match="truncated, damaged"):
        drained(open_counts(path, backed=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"gene,cell\n1,2\n", "is not HDF5 but text; it begins with 'gene,cell'"),
        (b"", "is an empty file"),
        (b"\x1f\x8b\x08\x00rest", "is a gzip archive; unpack it first: gunzip cells.h5ad"),
        (b"\x00\x01\x02", "is no file of a format scfm understands"),
        (b"PK\x03\x04 not really", "truncated, damaged"),
        (b"\x89HDF\r\n\x1a\n", "truncated, damaged"),
    ],
)
def test_foreign_file(tmp_path, content, message):
    (tmp_path / "cells.h5ad").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=re.escape(message)):
        open_counts(tmp_path / "cells.h5ad")


def test_foreign_files_are_told_what_is_understood(tmp_path):
    (tmp_path / "cells.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["weights"] = np.zeros(3)
    for name, found in (
        ("cells.csv", "begins with 'a,b'"),
        ("folder", "neither a zarr store nor a 10x mtx folder; it holds notes.txt"),
        ("x.h5", "not one of single-cell counts; it holds weights"),
    ):
        with pytest.raises(UnreadableFileError, match=rf"{found}.*scfm reads \.h5ad, \.zarr"):
            open_counts(tmp_path / name)


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_zarr_of_something_else(tmp_path):
    import zarr

    zarr.create_group(tmp_path / "x.zarr").create_array("image", data=np.zeros((4, 4)))
    with pytest.raises(UnreadableFileError, match="not of an AnnData; it holds image"):
        open_counts(tmp_path / "x.zarr")


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
def test_damaged_zarr(counts, tmp_path):
    path = tmp_path / "cells.zarr"
    ad.AnnData(sp.csr_matrix(counts)).write_zarr(path)
    for chunk in (path / "X" / "data").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith((".", "zarr.json")):
            chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(UnreadableFileError, match="truncated, damaged"):
        drained(open_counts(path))


def test_incomplete_mtx_folder(counts, tmp_path):
    scipy.io.mmwrite(tmp_path / "matrix.mtx", sp.coo_matrix(counts.T.astype(int)))
    with pytest.raises(UnreadableFileError, match=r"no features\.tsv or genes\.tsv \(or \.gz\)"):
        open_counts(tmp_path)
    (tmp_path / "genes.tsv").write_text("ENSG1\tA\n" * 59)
    (tmp_path / "barcodes.tsv").write_text("A\n" * 400)
    with pytest.raises(UnreadableFileError, match=r"60 x 400 but there are 59 features and 400 b"):
        open_counts(tmp_path)
    text = (tmp_path / "matrix.mtx").read_text()
    (tmp_path / "matrix.mtx").write_text(text[: len(text) // 2])
    with pytest.raises(UnreadableFileError, match="truncated"):
        open_counts(tmp_path)


def test_contradictory_arrays(counts, tmp_path):
    path = tmp_path / "cells.h5ad"
    for key, place, bad in (("indptr", -1, 10), ("indptr", 5, 10**6), ("indices", 7, 10**6)):
        ad.AnnData(sp.csr_matrix(counts)).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file[f"X/{key}"][place] = bad
        for backed in (True, False):
            with pytest.raises(UnreadableFileError, match="damaged"):
                drained(open_counts(path, backed=backed))


def test_loom_without_gene_names(tmp_path):
    with h5py.File(tmp_path / "cells.loom", "w") as file:
        file["matrix"] = np.ones((4, 3))
        file["row_attrs/length"] = np.arange(4)
        file.create_group("col_attrs")
    with pytest.raises(UnreadableFileError, match=r"name no genes: one of Gene, .*found length"):
        open_counts(tmp_path / "cells.loom")


def test_a_thing_that_is_no_data():
    with pytest.raises(InputError, match="Expected a path or an AnnData, got ndarray"):
        open_counts(np.zeros((3, 4)))


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), max_size=12), min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_any_csr_is_handed_out_as_scipy_understands_it(rows):
    """Unsorted, repeated and zero entries, against SciPy's own canonical form."""
    rows = [[(0, 1), *row] for row in rows]
    entries = [entry for row in rows for entry in row]
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = np.array([column for column, _ in entries])
    values = np.array([value for _, value in entries], dtype=np.float32)
    matrix = sp.csr_matrix((values, indices, indptr), (len(rows), 10))
    wanted = matrix.toarray()
    (chunk,) = open_counts(ad.AnnData(matrix)).chunks(len(rows))
    ours = sp.csr_matrix((chunk.counts, chunk.indices, chunk.indptr), wanted.shape)
    assert ours.has_canonical_format
    assert (chunk.counts > 0).all()
    assert np.array_equal(ours.toarray(), wanted)


@pytest.mark.parametrize("off_by", [0.0009, -0.0009])
def test_tolerance(off_by):
    values = np.array([1, 2, 3, 40], dtype=np.float64)
    rows = RawRows(np.array([0, 4]), np.arange(4), values + off_by)
    assert judge(rows).kind == "counts"
    assert judge(rows._replace(values=values + 2 * off_by)).kind != "counts"
