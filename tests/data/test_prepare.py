"""`scfm prepare`: every cell and count of the files is in the store, or counted as dropped."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.export import export
from scfm.data.harmonise import DEFAULT, ObsMapping
from scfm.data.prepare_plan import PrepareConfig, _telling_names
from scfm.data.quality import QualityConfig
from scfm.data.shuffle import shard_groups
from scfm.data.store import Store
from scfm.errors import ConfigError, InputError, LabelError, OutputError
from scfm.tools.prepare_report import notes, read_reports
from tests.data.prepare_files import all_files, cells_of, make_store, toy_file


def assert_holds(store: Store, number: int, adata: ad.AnnData, rows: np.ndarray | None = None):
    """The data set is this file's cells (of these rows), count by count, name by name."""
    found, counts = cells_of(store, number)
    rows = np.arange(adata.n_obs) if rows is None else rows
    np.testing.assert_array_equal(found, rows)
    assert abs(counts - sp.csr_matrix(adata.X)[rows]).max() == 0
    mine = np.flatnonzero(store.numbers("dataset") == number)
    by_row = mine[np.argsort(store.numbers("row")[mine])]
    suffix = f"-{store.manifest.datasets[number].name}"  # where two files call a cell alike
    names = [name.removesuffix(suffix) for name in store.obs.index[by_row]]
    assert names == list(adata.obs_names[rows])


def in_source_order(store: Store) -> pd.DataFrame:
    """What is known of the cells, file by file as they were."""
    return store.obs.iloc[np.lexsort((store.numbers("row"), store.numbers("dataset")))]


def test_all_cells_of_several_files(tmp_path, rng):
    files = {
        "a.h5ad": toy_file(tmp_path / "a.h5ad", rng, 70, 60),
        "b.h5ad": toy_file(tmp_path / "b.h5ad", rng, 40, 50, first_gene=30, ids=True),
        "c.h5ad": toy_file(tmp_path / "c.h5ad", rng, 1, 45),
    }
    prepared = make_store(
        [tmp_path / name for name in files], tmp_path / "store", shard_cells=32, block_cells=8
    )
    store = Store(tmp_path / "store")
    assert prepared.added == list(files)
    assert store.n_cells == 111
    assert len(store.manifest.shards) >= 3
    assert len(store.genes) == 80  # symbols and ids of one gene met
    for number, adata in enumerate(files.values()):
        assert_holds(store, number, adata)
    for entry, adata in zip(store.manifest.datasets, files.values(), strict=True):
        assert (entry.n_read, entry.n_cells, entry.dropped) == (adata.n_obs, adata.n_obs, {})
    np.testing.assert_array_equal(
        store.numbers("n_counts"), [store.rows(np.array([i])).counts.sum() for i in range(111)]
    )
    assert all(problem is None for _, problem in store.verify())
    assert not (tmp_path / "store" / ".prepare").exists()
    export(store, tmp_path / "again.h5ad", dataset="b.h5ad")
    again = ad.read_h5ad(tmp_path / "again.h5ad")
    assert list(again.obs_names) == list(files["b.h5ad"].obs_names)
    assert list(again.var_names) == list(files["b.h5ad"].var_names)
    assert abs(again.X - files["b.h5ad"].X).max() == 0


def test_genes_by_species_then_by_how_often_they_are_seen(tmp_path, rng):
    adata = toy_file(tmp_path / "a.h5ad", rng, 40, 60)
    counts = adata.X.toarray()
    counts[:, 20:] *= rng.random((40, 40)) < np.linspace(0.05, 1, 40)
    adata.X = sp.csr_matrix(counts)
    adata.write_h5ad(tmp_path / "a.h5ad")
    make_store([tmp_path / "a.h5ad"], tmp_path / "store")
    store = Store(tmp_path / "store")
    _, found = cells_of(store, 0)
    _, store_gene = store.dataset_var(0)
    detected = np.asarray((found > 0).sum(0)).ravel()[np.argsort(store_gene)]
    assert (np.diff(detected) <= 0).all()


