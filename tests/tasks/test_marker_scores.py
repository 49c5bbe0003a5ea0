"""Marker scores: the Mann-Whitney U they are, and what they must not hang on."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import softmax
from scipy.stats import mannwhitneyu

from scfm.data.counts import CountRows
from scfm.tasks.marker_scores import MarkerScorer


def rows_of(counts):
    counts = sp.csr_matrix(counts)
    return CountRows(
        *(counts.indptr.astype(np.int64), counts.indices.astype(np.int32)),
        *(counts.data.astype(np.int32), np.arange(counts.shape[0])),
    )


def scorer(n_columns, positive, negative=None, gene_of_column=None):
    genes = np.arange(n_columns) if gene_of_column is None else np.asarray(gene_of_column)
    names = [f"t{i}" for i in range(len(positive))]
    return MarkerScorer.of(names, genes, positive, negative or [()] * len(positive))


def test_the_score_is_a_mann_whitney_u(rng):
    """Oracle: scipy, over all genes, where all are expressed and all are ranked."""
    counts = rng.poisson(4, (20, 60)) + 1
    sets = [[0, 5, 9, 33], [1], list(range(20, 45))]
    found = scorer(60, sets).scores(rows_of(counts))
    for at, genes in enumerate(sets):
        others = np.setdiff1d(np.arange(60), genes)
        for cell, row in enumerate(counts):
            u = mannwhitneyu(-row[genes], -row[others]).statistic
            assert found[cell, at] == pytest.approx(1 - u / (len(genes) * 60), abs=1e-12)


def test_the_best_genes_score_one_and_unseen_ones_nothing(rng):
    counts = np.zeros((2, 3000), dtype=int)
    counts[0, :2000] = np.arange(2000, 0, -1)
    counts[1, :10] = 1
    found = scorer(3000, [[0, 1, 2], [1600, 1700], [2500]]).scores(rows_of(counts))
    np.testing.assert_allclose(found[0], [1, 0, 0])  # ranks beyond 1,500 and zeros count alike
    assert 0 < found[1, 0] < 1
    assert (found[1, 1:] == 0).all()


def test_a_cell_hangs_on_its_own_ranks_alone(rng):
    counts = rng.poisson(0.5, (30, 200))
    counts[:, 0] += 1
    sets = [[3, 4, 5], [10, 20]]
    found = scorer(200, sets, [[50], []]).scores(rows_of(counts))
    np.testing.assert_array_equal(
        scorer(200, sets, [[50], []]).scores(rows_of(counts[7:8])), found[7:8]
    )
    np.testing.assert_allclose(scorer(200, sets, [[50], []]).scores(rows_of(3 * counts)), found)
    order = rng.permutation(200)
    place = np.argsort(order)
    moved = scorer(200, [place[s].tolist() for s in sets], [[int(place[50])], []])
    np.testing.assert_allclose(moved.scores(rows_of(counts[:, order])), found)


def test_columns_of_one_gene_are_summed(rng):
    counts = rng.poisson(2, (10, 40)) + 1
    split = np.c_[counts, rng.poisson(2, 10)]
    summed = counts.copy()
    summed[:, 3] += split[:, 40]
    found = scorer(41, [[3, 8]], gene_of_column=[*range(40), 3]).scores(rows_of(split))
    np.testing.assert_allclose(found, scorer(40, [[3, 8]]).scores(rows_of(summed)))


def test_negative_markers_take_away(rng):
    counts = rng.poisson(2, (50, 100)) + 1
    plain = scorer(100, [[1, 2], [7, 8]]).scores(rows_of(counts))
    found = scorer(100, [[1, 2]], [[7, 8]]).scores(rows_of(counts))
    np.testing.assert_allclose(found[:, 0], np.maximum(plain[:, 0] - plain[:, 1], 0))


def test_probabilities_are_a_softmax_and_nothing_is_an_outlier():
    marks = scorer(10, [[0], [1], [2]])
    scores = np.array([[0.9, 0.4, 0.1], [0.0, 0.0, 0.0]])
    found = marks.probabilities(scores)
    np.testing.assert_allclose(found.probabilities[0], softmax(10 * scores[0]), rtol=1e-12)
    assert found.is_outlier.tolist() == [False, True]
    assert found.labels(0.5).tolist() == ["t0", "unknown"]
