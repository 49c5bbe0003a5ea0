"""Cells of given values: the worked numbers, scanpy, and values that look like sentinels."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from scfm.data.matrices import RawRows
from scfm.errors import ConfigError, CountsError, EmptyCellError
from scfm.tokens.given_values import RECIPES, cells_by_recipe, from_values, median_total
from scfm.tokens.masking import MaskedTokenizer
from tests.tokens.test_masking import vocab_of

VOCAB = vocab_of(6)
T, S = VOCAB.target_depth_id, VOCAB.source_depth_id
LOGNORM = [0, 8.006701, 6.908755, 0, 8.699681]  # item A: raw counts 0, 3, 1, 0, 6
TOTAL = 23.615157


def by_recipe(matrix, recipe: str, column_to_gene=None, **options):
    csr = sp.csr_matrix(np.atleast_2d(matrix))
    genes = np.arange(csr.shape[1]) if column_to_gene is None else np.array(column_to_gene)
    arrays = (csr.indptr, csr.indices, csr.data, genes)
    return cells_by_recipe(*arrays, VOCAB, recipe, **options)


@pytest.mark.parametrize(
    ("recipe", "target_depth", "source_depth"),
    [
        ("scad_cell", 4, 1.3731905),
        ("scad_bulk", 1.3731905, 1.3731905),
        ("deepcdr", TOTAL, TOTAL),
        ("bulk", 1.3731905, 1.3731905),
    ],
)
def test_worked_numbers(recipe, target_depth, source_depth):
    given = [0, 3, 1, 0, 6] if recipe == "bulk" else LOGNORM
    cells = by_recipe(given, recipe)
    assert cells.gene_ids.tolist() == [T, S, 1, 2, 4]
    expected = [target_depth, source_depth, 8.006701, 6.908755, 8.699681]
    np.testing.assert_allclose(cells.values, expected, rtol=1e-6)
    np.testing.assert_allclose(cells.target_depth, [target_depth], rtol=1e-6)
    np.testing.assert_allclose(cells.source_depth, [source_depth], rtol=1e-6)
    np.testing.assert_allclose(cells.library_size, [10 if recipe == "bulk" else TOTAL], rtol=1e-6)
    assert not cells.is_target.any()
    assert not cells.hidden.any()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # scanpy's own
def test_bulk_is_scanpys_normalisation(rng):
    counts = rng.poisson(rng.gamma(0.5, 900, (7, 6))).astype(np.float32)
    counts[:, 0] += 1
    csr = sp.csr_matrix(counts)
    median = median_total([RawRows(csr.indptr, csr.indices, csr.data)], np.arange(6))
    for scale, options in ((median, {}), (1e4, {"target_sum": 1e4})):
        theirs = ad.AnnData(counts.copy())
        sc.pp.normalize_total(theirs, **options)
        sc.pp.log1p(theirs)
        ours = by_recipe(counts, "bulk", scale=scale)
        values = np.asarray(theirs.X)
        is_gene = ours.gene_ids < 6
        np.testing.assert_allclose(ours.values[is_gene], values[values > 0], rtol=2e-6)
        np.testing.assert_allclose(ours.source_depth, np.log10(values.sum(1)), rtol=2e-6)
        np.testing.assert_array_equal(ours.target_depth, ours.source_depth)


def test_bulk_counts_show_the_values_that_a_tokenizer_shows(columns, rows_of, rng):
    counts = rng.poisson(300, (5, 6)) * (rng.random((5, 6)) < 0.7)
    counts[:, 2] += 1
    theirs = MaskedTokenizer(VOCAB, columns(np.arange(6))).shown(rows_of(counts))
    ours = by_recipe(counts, "bulk")
    is_gene = ours.gene_ids < 6
    np.testing.assert_array_equal(ours.gene_ids, theirs.gene_ids)
    np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    np.testing.assert_allclose(ours.values[is_gene], theirs.values[is_gene], rtol=1e-6)


def test_columns_go_by_their_gene(rng):
    counts = rng.poisson(50, (4, 6)) + 1
    order = rng.permutation(6)
    for recipe in RECIPES:
        given = counts if recipe == "bulk" else np.log1p(counts / 7)
        straight = by_recipe(given, recipe)
        moved = by_recipe(given[:, order], recipe, order)
        # beside a column of no gene, and one gene on two columns
        wide = np.hstack([given, np.full((4, 1), 9.0)])
        for other in (moved, by_recipe(wide, recipe, [*range(6), -1])):
            for name in ("gene_ids", "offsets"):
                np.testing.assert_array_equal(getattr(other, name), getattr(straight, name))
            np.testing.assert_allclose(other.values, straight.values, rtol=1e-6)
    half = np.log1p(np.hstack([counts / 14, counts / 14]))
    twice = by_recipe(half, "scad_cell", [*range(6)] * 2)
    np.testing.assert_allclose(
        twice.values, by_recipe(np.log1p(counts / 7), "scad_cell").values, rtol=1e-6
    )


def test_values_equal_to_the_originals_sentinels_are_values():
    # 102 marks a masked value there and 103 padding; a sum of 102 as T would be masked
    values = np.array([102.0, 103.0, 1.0])
    depths = np.array([102.0, 103.0])
    cells = from_values(
        np.array([0, 2, 3]), np.array([0, 3, 5]), values, depths[::-1], depths, VOCAB, np.arange(2)
    )
    assert cells.values.tolist() == [102, 103, 102, 103, 103, 102, 1]
    assert cells.gene_ids.tolist() == [T, S, 0, 3, T, S, 5]
    assert not cells.hidden.any()
    assert cells.library_size.tolist() == [205, 1]
    by_sum = by_recipe([17.0] * 6, "deepcdr")
    assert by_sum.values.tolist() == [102, 102, 17, 17, 17, 17, 17, 17]


@pytest.mark.parametrize(
    ("given", "recipe", "error", "message"),
    [
        ([1, 2, 3], "bulks", ConfigError, "recipe is 'bulks'; known are bulk, deepcdr"),
        (
            [1, -2.5, 3],
            "bulk",
            CountsError,
            "1 of 3 values are negative or no number. Wanted counts",
        ),
        ([1, np.nan, 3], "scad_bulk", CountsError, "Wanted log1p"),
        (
            [1, 250, 3],
            "deepcdr",
            CountsError,
            "largest value is 250; .* take recipe='bulk'; .* scfm.tl.embed",
        ),
        ([[1, 2], [0, 0]], "bulk", EmptyCellError, r"first rows: 1\)"),
    ],
)
def test_refusals(given, recipe, error, message):
    with pytest.raises(error, match=message):
        by_recipe(given, recipe)


def test_the_median_is_of_the_vocabularys_counts():
    csr = sp.csr_matrix(np.array([[4, 0, 900], [1, 1, 0], [0, 0, 5], [6, 3, 1]]))
    blocks = [RawRows(part.indptr, part.indices, part.data) for part in (csr[:3], csr[3:])]
    assert median_total(blocks, np.array([0, 1, -1])) == 4
    with pytest.raises(EmptyCellError):
        median_total(blocks, np.array([-1, -1, -1]))