def test_counts_and_genes_beyond_16_bits(tmp_path, rng):
    n_genes = 70_000
    cell, gene = rng.integers(0, 30, 4000), rng.integers(0, n_genes - 1, 4000)
    values = rng.integers(1, 2**31 - 1, 4000) // 40
    place = ([*cell, 0], [*gene, n_genes - 1])
    counts = sp.csr_matrix(([*values.tolist(), 2**31 - 1], place), (30, n_genes))
    known = toy_file(tmp_path / "a.h5ad", rng, 30, 60)
    names = [*known.var_names, *(f"probe{i}" for i in range(n_genes - 60))]
    adata = ad.AnnData(
        sp.csr_matrix(counts.astype(np.float64)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(30)]),
        var=pd.DataFrame(index=names),
    )
    adata.write_h5ad(tmp_path / "a.h5ad")
    make_store([tmp_path / "a.h5ad"], tmp_path / "store", minimum_coverage=0.0)
    store = Store(tmp_path / "store")
    assert len(store.genes) == n_genes
    assert store.rows(np.arange(30)).counts.max() == 2**31 - 1
    assert_holds(store, 0, adata)


def test_dropped_cells_are_counted_by_reason(tmp_path, rng):
    adata = toy_file(tmp_path / "a.h5ad", rng, 40, 60)
    dense = adata.X.toarray()
    dense[3] = 0
    dense[8, 10:] = 0  # 10 genes
    dense[9] = np.arange(60) < 25  # 25 counts
    adata.X = sp.csr_matrix(dense)
    adata.write_h5ad(tmp_path / "a.h5ad")
    make_store(
        [tmp_path / "a.h5ad"],
        tmp_path / "store",
        quality=QualityConfig(min_genes=20, min_counts=30),
    )
    store = Store(tmp_path / "store")
    entry = store.manifest.datasets[0]
    assert entry.dropped == {"empty": 1, "min_genes": 1, "min_counts": 1}
    assert (entry.n_read, entry.n_cells) == (40, 37)
    assert_holds(store, 0, adata, np.setdiff1d(np.arange(40), [3, 8, 9]))


def test_mitochondrial_share(tmp_path, rng):
    adata = toy_file(tmp_path / "a.h5ad", rng, 40, 60)
    adata.var_names = [*adata.var_names[:-1], "MT-CO1"]
    dense = adata.X.toarray()
    dense[:, -1] = 0
    dense[5, -1] = dense[5].sum()  # half of its counts
    adata.X = sp.csr_matrix(dense)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for most, left in ((0.5, 40), (0.49, 39)):
        out = tmp_path / str(most)
        make_store([tmp_path / "a.h5ad"], out, quality=QualityConfig(max_mito=most))
        assert Store(out).n_cells == left


def repeated(tmp_path, rng):
    """Three files: b repeats five cells of a under other gene names, c one of its own."""
    a = toy_file(tmp_path / "a.h5ad", rng, 30, 60)
    b = toy_file(tmp_path / "b.h5ad", rng, 20, 60, ids=True)
    b.X = sp.vstack([b.X[:15], a.X[10:15]]).tocsr()
    order = rng.permutation(60)
    b = b[:, order].copy()
    b.write_h5ad(tmp_path / "b.h5ad")
    c = toy_file(tmp_path / "c.h5ad", rng, 20, 60)
    c.X = sp.vstack([c.X[:19], c.X[4]]).tocsr()
    c.write_h5ad(tmp_path / "c.h5ad")
    return [tmp_path / f"{name}.h5ad" for name in "abc"], [a, b, c]


@pytest.mark.parametrize("shard_cells", [10, 1000])
def test_duplicates_are_dropped_the_first_stays(tmp_path, rng, shard_cells):
    paths, (a, b, c) = repeated(tmp_path, rng)
    make_store(paths, tmp_path / "store", shard_cells=shard_cells)
    store = Store(tmp_path / "store")
    assert store.n_cells == 64
    assert_holds(store, 0, a)
    assert_holds(store, 1, b, np.arange(15))
    assert_holds(store, 2, c, np.arange(19))
    reports = [
        json.loads(store.folder.read_whole(entry.report_file)) for entry in store.manifest.datasets
    ]
    assert [r["duplicates_of"] for r in reports] == [{}, {"a.h5ad": 5}, {"c.h5ad": 1}]
    make_store(paths[::-1], tmp_path / "reversed")
    kept = {entry.name: entry.n_cells for entry in Store(tmp_path / "reversed").manifest.datasets}
    assert kept == {"c.h5ad": 19, "b.h5ad": 20, "a.h5ad": 25}


