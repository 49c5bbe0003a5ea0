"""Stores, files and AnnData as one pool: a store's cells are the tokens that their files give."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scfm.tokens.inputs
from scfm.data.gene_tables import gene_table
from scfm.data.order import CellOrder
from scfm.errors import GeneCoverageError, LabelError
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import CellPool, concatenate
from scfm.tokens.rng import cell_keys
from tests.toy_stores import write_store
from tests.toys import toy_counts, toy_vocab

VOCAB = toy_vocab(60)


def adata_of(rng, n_cells: int, names: list[str], **obs) -> ad.AnnData:
    counts = toy_counts(rng, n_cells, len(names)).astype(np.float32)
    index = pd.Index([f"c{i}" for i in range(n_cells)])
    return ad.AnnData(counts, obs=pd.DataFrame(obs, index=index), var=pd.DataFrame(index=names))


@pytest.fixture
def datasets(rng) -> dict[str, ad.AnnData]:
    """Symbols, Ensembl ids with versions in another order, and some genes beside unknown names."""
    symbols, ids = list(VOCAB.symbols), list(VOCAB.ensembl_ids)
    shuffled = rng.permutation(60)
    return {
        "symbols.h5ad": adata_of(rng, 40, symbols, donor=["a", "b"] * 20),
        "ids.h5ad": adata_of(rng, 30, [f"{ids[i]}.3" for i in shuffled], donor=["c"] * 30),
        "some.h5ad": adata_of(rng, 50, [*symbols[10:50], "TAG1", "TAG2"], donor=["d", "a"] * 25),
    }


@pytest.fixture
def store(datasets, tmp_path):
    return write_store(tmp_path / "store", datasets, obs=("donor",))


def test_a_stores_cells_are_the_tokens_that_their_files_give(store, datasets):
    """Token for token: both kinds of batches, with the draws of training."""
    member, report = open_input(store, VOCAB, InputConfig(minimum_coverage=0))
    rows = member.source.rows(np.arange(member.source.n_cells))
    row = member.source.numbers("row")  # pyright: ignore[reportAttributeAccessIssue]
    keys = cell_keys(1, 2, rows.cell_index)
    ours = {
        "training": member.tokenizer.training(rows, keys),
        "shown": member.tokenizer.shown(rows),
    }
    assert len(member.reports) == 3
    assert report.counts_covered == min(r.counts_covered for r in member.reports)
    for number, adata in enumerate(datasets.values()):
        theirs, _ = open_input(adata, VOCAB, InputConfig(minimum_coverage=0))
        here = np.flatnonzero(rows.dataset == number)
        assert len(here) == adata.n_obs
        found = theirs.source.rows(row[here])
        for kind, batch in {
            "training": theirs.tokenizer.training(found, keys[here]),
            "shown": theirs.tokenizer.shown(found),
        }.items():
            whole = ours[kind]
            tokens = np.concatenate(
                [np.arange(whole.offsets[i], whole.offsets[i + 1]) for i in here]
            )
            for name in ("gene_ids", "values", "is_target", "target_values"):
                np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name)[tokens])
            for name in ("library_size", "source_depth", "target_depth"):
                np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name)[here])


def test_equal_columns_are_matched_once(datasets, tmp_path, monkeypatch):
    calls = []
    original = scfm.tokens.inputs.align
    monkeypatch.setattr(
        scfm.tokens.inputs, "align", lambda *a, **k: calls.append(k["name"]) or original(*a, **k)
    )
    one = datasets["symbols.h5ad"]
    path = write_store(tmp_path / "many", {f"{i}.h5ad": one.copy() for i in range(5)})
    member, _ = open_input(path, VOCAB, InputConfig())
    assert len(calls) == 1
    assert [r.name.split()[0] for r in member.reports] == [f"{i}.h5ad" for i in range(5)]
    assert len(member.tokenizer.tables.slots) == 1


def test_mouse_data_sets_are_named_and_orthologs_take_them(rng, datasets, tmp_path):
    table = gene_table("mouse")
    mouse = table["symbol"][table["symbol"] != ""].to_list()[:3000]
    adata = adata_of(rng, 20, mouse)
    write_store(tmp_path / "mixed", {"mouse.h5ad": adata}, species="mouse")
    write_store(tmp_path / "mixed", {"human.h5ad": datasets["symbols.h5ad"]})
    with pytest.raises(
        GeneCoverageError, match=r"1 of the 2 data sets.*\n- mouse\.h5ad in .*--ortho"
    ):
        open_input(tmp_path / "mixed", toy_vocab(20_000), InputConfig())
    member, _ = open_input(
        tmp_path / "mixed", toy_vocab(20_000), InputConfig(orthologs=True, minimum_coverage=0.05)
    )
    assert [report.species for report in member.reports] == ["mouse", "human"]


def test_too_little_coverage_names_the_data_set(rng, datasets, tmp_path):
    strange = adata_of(rng, 20, [*(f"TAG{i}" for i in range(50)), *VOCAB.symbols[:3]])
    path = write_store(tmp_path / "store", {**datasets, "strange.h5ad": strange})
    with pytest.raises(
        GeneCoverageError, match=r"1 of the 4 data sets.*\n- .*strange\.h5ad in .* wanted"
    ):
        open_input(path, VOCAB, InputConfig())


def test_a_small_data_set_in_a_large_store_is_judged_too(rng, datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(scfm.tokens.inputs, "BLOCKS_SAMPLED", 1)
    strange = adata_of(rng, 2, [*(f"TAG{i}" for i in range(50)), *VOCAB.symbols[:3]])
    path = write_store(tmp_path / "store", {**datasets, "strange.h5ad": strange})
    with pytest.raises(GeneCoverageError, match=r"strange\.h5ad in .* wanted"):
        open_input(path, VOCAB, InputConfig())


@pytest.fixture
def pool(store, datasets, tmp_path) -> CellPool:
    """A store, a file on disk and an AnnData in memory."""
    datasets["ids.h5ad"].write_h5ad(tmp_path / "ids.h5ad")
    inputs = [(store, None), (tmp_path / "ids.h5ad", True), (datasets["some.h5ad"], None)]
    config = InputConfig(minimum_coverage=0)
    return CellPool([open_input(x, VOCAB, config, backed=b)[0] for x, b in inputs], seed=5)


def test_any_mix_is_one_pool(pool):
    """Oracle: each member's own tokenizer on its own rows, keyed by the pool's numbers."""
    assert pool.n_cells == 120 + 30 + 50 == pool.blocks.total
    assert pool.blocks.n_cells.max() == 16
    order = CellOrder(blocks=pool.blocks, seed=1, lanes=6)
    cells, epochs = order.stretch(30, 90)
    batch = pool.training(cells, epochs)
    owner = np.searchsorted(pool.first, cells, side="right") - 1
    parts = []
    for number, member in enumerate(pool.members):
        mine = cells[owner == number]
        keys = cell_keys(5, epochs[owner == number], mine)
        parts.append(member.tokenizer.training(member.source.rows(mine - pool.first[number]), keys))
    expected = concatenate(parts)
    np.testing.assert_array_equal(
        batch.cell_index, np.concatenate([cells[owner == n] for n in range(3)])
    )
    for name in ("gene_ids", "values", "is_target", "target_values", "offsets"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))


def test_a_column_of_all_members(pool, datasets):
    codes, names = pool.column("donor")
    assert names == ["a", "b", "c", "d"]
    donors = np.array(names)[codes]
    assert (donors[120:150] == "c").all()
    np.testing.assert_array_equal(donors[150:], datasets["some.h5ad"].obs["donor"])
    assert np.unique(donors[:120], return_counts=True)[1].tolist() == [45, 20, 30, 25]
    codes, names = pool.column("dataset")
    # the store's ids.h5ad and the file of that name: nothing says that they are one
    assert names == ["AnnData", "ids.h5ad", "ids.h5ad (2)", "some.h5ad", "symbols.h5ad"]
    assert np.bincount(codes).tolist() == [50, 30, 30, 50, 40]


def test_a_column_that_a_member_lacks_is_named(pool):
    with pytest.raises(LabelError, match="no obs column 'study'"):
        pool.column("study")


def test_most_tokens_is_a_bound(pool):
    bound = pool.most_tokens()
    assert len(bound) == pool.n_cells
    cells = np.arange(pool.n_cells)
    for epoch in range(3):
        batch = pool.training(cells, np.full(len(cells), epoch))
        assert (np.diff(batch.offsets) <= bound[batch.cell_index]).all()
    assert bound.mean() < 1.3 * np.diff(batch.offsets).mean() + 5


def test_an_earlier_manifest_is_read_by_its_number(store, rng):
    write_store(store, {"later.h5ad": adata_of(rng, 10, list(VOCAB.symbols))})
    config = InputConfig(minimum_coverage=0)
    assert open_input(store, VOCAB, config)[0].source.n_cells == 130
    assert open_input(store, VOCAB, config, manifest=1)[0].source.n_cells == 120


def test_expected_counts_in_a_pool_are_rounded_by_their_columns(datasets):
    adata = datasets["symbols.h5ad"]
    adata.X = sp.csr_matrix(adata.X) * np.float32(30.7)
    member, _ = open_input(adata, VOCAB, InputConfig(expected_counts=True))
    batch = CellPool([member], seed=0).training(np.arange(5), np.zeros(5, int))
    np.testing.assert_array_equal(batch.library_size % 1, 0)
