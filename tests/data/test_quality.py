"""Cell QC against scanpy's own numbers and against thresholds worked out by hand."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scfm.data.counts import CountRows
from scfm.data.quality import KEPT, REASONS, QualityConfig, cell_sums, judge_cells, keep


def as_rows(matrix: sp.csr_matrix) -> CountRows:
    return CountRows(
        matrix.indptr.astype(np.int64),
        matrix.indices.astype(np.int32),
        matrix.data.astype(np.int32),
        np.arange(matrix.shape[0]),
    )


@pytest.fixture
def counts(rng):
    dense = rng.poisson(0.8, size=(60, 30)) * (rng.random((60, 30)) < 0.5)
    dense[7] = 0
    dense[11, :3] = 40
    return sp.csr_matrix(dense)


def test_numbers_are_scanpys(counts):
    is_mito = np.arange(30) < 3
    var = pd.DataFrame({"mt": is_mito}, index=[f"g{i}" for i in range(30)])
    adata = ad.AnnData(counts.astype(np.float32), var=var)
    theirs, _ = sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False)
    n_counts, n_mito = cell_sums(as_rows(counts), is_mito)
    np.testing.assert_array_equal(n_counts, theirs["total_counts"])
    np.testing.assert_array_equal(n_mito, theirs["total_counts_mt"])
    for threshold in (2, 9, 14):
        is_kept = judge_cells(as_rows(counts), is_mito, QualityConfig(min_genes=threshold)).is_kept
        np.testing.assert_array_equal(is_kept, theirs["n_genes_by_counts"] >= threshold)
    for share in (0.05, 0.2, 0.5):
        is_kept = judge_cells(as_rows(counts), is_mito, QualityConfig(max_mito=share)).is_kept
        # theirs is 0/0 in the empty cell
        np.testing.assert_array_equal(is_kept, theirs["pct_counts_mt"].fillna(101) <= 100 * share)
    assert judge_cells(as_rows(counts), is_mito, QualityConfig()).dropped() == {"empty": 1}


def test_thresholds_each_alone_and_first_reason_counts(counts):
    rows, is_mito = as_rows(counts), np.arange(30) < 3
    dense = counts.toarray()
    n_genes, totals = (dense > 0).sum(1), dense.sum(1)
    share = dense[:, :3].sum(1) / np.maximum(totals, 1)
    for config, fails in [
        (QualityConfig(min_genes=9), n_genes < 9),
        (QualityConfig(min_counts=12), totals < 12),
        (QualityConfig(max_mito=0.25), share > 0.25),
    ]:
        judged = judge_cells(rows, is_mito, config)
        np.testing.assert_array_equal(judged.is_kept, ~(fails | (totals == 0)))
    everything = QualityConfig(min_genes=9, min_counts=12, max_mito=0.25)
    dropped = judge_cells(rows, is_mito, everything).dropped()
    assert list(dropped) == [reason for reason in REASONS if reason in dropped]
    assert dropped["empty"] == 1
    assert dropped["min_genes"] == ((n_genes < 9) & (totals > 0)).sum()
    either = (n_genes < 9) | (totals < 12) | (share > 0.25)
    assert sum(dropped.values()) == either.sum()


def test_a_threshold_is_the_last_value_kept():
    rows = as_rows(sp.csr_matrix(np.array([[1, 1, 2], [0, 1, 3], [0, 0, 4]])))
    is_mito = np.array([False, True, False])
    for config in (
        QualityConfig(min_genes=2),
        QualityConfig(min_counts=4),
        QualityConfig(max_mito=0.25),
    ):
        assert (judge_cells(rows, is_mito, config).reason[:2] == KEPT).all()


def test_keep_is_row_selection(counts, rng):
    is_kept = rng.random(60) < 0.4
    ours, theirs = keep(as_rows(counts), is_kept), counts[is_kept]
    np.testing.assert_array_equal(ours.indptr, theirs.indptr)
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_array_equal(ours.counts, theirs.data)
    np.testing.assert_array_equal(ours.cell_index, np.flatnonzero(is_kept))


def test_impossible_thresholds():
    with pytest.raises(ValueError, match="share in"):
        QualityConfig(max_mito=20)
    with pytest.raises(ValueError, match="at least 0"):
        QualityConfig(min_genes=-1)