def test_duplicates_may_be_kept_and_are_counted_all_the_same(tmp_path, rng):
    paths, adatas = repeated(tmp_path, rng)
    make_store(paths, tmp_path / "store", duplicates="keep")
    store = Store(tmp_path / "store")
    for number, adata in enumerate(adatas):
        assert_holds(store, number, adata)
    report = json.loads(store.folder.read_whole(store.manifest.datasets[1].report_file))
    assert report["duplicates_of"] == {"a.h5ad": 5}
    assert store.manifest.datasets[1].dropped == {}


def test_poor_profiles_are_no_duplicates(tmp_path, rng):
    adata = toy_file(tmp_path / "a.h5ad", rng, 30, 60)
    dense = adata.X.toarray()
    dense[:6] = np.arange(60) < 19
    dense[6:8] = np.arange(60) < 20
    adata.X = sp.csr_matrix(dense.astype(np.float32))
    adata.write_h5ad(tmp_path / "a.h5ad")
    make_store([tmp_path / "a.h5ad"], tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.manifest.datasets[0].dropped == {"duplicate": 1}
    assert_holds(store, 0, adata, np.setdiff1d(np.arange(30), [7]))


def test_order_does_not_hang_on_files_runs_or_shards(tmp_path, rng, monkeypatch):
    a = toy_file(tmp_path / "a.h5ad", rng, 60, 60)
    b = toy_file(tmp_path / "b.h5ad", rng, 40, 60)
    both = ad.concat([a, b])
    both.write_h5ad(tmp_path / "both.h5ad")
    make_store([tmp_path / "both.h5ad"], tmp_path / "one")
    order = Store(tmp_path / "one").numbers("cell_hash")
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    make_store(paths[::-1], tmp_path / "two", shard_cells=17)
    np.testing.assert_array_equal(Store(tmp_path / "two").numbers("cell_hash"), order)
    monkeypatch.setattr("scfm.data.prepare.run_bytes_for", lambda total: 1)
    monkeypatch.setattr("scfm.data.matrices.BLOCK_VALUES", 200)
    make_store([tmp_path / "both.h5ad"], tmp_path / "three")
    assert all_files(tmp_path / "three") == all_files(tmp_path / "one")
    make_store(paths, tmp_path / "four", seed=1)
    other = Store(tmp_path / "four").numbers("cell_hash")
    assert (order != other).any()
    np.testing.assert_array_equal(np.sort(order), np.sort(other))


def test_the_shuffle_forgets_the_file_order(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 2000, 60)
    make_store([tmp_path / "a.h5ad"], tmp_path / "store")
    row = Store(tmp_path / "store").numbers("row")
    # of a random permutation: correlation of neighbours ~ N(0, 1/n), and of place with row
    for x, y in ((row[1:], row[:-1]), (row, np.arange(2000))):
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / np.sqrt(2000)


MAPPING = ObsMapping(
    columns={"cell_type": ("cell_type", "celltype"), "donor_id": ("donor_id",), "age": ("age",)},
    files={"b.h5ad": {"donor_id": "=B"}},
    values={"cell_type": {"T-cell": "T cell", "NA": None}},
)


def test_obs_are_harmonised(tmp_path, rng):
    kinds = ["T-cell", "B cell", "NA", "NK"]
    toy_file(
        tmp_path / "a.h5ad",
        rng,
        20,
        obs={
            "cell_type": pd.Categorical(kinds * 5),
            "donor_id": [f"d{i % 3}" for i in range(20)],
            "age": np.arange(20),
            "leiden": ["0"] * 20,
        },
    )
    toy_file(tmp_path / "b.h5ad", rng, 8, obs={"celltype": ["T cell"] * 8, "age": [1.5] * 8})
    toy_file(tmp_path / "c.h5ad", rng, 4)
    paths = [tmp_path / f"{name}.h5ad" for name in "abc"]
    make_store(paths, tmp_path / "store", mapping=MAPPING, obs=("leiden",))
    store = Store(tmp_path / "store")
    assert store.manifest.obs["cell_type"].categories == ("B cell", "NK", "T cell")
    assert store.manifest.obs["age"].kind == "number"
    obs = in_source_order(store)
    wanted = ["T cell", "B cell", None, "NK"] * 5 + ["T cell"] * 8 + [None] * 4
    assert [None if pd.isna(value) else value for value in obs["cell_type"]] == wanted
    donors = [f"d{i % 3}" for i in range(20)] + ["B"] * 8 + [None] * 4
    assert [None if pd.isna(value) else value for value in obs["donor_id"]] == donors
    np.testing.assert_array_equal(obs["age"], [*range(20), *[1.5] * 8, *[np.nan] * 4])
    reports = [
        json.loads(store.folder.read_whole(entry.report_file)) for entry in store.manifest.datasets
    ]
    assert reports[1]["obs"]["donor_id"] == {"from": "=B", "missing": 0}
    assert reports[0]["obs"]["cell_type"] == {"from": "cell_type", "missing": 5}
    assert reports[2]["obs"]["age"] == {"from": None, "missing": 4}


def test_numbers_beside_text_become_text(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 5, obs={"age": [30, 31, 32, 33, 34]})
    toy_file(tmp_path / "b.h5ad", rng, 2, obs={"age": ["old", "young"]})
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    make_store(paths, tmp_path / "store", obs=("age",))
    obs = in_source_order(Store(tmp_path / "store"))
    assert list(obs["age"]) == ["30", "31", "32", "33", "34", "old", "young"]


def test_obs_that_no_file_has(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 5, obs={"leiden": ["0"] * 5})
    with pytest.raises(LabelError, match=r"--obs louvain: no file has .* there are: leiden\."):
        make_store([tmp_path / "a.h5ad"], tmp_path / "store", obs=("louvain",))
    assert not (tmp_path / "store").exists()
    with pytest.raises(ConfigError, match=r"has a column 'n_genes' of its own.*source_n_genes"):
        PrepareConfig(obs=("n_genes",))


def test_adding_to_a_store(tmp_path, rng):
    paths, (a, b, c) = repeated(tmp_path, rng)
    out = tmp_path / "store"
    make_store(paths[:1], out)
    before, reader = all_files(out), Store(out)
    counts_before = reader.rows(np.arange(30)).counts
    prepared = make_store(paths, out)  # the first is in already, and is skipped with a word
    assert list(prepared.known.values()) == ["a.h5ad"]
    assert prepared.added == ["b.h5ad", "c.h5ad"]
    store = Store(out)
    assert store.n_cells == 64
    for number, (adata, n) in enumerate(((a, 30), (b, 15), (c, 19))):
        assert_holds(store, number, adata, np.arange(n))
    report = json.loads(store.folder.read_whole(store.manifest.datasets[1].report_file))
    assert report["duplicates_of"] == {"a.h5ad": 5}
    # a reader of the old manifest is not disturbed: every file it knows is as it was
    after = all_files(out)
    del before["manifest.json"]
    assert {name: after[name] for name in before} == before
    assert Store(out, manifest=1).n_cells == 30
    np.testing.assert_array_equal(reader.rows(np.arange(30)).counts, counts_before)
    assert store.manifest.previous == Store(out, manifest=1).manifest.hash
    again = make_store(paths, out)
    assert (again.added, len(again.known)) == ([], 3)
    assert all_files(out) == after


def test_the_same_file_twice_in_one_command(tmp_path, rng):
    adata = toy_file(tmp_path / "a.h5ad", rng, 20)
    (tmp_path / "copy.h5ad").write_bytes((tmp_path / "a.h5ad").read_bytes())
    prepared = make_store([tmp_path / "a.h5ad", tmp_path / "copy.h5ad"], tmp_path / "store")
    assert prepared.known == {str(tmp_path / "copy.h5ad"): "a.h5ad"}
    assert_holds(Store(tmp_path / "store"), 0, adata)


def test_text_into_a_stores_numbers_is_refused_early(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 5, obs={"age": [1, 2, 3, 4, 5]})
    toy_file(tmp_path / "b.h5ad", rng, 5, obs={"age": ["old"] * 5})
    make_store([tmp_path / "a.h5ad"], tmp_path / "store", obs=("age",))
    before = all_files(tmp_path / "store")
    with pytest.raises(LabelError, match="'age' holds integer values"):
        make_store([tmp_path / "b.h5ad"], tmp_path / "store", obs=("age",))
    assert all_files(tmp_path / "store") == before


def test_a_folder_of_other_things_is_left_alone(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 5)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"holds other files \(thesis\.tex\)"):
        make_store([tmp_path / "a.h5ad"], tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def test_nothing_left(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 12)
    with pytest.raises(InputError, match="No cell is left of 12: dropped were 12 by min_genes"):
        make_store([tmp_path / "a.h5ad"], tmp_path / "s", quality=QualityConfig(min_genes=999))
    assert not (tmp_path / "s" / ".prepare").exists()
    prepared = make_store([tmp_path / "a.h5ad"], tmp_path / "s", quality=QualityConfig(min_genes=9))
    assert prepared.manifest.n_cells == 12


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
def test_other_formats(tmp_path, rng):
    adata = toy_file(tmp_path / "a.h5ad", rng, 25)
    adata.write_zarr(tmp_path / "b.zarr")
    half = adata.copy()
    half.X = sp.csc_matrix(adata.X * 2)
    half.layers["counts"], half.X = half.X, np.log1p(half.X.toarray())
    half.write_h5ad(tmp_path / "c.h5ad")
    make_store([tmp_path / "b.zarr", tmp_path / "c.h5ad"], tmp_path / "store")
    store = Store(tmp_path / "store")
    assert [entry.counts_from for entry in store.manifest.datasets] == ["X", "layers['counts']"]
    assert_holds(store, 0, adata)
    half.X = half.layers["counts"]
    assert_holds(store, 1, half)


def test_names_tell_files_apart():
    assert _telling_names(["/d/a.h5ad", "/d/b.h5ad"]) == ["a.h5ad", "b.h5ad"]
    tenx = [f"/d/{sample}/filtered/matrix.h5" for sample in ("s1", "s2")] + ["/d/x.h5"]
    assert _telling_names(tenx) == ["s1/filtered/matrix.h5", "s2/filtered/matrix.h5", "x.h5"]
    assert _telling_names(["/d/a.h5ad", "/d/a.h5ad"]) == ["a.h5ad", "a.h5ad"]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.integers(1, 500),
    st.integers(1, 100_000),
)
def test_shards_are_stretches_of_about_the_wanted_size(cells, shard_cells, shard_bytes):
    sizes = np.array([cells, [100 * n for n in cells]])
    groups = shard_groups(sizes, shard_cells, shard_bytes)
    covered = [bucket for first, last in groups for bucket in range(first, last)]
    assert len(set(covered)) == len(covered)
    assert set(np.flatnonzero(cells)) <= set(covered)
    limit = min(shard_cells, shard_bytes / 100)
    for first, last in groups:
        assert 0 < sum(cells[first:last]) <= 2 * max(*cells, limit)


