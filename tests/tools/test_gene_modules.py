"""Modules of genes: planted ones are found, whatever the order; the judging cells are others."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score

import scfm
from scfm.errors import ConfigError, InputError, ModelError
from scfm.evaluate.gene_modules import (
    difference_over_cells,
    held_out_coexpression,
    verdict_on,
    within,
    within_of_weighted,
)
from scfm.tasks.gene_graph import by_size, leiden_modules, neighbour_graph
from scfm.tools.module_activity import activity, deal_cells
from tests.toys import scfoundation_vocab, toy_model, toy_scfoundation

pytest.importorskip("igraph")

N_GENES = 50
SYMBOLS = scfoundation_vocab(N_GENES).symbols


@pytest.fixture(scope="module")
def model():
    return toy_scfoundation(N_GENES)


@pytest.fixture
def planted(rng):
    """Four programmes of 10, 10, 10 and 8 genes, each on in cells of its own."""
    truth = np.repeat([0, 1, 2, 3], [10, 10, 10, 8])
    programme = rng.integers(4, size=120)
    mean = np.where(truth == programme[:, None], 30.0, 5.0)
    counts = sp.csr_matrix(rng.poisson(mean).astype(np.float32))
    obs = pd.DataFrame({"programme": programme}, index=[f"c{i}" for i in range(120)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame({"truth": truth}, index=SYMBOLS[:38]))


def clouds(rng, n=20, d=6):
    centres = rng.normal(size=(3, d)) * 5
    truth = np.repeat([0, 1, 2], n)
    return centres[truth] + rng.normal(size=(3 * n, d)) * 0.3, truth


def test_planted_clouds_are_found(rng):
    vectors, truth = clouds(rng)
    found = leiden_modules(vectors, n_neighbours=10, resolution=0.3, seed=0)
    assert adjusted_rand_score(truth, found) == 1


def test_order_of_genes_cannot_matter(rng):
    vectors, _ = clouds(rng)
    order = rng.permutation(len(vectors))
    how = {"n_neighbours": 10, "resolution": 0.3, "seed": 0}
    found = leiden_modules(vectors[order], **how)
    assert adjusted_rand_score(leiden_modules(vectors, **how)[order], found) == 1


def test_neighbour_graph_by_hand():
    vectors = np.array([[1.0, 0], [1, 0.1], [0, 1], [0, 0]])
    graph = neighbour_graph(vectors, 1).toarray()
    cosine = 1 / np.hypot(1, 0.1)
    assert graph[0, 1] == graph[1, 0] == pytest.approx(cosine)
    assert graph[2, 1] == graph[1, 2] == pytest.approx(0.1 * cosine)
    assert graph[0, 2] == 0  # neither's nearest
    assert (graph[3] == 0).all()


def test_modules_are_numbered_by_size():
    assert by_size(np.array([5, 2, 2, 7, 7, 7, 5])).tolist() == [1, 2, 2, 0, 0, 0, 1]


def test_within_is_the_mean_over_pairs(rng):
    r = np.corrcoef(rng.normal(size=(6, 9)))
    modules = np.array([0, 0, 0, 1, 1, 2])
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    assert within(r, modules) == pytest.approx(np.mean([r[i, j] for i, j in pairs]))


def test_random_modules_have_the_mean_correlation(rng):
    """Over all permutations a pair within a module is any pair."""
    r = np.corrcoef(rng.normal(size=(30, 9)))
    found = held_out_coexpression(r, np.repeat([0, 1, 2], 10), 0)
    overall = (r.sum() - 30) / (30 * 29)
    assert found["random"] == pytest.approx(overall, abs=0.02)
    assert found["random_low"] < found["random"] < found["random_high"]


def test_resampled_modules_are_those_of_the_cells_drawn(rng):
    """Oracle: numpy's r of the cells as drawn; a gene that does not vary goes with none."""
    cells = rng.normal(size=(25, 9))
    cells[:, 4] = 2.0
    groupings = [np.array([0, 0, 1, 1, 1, 2, 2, 2, 2]), np.arange(9) % 2, np.arange(9)]
    drawn = [np.arange(25), rng.integers(25, size=25)]
    weights = np.stack([np.bincount(d, minlength=25) for d in drawn]).astype(float)
    found = within_of_weighted(cells, weights, groupings)
    for at, grouping in enumerate(groupings):
        for draw, chosen in enumerate(drawn):
            with np.errstate(invalid="ignore"):
                r = np.nan_to_num(np.corrcoef(cells[chosen].T))
            assert found[at, draw] == pytest.approx(within(r, grouping), abs=1e-9)
    assert (found[2] == 0).all()  # modules of one gene have no pair


