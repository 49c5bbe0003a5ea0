"""LSI: the same as written down in dense NumPy; cells of a kind lie together."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scfm.data import lsi as lsi_module
from scfm.data.lsi import lsi
from scfm.data.read import open_counts
from scfm.errors import EmptyCellError, InputError


def draw_kinds(rng, n_cells=60, n_peaks=200):
    """Three kinds of cells, each with peaks of its own, at depths that differ much."""
    kind = np.arange(n_cells) % 3
    rate = np.full((n_cells, n_peaks), 0.1)
    for k in range(3):
        rate[kind == k, 50 * k : 50 * (k + 1)] = 1.0
    depth = rng.lognormal(0, 0.8, (n_cells, 1))
    counts = rng.poisson(rate * depth).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty
    return sp.csr_matrix(counts), kind


def test_distances_are_those_of_the_formula(rng, monkeypatch):
    monkeypatch.setattr(lsi_module, "CHUNK_CELLS", 13)
    monkeypatch.setattr(lsi_module, "DEPTH_CORRELATION", 1.1)  # keep all
    counts, _ = draw_kinds(rng)
    found = lsi(open_counts(ad.AnnData(counts)), n_components=5)
    dense = counts.toarray().astype(np.float64)
    n_open = (dense > 0).sum(axis=0)
    weighted = dense / dense.sum(axis=1, keepdims=True) * np.log1p(60 / np.maximum(n_open, 1))
    u, s, _ = np.linalg.svd(weighted, full_matrices=False)
    expected = (u * s)[:, :5]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-4)  # signs are free


def test_kinds_lie_together_whatever_their_depth(rng):
    counts, kind = draw_kinds(rng)
    embedding = lsi(open_counts(ad.AnnData(counts)), n_components=4)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -2)
    assert (kind[likeness.argmax(axis=1)] == kind).mean() > 0.9
    log_depth = np.log(np.asarray(counts.sum(axis=1)).ravel())
    r = [np.corrcoef(column, log_depth)[0, 1] for column in embedding.T]
    assert np.abs(r).max() <= 0.75


def test_a_sample_is_enough_to_fit(rng):
    counts, _ = draw_kinds(rng)
    source = open_counts(ad.AnnData(counts))
    assert lsi(source, n_components=4, fit_cells=30).shape[0] == 60
    assert (lsi(source, n_components=4) == lsi(source, n_components=4)).all()


def test_refused(rng):
    counts, _ = draw_kinds(rng)
    with pytest.raises(InputError, match="2 cells and 200 peaks are too few"):
        lsi(open_counts(ad.AnnData(counts[:2])))
    empty = sp.csr_matrix(counts.multiply(np.arange(60)[:, None] > 2))
    with pytest.raises(EmptyCellError, match=r"3 of 60 cells have no count.*\[0, 1, 2\]"):
        lsi(open_counts(ad.AnnData(empty), keep_empty=True))