def test_default_mapping_is_kept_as_settings(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 5)
    made = make_store([tmp_path / "a.h5ad"], tmp_path / "store").manifest.settings["prepare"]
    assert made[0]["mapping"] == json.loads(json.dumps(DEFAULT.to_dict()))
    assert str(tmp_path) not in json.dumps(made)  # no path of the machine it was made on


def donors_of(store: Store) -> list[str | None]:
    return [None if pd.isna(value) else value for value in in_source_order(store)["donor_id"]]


def test_a_donor_is_one_whatever_the_type_of_the_column(tmp_path, rng):
    """Integers, the same with a gap, text: together, or added one after the other."""
    given = ([1, 2, 1, 2], [1, np.nan, 2, 1], ["1", "2", "x", "1"])
    paths = [tmp_path / f"{name}.h5ad" for name in "abc"]
    for path, donors in zip(paths, given, strict=True):
        toy_file(path, rng, 4, obs={"donor_id": donors})
    make_store(paths, tmp_path / "together")
    wanted = ["1", "2", "1", "2", "1", None, "2", "1", "1", "2", "x", "1"]
    assert donors_of(Store(tmp_path / "together")) == wanted
    for path in paths:
        make_store([path], tmp_path / "added")
    assert donors_of(Store(tmp_path / "added")) == wanted
    assert Store(tmp_path / "added").manifest.obs["donor_id"].categories == ("1", "2", "x")