def test_the_same_modules_differ_by_nothing_and_planted_ones_win(rng):
    truth = np.repeat([0, 1], 6)
    cells = rng.normal(size=(80, 2))[:, truth] + rng.normal(size=(80, 12))
    same = difference_over_cells(cells, truth, truth, 0)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    random = np.arange(12) % 2
    won = difference_over_cells(cells, truth, random, 0)
    r = np.corrcoef(cells.T)
    assert won.value == pytest.approx(within(r, truth) - within(r, random))
    assert 0 < won.low < won.value < won.high
    lost = difference_over_cells(cells, random, truth, 0)
    assert (lost.low, lost.high) == pytest.approx((-won.high, -won.low))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.1, "The model's modules go together better in 1,234 other cells"),
        (-0.1, -0.01, "Co-expression's modules go together better in 1,234 other cells"),
        (-0.01, 0.1, "The model's and co-expression's modules cannot be told apart in 1,234"),
    ],
)
def test_no_winner_is_named_where_the_interval_holds_zero(low, high, said):
    scores = {"within": 0.3, "random": 0.1}
    apart = {"value": (low + high) / 2, "low": low, "high": high}
    found = {"model": scores, "coexpression": scores, "model_minus_coexpression": apart}
    verdict = verdict_on({**found, "n_other_cells": 1234, "ari": 0.5, "nmi": 0.5})
    assert verdict.startswith(said)
    assert f"95 % {low:+.3f} to {high:+.3f}" in verdict


def test_activity_is_the_mean_z_score(rng):
    x = rng.uniform(size=(20, 5))
    x[:, 4] = 2.0  # a gene that does not vary says nothing
    found = activity(x, np.array([0, 1, 0, 1, 0]))
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), np.inf)
    np.testing.assert_allclose(found[:, 0], z[:, [0, 2, 4]].mean(1), rtol=1e-5, atol=1e-6)


def test_cells_are_dealt_once():
    shown, others = deal_cells(100, 30, seed=1)
    assert len(shown) == 30
    assert sorted([*shown, *others]) == list(range(100))
    assert len(deal_cells(40, 300, 0)[0]) == 20  # half of them judge


def test_everything_is_written_where_it_is_promised(planted, model):
    scfm.tl.gene_modules(
        planted, model, n_cells=30, n_neighbours=8, key_added="m", compare_with="coexpression"
    )
    found = planted.uns["scfm"]["m"]
    modules = planted.var["m"]
    assert modules.notna().all()
    assert modules.nunique() == found["n_modules"]
    sizes = modules.value_counts()
    assert sizes["0"] == sizes.max()
    names = [f"m_{k}" for k in range(found["n_modules"])]
    assert list(planted.obs.columns) == ["programme", *names]
    assert np.abs(planted.obs[names].to_numpy().mean(0)).max() < 1e-4
    both = found["coexpression"]
    assert adjusted_rand_score(planted.var["truth"], both["modules"]) == 1
    assert both["coexpression"]["within"] > both["coexpression"]["random_high"]
    assert both["n_other_cells"] == 90
    assert both["verdict"].startswith("Co-expression's modules go together better")
    apart = both["model_minus_coexpression"]
    difference = both["model"]["within"] - both["coexpression"]["within"]
    assert apart["value"] == pytest.approx(difference, abs=1e-5)
    assert apart["low"] <= apart["value"] <= apart["high"] < 0
    scfm.tl.gene_modules(planted, model, n_cells=30, resolution=0.1, key_added="m")
    assert [c for c in planted.obs if c.startswith("m_")] == [
        f"m_{k}" for k in range(planted.uns["scfm"]["m"]["n_modules"])
    ]


def test_columns_in_another_order_make_the_same_modules(planted, model, rng):
    order = rng.permutation(planted.n_vars)
    other = planted[:, order].copy()
    for adata in (planted, other):
        scfm.tl.gene_modules(adata, model, n_cells=20, n_neighbours=8)
    ours = planted.var["gene_modules"].to_numpy()[order]
    assert adjusted_rand_score(ours, other.var["gene_modules"]) == 1


def test_written_and_read_again(planted, model, tmp_path):
    scfm.tl.gene_modules(planted, model, n_cells=20, compare_with="coexpression")
    planted.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (again.var["gene_modules"] == planted.var["gene_modules"]).all()
    assert again.uns["scfm"]["gene_modules"]["n_modules"] >= 1


def test_chosen_genes_alone_are_grouped(planted, model):
    chosen = list(planted.var_names[5:20])
    scfm.tl.gene_modules(planted, model, genes=chosen, n_cells=20, n_neighbours=5)
    assert planted.var["gene_modules"].notna().to_numpy().nonzero()[0].tolist() == list(
        range(5, 20)
    )


def test_refusals(planted, model):
    with pytest.raises(ConfigError, match="'NOPE' is a gene outside the vocabulary"):
        scfm.tl.gene_modules(planted, model, genes=["NOPE", *SYMBOLS[:20]])
    with pytest.raises(ConfigError, match="genes is the text 'CD3E'; wanted a list of names"):
        scfm.tl.gene_modules(planted, model, genes="CD3E")
    with pytest.raises(ConfigError, match="compare_with is 'x'; known are None and 'coexpression'"):
        scfm.tl.gene_modules(planted, model, compare_with="x")
    with pytest.raises(ConfigError, match=f"not in this data: {SYMBOLS[45]}"):
        scfm.tl.gene_modules(planted, model, genes=[SYMBOLS[45], *SYMBOLS[:20]])
    with pytest.raises(InputError, match="3 genes to group; wanted at least 10"):
        scfm.tl.gene_modules(planted, model, genes=SYMBOLS[:3])
    with pytest.raises(ConfigError, match="resolution 0"):
        scfm.tl.gene_modules(planted, model, resolution=0.0)
    with pytest.raises(ModelError, match="scfoundation"):
        scfm.tl.gene_modules(planted, toy_model())
