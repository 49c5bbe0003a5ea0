"""Metacells: weights, neighbours and depth by hand; the accessibility-alone table on real cells."""

import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import average_precision_score, roc_auc_score

from scfm.data.metacells import accessible_share, log_rate, pool_counts, pooled
from scfm.data.read import open_counts
from scfm.data.region_file import open_region_file
from scfm.data.regions import read_regions
from scfm.errors import ConfigError, EmptyCellError, InputError, LabelError, ScfmWarning


def draw_cells(rng, n_cells=40, n_peaks=25):
    counts = sp.csr_matrix(rng.poisson(0.8, (n_cells, n_peaks)).astype(np.float32))
    return counts, rng.normal(size=(n_cells, 5))


def mutual_by_hand(embedding, k) -> np.ndarray:
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, -1)
    rank = np.argsort(np.argsort(distance, axis=1), axis=1)  # 0 is the cell itself
    is_near = rank <= k
    return is_near & is_near.T


def test_neighbours_are_mutual_and_each_cell_counts_once(rng):
    counts, embedding = draw_cells(rng)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    target = float(3 * np.median(depth))
    found = pooled(counts, embedding=embedding, target_depth=target)
    expected = mutual_by_hand(embedding, found.k)
    assert (found.members.toarray() == expected).all()
    np.testing.assert_allclose(np.asarray(found.weights.sum(axis=1)).ravel(), 1, rtol=1e-12)
    assert (found.weights.diagonal() > 0).all()
    assert (found.depth == expected @ depth).all()
    assert np.median(found.depth) >= target
    assert np.median(mutual_by_hand(embedding, found.k - 1) @ depth) < target  # no k is smaller


def test_the_order_of_cells_does_not_matter(rng):
    counts, embedding = draw_cells(rng)
    order = rng.permutation(40)
    one = pooled(counts, embedding=embedding, target_depth=80)
    two = pooled(counts[order], embedding=embedding[order], target_depth=80)
    assert one.k == two.k
    assert (one.weights.toarray()[np.ix_(order, order)] == two.weights.toarray()).all()


def test_groups(rng):
    counts, _ = draw_cells(rng, 6)
    groups = np.array(["b", "a", None, "b", "a", "b"], dtype=object)
    found = pooled(counts, groups=groups, target_depth=1)
    assert found.names == ("a", "b")
    expected = np.array([[0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 1]])
    assert (found.members.toarray() == expected).all()
    np.testing.assert_allclose(found.weights.toarray(), expected / [[2], [3]])
    assert found.n_cells.tolist() == [2, 3]
    assert found.take(np.array([1])).names == ("b",)


def test_identical_cells_have_neighbours_too(rng):
    embedding = np.ones((8, 3))
    found = pooled(np.full(8, 10.0), embedding=embedding, target_depth=20)
    assert (found.weights.diagonal() > 0).all()
    assert found.n_cells.max() <= 8


def test_warnings(rng):
    counts, embedding = draw_cells(rng)
    groups = np.array(["a"] * 36 + ["b"] * 4)
    with pytest.warns(
        ScfmWarning, match=r"k = \d+ neighbours is more than half .* group's 4 cells"
    ):
        wide = pooled(counts, embedding=embedding, groups=groups, target_depth=100)
    assert 0 < wide.purity < 1
    with pytest.warns(
        ScfmWarning, match=r"40 of 40 metacells have less than half of the 1,000,000"
    ):
        deep = pooled(counts, embedding=embedding, target_depth=1e6, most_neighbours=10)
    assert deep.k == 10
    with pytest.warns(ScfmWarning, match=r"2 of 2 metacells have less than half"):
        pooled(counts, groups=groups)


def test_refused(rng):
    counts, embedding = draw_cells(rng)
    with pytest.raises(ConfigError, match="--use-rep"):
        pooled(counts)
    with pytest.raises(InputError, match="One cell only"):
        pooled(counts[:1], embedding=embedding[:1])
    with pytest.raises(InputError, match="embedding of 39"):
        pooled(counts, embedding=embedding[1:])
    broken = embedding.copy()
    broken[3] = np.nan
    broken[5] = 0
    with pytest.raises(InputError, match=r"2 cells have no place.*\[3, 5\]"):
        pooled(counts, embedding=broken)
    with pytest.raises(EmptyCellError, match="None of the 40 cells"):
        pooled(np.zeros(40), embedding=embedding)
    with pytest.raises(LabelError, match="No cell has a value"):
        pooled(counts, groups=np.array([None] * 40, dtype=object))


def test_counts_are_pooled_in_chunks(rng, monkeypatch):
    monkeypatch.setattr("scfm.data.metacells.CHUNK_CELLS", 7)
    counts, embedding = draw_cells(rng)
    counts = sp.csr_matrix(counts.multiply(np.arange(40)[:, None] != 3))  # a cell without counts
    found = pooled(counts, embedding=embedding, target_depth=60)
    source = open_counts(ad.AnnData(counts), keep_empty=True)
    sums = pool_counts(found.members, source)
    assert (sums.toarray() == found.members.toarray() @ counts.toarray()).all()
    assert (np.asarray(sums.sum(axis=1)).ravel() == found.depth).all()


def test_rate(rng):
    counts, _ = draw_cells(rng, 3)
    width = rng.integers(100, 900, 25)
    total = np.array([10.0, 0.0, 500.0])
    dense = counts.toarray().astype(np.float64)
    expected = np.zeros_like(dense)
    for row in (0, 2):
        expected[row] = np.log1p(dense[row] / width * 20e6 / total[row])
    np.testing.assert_allclose(log_rate(counts, width, total).toarray(), expected, rtol=1e-6)
    # neither the number of cells nor their depth shows
    again = log_rate(counts * 7, width, total * 7).toarray()
    np.testing.assert_allclose(again, expected, rtol=1e-6)


def test_share_of_cells(rng):
    counts, embedding = draw_cells(rng)
    found = pooled(counts, embedding=embedding, target_depth=60)
    share = accessible_share(found.weights, counts).toarray()
    members = found.members.toarray().astype(bool)
    is_open = counts.toarray() > 0
    assert share[4] == pytest.approx(is_open[members[4]].mean(axis=0))


@pytest.mark.parametrize(
    ("group", "cell", "wanted"),
    [("GM", "GM12878", (0.735, 0.462)), ("H1", "H1-hESC", (0.667, 0.309))],
)
def test_accessibility_alone_on_real_cells(shared_data, group, cell, wanted):
    """All 25 cells of a type: AUROC and average precision, mean over the TFs."""
    if shared_data is None:
        pytest.skip("the larger real data is not beside this checkout")
    file = open_region_file(shared_data / "tf" / "scatac_gm12878_h1_50cells_chip.h5ad")
    with file.open_counts() as source:
        rows = source.rows(np.arange(source.n_cells))
        counts = sp.csr_matrix((rows.counts, rows.indices, rows.indptr), shape=(50, len(file.var)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScfmWarning)  # 25 cells are not deep
        found = pooled(counts, groups=file.obs["cell_type"].to_numpy())
    share = accessible_share(found.weights, counts)[found.names.index(group)].toarray().ravel()
    table = read_regions(file).chip[cell].table
    is_labelled = (table >= 0).all(axis=1)
    scores = [
        [score(labels, share[is_labelled]) for score in (roc_auc_score, average_precision_score)]
        for labels in table[is_labelled].T
    ]
    assert np.mean(scores, axis=0) == pytest.approx(wanted, abs=0.01)