def test_a_stores_numbered_donors_stay_numbers(tmp_path, rng, monkeypatch):
    """A store of an earlier version can be added to."""
    for name in "ab":
        toy_file(tmp_path / f"{name}.h5ad", rng, 2, obs={"donor_id": [1, 2]})
    with monkeypatch.context() as earlier:
        earlier.setattr(ObsMapping, "is_text", lambda self, target: False)
        make_store([tmp_path / "a.h5ad"], tmp_path / "store")
    make_store([tmp_path / "b.h5ad"], tmp_path / "store")
    assert Store(tmp_path / "store").manifest.obs["donor_id"].kind == "integer"
    assert donors_of(Store(tmp_path / "store")) == [1, 2, 1, 2]


def test_mistakes_in_a_mapping_are_refused(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 5, obs={"CellType": ["B"] * 5, "leiden": ["0"] * 5})
    toy_file(tmp_path / "b.h5ad", rng, 5)
    files, out = [tmp_path / "a.h5ad"], tmp_path / "store"
    wrong = ObsMapping(columns={"cell_type": ("cell_type", "celltyp")})
    words = r"'cell_type' is in no file, .*\(cell_type, celltyp\)\. Did you mean 'CellType'\?"
    with pytest.raises(LabelError, match=words):
        make_store(files, out, mapping=wrong)
    columns = {"cell_type": ("CellType",)}
    own = {"a.h5da": {"cell_type": "leiden"}}
    with pytest.raises(ConfigError, match=r"'a\.h5da', which is none .* mean 'a\.h5ad'\?"):
        make_store(files, out, mapping=ObsMapping(columns=columns, files=own))
    with pytest.raises(LabelError, match=r"--obs lieden: .* Did you mean 'leiden'\?"):
        make_store(files, out, obs=("lieden",))
    assert not out.exists()
    # what the store has of earlier files is no mistake
    own = {"a.h5ad": {"cell_type": "leiden"}}
    mapping = ObsMapping(columns=columns, files=own)
    make_store(files, out, mapping=mapping)
    make_store([tmp_path / "b.h5ad"], out, mapping=mapping)
    assert Store(out).n_cells == 10


