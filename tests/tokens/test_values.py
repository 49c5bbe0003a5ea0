"""log1p of counts per 10,000: against numpy, scanpy and scFoundation's worked numbers."""

import anndata
import numpy as np
import pytest
import scanpy

from scfm.tokens.values import log1p_cp10k


def test_scfoundations_worked_numbers():
    # item A of the specification: raw [0, 3, 1, 0, 6]
    ours = log1p_cp10k(np.array([0, 5]), np.array([0, 3, 1, 0, 6]), np.array([10]))
    np.testing.assert_allclose(ours, [0, 8.006701, 6.908755, 0, 8.699681], rtol=1e-6)
    assert ours.dtype == np.float32
    assert ours.sum() == pytest.approx(23.615157)


@pytest.mark.parametrize("kind", ["whole", "expected"])
def test_is_numpys_to_the_last_float32_bit(rng, kind):
    counts = np.concatenate([np.arange(1, 200), rng.integers(200, 2**31, 200)])
    if kind == "expected":
        counts = counts + np.round(rng.random(len(counts)), 2)
    totals = rng.integers(counts.max(), 2**40, 5)
    indptr = np.arange(6) * len(counts)
    ours = log1p_cp10k(indptr, np.tile(counts, 5), totals).reshape(5, -1)
    theirs = np.log1p(1e4 * counts / totals[:, None]).astype(np.float32)
    np.testing.assert_array_max_ulp(ours, theirs, maxulp=1)


def test_is_scanpys(cells):
    adata = anndata.AnnData(cells.astype(np.float32))
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    theirs = scanpy.pp.log1p(adata.X)
    indptr = np.arange(len(cells) + 1) * cells.shape[1]
    ours = log1p_cp10k(indptr, cells.ravel(), cells.sum(1)).reshape(cells.shape)
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-5)
