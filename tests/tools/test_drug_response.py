"""Drug features: the published recipes by hand, units told apart."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scfm
from scfm.batch import CellBatch
from scfm.data.gene_tables import gene_table
from scfm.errors import (
    ConfigError,
    CountsError,
    EmptyCellError,
    GeneCoverageError,
    ModelError,
    ScfmWarning,
)
from tests.toys import toy_adata, toy_model, toy_scfoundation

KEY = "X_scfm_drug"


@pytest.fixture(scope="module")
def model():
    return toy_scfoundation(60)


@pytest.fixture
def counts(rng):
    """Counts as deep as bulk samples'; one column no model knows."""
    adata = toy_adata(rng, n_cells=9)
    adata.X = sp.csr_matrix(adata.X * 1000)
    adata.var_names = [*adata.var_names[:10], "thing", *adata.var_names[11:]]
    return adata


@pytest.fixture
def logged(counts):
    logged = counts.copy()
    values = counts.X.toarray()
    logged.X = sp.csr_matrix(np.log1p(1e4 * values / values.sum(1, keepdims=True)))
    return logged


def by_hand(model, values, target, source, how):
    """One sample: genes above 0 in the vocabulary's order, between the given depths."""
    genes = np.flatnonzero(values)
    vocab = model.vocab
    ids = np.array([vocab.target_depth_id, vocab.source_depth_id, *genes], dtype=np.int64)
    shown = np.array([target, source, *values[genes]], dtype=np.float32)
    n, depth = len(ids), np.ones(1, np.float32)
    cells = CellBatch(
        gene_ids=ids,
        values=shown,
        offsets=np.array([0, n], np.int32),
        is_target=np.zeros(n, bool),
        target_values=np.zeros(n, np.float32),
        library_size=depth,
        source_depth=depth * np.float32(source),
        target_depth=depth * np.float32(target),
        cell_index=np.zeros(1, np.int64),
    ).map(torch.from_numpy)
    with torch.inference_mode():
        return model.pool(model(cells), how).numpy()[0]


def on_vocabulary(adata, values, model):
    """By name, dense: the oracle's own matching."""
    aligned = np.zeros((adata.n_obs, model.vocab.n_genes))
    for column, name in enumerate(adata.var_names):
        if name in model.vocab.symbols:
            aligned[:, model.vocab.symbols.index(name)] = values[:, column]
    return aligned


@pytest.mark.parametrize("recipe", ["deepcdr", "scad_bulk", "scad_cell"])
def test_published_recipes(logged, model, recipe):
    scfm.tl.drug_features(logged, model, recipe=recipe)
    values = on_vocabulary(logged, logged.X.toarray(), model)
    found = logged.obsm[KEY]
    assert found.shape == (9, 32 if recipe == "deepcdr" else 128)
    assert found.dtype == np.float32
    for i, sample in enumerate(values):
        s = sample.sum()
        target, source, how = {
            "deepcdr": (s, s, "max"),
            "scad_bulk": (np.log10(s), np.log10(s), "all"),
            "scad_cell": (4.0, np.log10(s), "all"),
        }[recipe]
        expected = by_hand(model, sample, target, source, how)
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-5)
    assert logged.uns["scfm"][KEY]["recipe"] == recipe
    assert logged.uns["scfm"][KEY]["genes"]["matched"] == 49