def test_values_of_a_mapping_that_no_file_has(tmp_path, rng):
    for name, kind in (("a", "B cells"), ("b", "T cells")):
        toy_file(tmp_path / f"{name}.h5ad", rng, 5, obs={"cell_type": [kind] * 5})
    mapping = ObsMapping(
        columns={"cell_type": ("cell_type",)},
        values={"cell_type": {"B cells": "B cell", "T cells": "T cell", "Bcell": "B cell"}},
    )
    out = tmp_path / "store"
    make_store([tmp_path / "a.h5ad"], out, mapping=mapping)
    said = "The mapping's values of cell_type that no file has: "
    assert f"{said}'Bcell', 'T cells'." in notes(Store(out).manifest, read_reports(Store(out)))
    make_store([tmp_path / "b.h5ad"], out, mapping=mapping)
    assert f"{said}'Bcell'." in notes(Store(out).manifest, read_reports(Store(out)))


def test_a_store_is_no_input(tmp_path, rng):
    toy_file(tmp_path / "a.h5ad", rng, 5)
    make_store([tmp_path / "a.h5ad"], tmp_path / "store")
    with pytest.raises(InputError, match=r"is a store already\. Train on it .* --export"):
        make_store([tmp_path / "store"], tmp_path / "other")


def test_an_unfinished_store_is_no_input(tmp_path):
    (tmp_path / "store" / ".prepare").mkdir(parents=True)
    with pytest.raises(InputError, match=r"its conversion is unfinished\. To go on .* --restart"):
        make_store([tmp_path / "store"], tmp_path / "other")