def test_bulk_counts_are_scaled_to_their_median(counts, model):
    scfm.tl.drug_features(counts, model, recipe="bulk", total="median")
    raw = on_vocabulary(counts, counts.X.toarray(), model)
    totals = raw.sum(1)
    median = np.median(totals)
    for i, sample in enumerate(np.log1p(raw * median / totals[:, None])):
        depth = np.log10(sample.sum())
        expected = by_hand(model, sample, depth, depth, "max")
        np.testing.assert_allclose(counts.obsm[KEY][i], expected, rtol=1e-5, atol=1e-5)
    kept = counts.uns["scfm"][KEY]["total"]
    assert kept == pytest.approx(median)
    one = counts[[4]].copy()  # later, alone, with the total that was kept
    scfm.tl.drug_features(one, model, recipe="bulk", total=kept)
    np.testing.assert_allclose(one.obsm[KEY][0], counts.obsm[KEY][4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_and_gene_order_cannot_matter(logged, model, rng, batch_size):
    permuted = logged[:, rng.permutation(logged.n_vars)].copy()
    scfm.tl.drug_features(permuted, model, recipe="scad_cell", batch_size=batch_size)
    scfm.tl.drug_features(logged, model, recipe="scad_cell")
    np.testing.assert_allclose(permuted.obsm[KEY], logged.obsm[KEY], rtol=1e-5, atol=1e-5)


def test_counts_are_refused_where_log_values_are_wanted(counts, logged, model):
    with pytest.raises(CountsError, match=r"X holds raw counts.*scanpy\.pp\.log1p"):
        scfm.tl.drug_features(counts, model, recipe="deepcdr")
    counts.layers["lognorm"] = logged.X.copy()
    with pytest.raises(CountsError, match="use layer='lognorm'"):
        scfm.tl.drug_features(counts, model, recipe="deepcdr")
    scfm.tl.drug_features(counts, model, recipe="deepcdr", layer="lognorm")
    scfm.tl.drug_features(logged, model, recipe="deepcdr")
    np.testing.assert_array_equal(counts.obsm[KEY], logged.obsm[KEY])


def test_log_values_are_refused_where_counts_are_wanted(logged, model):
    with pytest.raises(CountsError, match="log"):
        scfm.tl.drug_features(logged, model, recipe="bulk")


def test_log2_is_refused(logged, model):
    logged.X = logged.X / np.log(2)
    with pytest.raises(CountsError, match="log2"):
        scfm.tl.drug_features(logged, model, recipe="deepcdr")


def test_cells_given_as_bulk_are_said(rng, model):
    with pytest.warns(ScfmWarning, match="as single cells have"):
        scfm.tl.drug_features(toy_adata(rng), model, recipe="bulk")


def test_what_cannot_be_made_is_refused(logged, model):
    with pytest.raises(ConfigError, match="known are bulk, deepcdr"):
        scfm.tl.drug_features(logged, model, recipe="deep")
    with pytest.raises(ConfigError, match="recipe='bulk'"):
        scfm.tl.drug_features(logged, model, recipe="deepcdr", total=1e6)
    with pytest.raises(ModelError, match="scfoundation"):
        scfm.tl.drug_features(logged, toy_model(), recipe="deepcdr")
    with pytest.raises(ConfigError, match="'median'"):
        scfm.tl.drug_features(logged, model, recipe="bulk", total="mean")


def as_mouse(adata):
    """The same samples by the genes' mouse orthologs, and which genes have one."""
    table = gene_table("mouse")
    symbol_of = dict(zip(table.human_ortholog, table.symbol, strict=True))
    has_one = [name in symbol_of for name in adata.var_names]
    mouse = adata[:, has_one].copy()
    mouse.var_names = [symbol_of[name] for name in mouse.var_names]
    return mouse, np.array(has_one)


@pytest.mark.parametrize("recipe", ["deepcdr", "bulk"])
def test_mouse_samples_need_orthologs(counts, logged, model, recipe):
    given = counts if recipe == "bulk" else logged
    mouse, has_one = as_mouse(given)
    assert has_one.sum() > 10
    with pytest.raises(GeneCoverageError, match="looks like mouse"):
        scfm.tl.drug_features(mouse, model, recipe=recipe)
    scfm.tl.drug_features(mouse, model, recipe=recipe, orthologs=True)
    human = given[:, has_one].copy()
    scfm.tl.drug_features(human, model, recipe=recipe, species="human")
    np.testing.assert_allclose(mouse.obsm[KEY], human.obsm[KEY], rtol=1e-5, atol=1e-5)
    assert mouse.uns["scfm"][KEY]["genes"]["species"] == "mouse"


@pytest.mark.parametrize(("recipe", "what"), [("deepcdr", "log1p values"), ("bulk", "counts")])
def test_samples_mostly_of_other_genes_are_refused(counts, logged, model, recipe, what):
    given = counts if recipe == "bulk" else logged
    given.var_names = [*given.var_names[:3], *(f"thing{i}" for i in range(47))]
    values = given.X.toarray()
    share = values[:, :3].sum() / values.sum()
    with pytest.raises(GeneCoverageError, match=f"% of the {what} of AnnData fall on genes"):
        scfm.tl.drug_features(given, model, recipe=recipe)
    scfm.tl.drug_features(given, model, recipe=recipe, minimum_coverage=0.001)
    assert given.uns["scfm"][KEY]["genes"]["counts_covered"] == pytest.approx(share, rel=1e-6)


def test_a_sample_without_a_known_gene_is_named_by_its_row(counts, model, monkeypatch):
    monkeypatch.setattr("scfm.tools.drug_response.CHUNK_SAMPLES", 3)
    values = counts.X.toarray()
    values[7, :10], values[7, 11:] = 0, 0
    values[7, 10] = 1e6  # the column no model knows
    counts.X = sp.csr_matrix(values)
    with pytest.raises(EmptyCellError, match=r"first rows: 7\)"):
        scfm.tl.drug_features(counts, model, recipe="bulk", batch_size=2)


def test_bulk_by_itself_hangs_on_no_other_sample(counts, model):
    scfm.tl.drug_features(counts, model, recipe="bulk")
    one = counts[[4]].copy()
    scfm.tl.drug_features(one, model, recipe="bulk")
    np.testing.assert_allclose(one.obsm[KEY][0], counts.obsm[KEY][4], rtol=1e-5, atol=1e-5)
    assert counts.uns["scfm"][KEY]["total"] == 1e4
