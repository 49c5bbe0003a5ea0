import numpy as np
import pytest
import scipy.sparse as sp

from scfm.errors import EmptyCellError, InputError
from scfm.evaluate.motif_deviations import chromvar_deviations


def dense_deviations(counts, annotation, background):
    """chromVAR's computeDeviations, one cell, annotation and background at a time."""
    share = counts.sum(0) / counts.sum()
    raw = np.zeros((len(counts), annotation.shape[1]))
    others = np.zeros((len(background), *raw.shape))
    for cell, own in enumerate(counts):
        for at in range(annotation.shape[1]):
            peaks = np.flatnonzero(annotation[:, at])
            expected = own.sum() * share[peaks].sum()
            raw[cell, at] = (own[peaks].sum() - expected) / expected
            for number, exchanged in enumerate(background):
                theirs = exchanged[peaks]
                expected = own.sum() * share[theirs].sum()
                others[number, cell, at] = (own[theirs].sum() - expected) / expected
    deviation = raw - others.mean(0)
    return deviation, deviation / others.std(0, ddof=1)


@pytest.mark.parametrize("step", [2, 9])
def test_the_dense_closed_form(rng, step):
    counts = rng.poisson(1.0, (9, 30)) + (np.arange(30) == 0)
    annotation = rng.random((30, 4)) < 0.3
    background = rng.integers(0, 30, (6, 30))
    sparse = sp.csr_matrix(counts)

    def chunks():
        return (sparse[i : i + step] for i in range(0, 9, step))

    found = chromvar_deviations(chunks, sp.csr_matrix(annotation.astype(float)), background)
    deviation, z = dense_deviations(counts, annotation, background)
    np.testing.assert_allclose(found.deviation, deviation, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.z, z, rtol=1e-4, atol=1e-5)


def test_an_annotation_without_peaks_deviates_nowhere(rng):
    counts = sp.csr_matrix(rng.poisson(1.0, (4, 10)) + 1)
    background = rng.integers(0, 10, (3, 10))
    found = chromvar_deviations(lambda: [counts], np.zeros((10, 1)), background)
    assert (found.deviation == 0).all()
    assert (found.z == 0).all()


def test_one_cell_and_empty_cells_are_refused(rng):
    background = np.zeros((2, 5), dtype=np.int64)
    one = sp.csr_matrix(np.ones((1, 5)))
    with pytest.raises(InputError, match="1 cell"):
        chromvar_deviations(lambda: [one], np.ones((5, 1)), background)
    empty = sp.csr_matrix(np.array([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    with pytest.raises(EmptyCellError, match="row 1"):
        chromvar_deviations(lambda: [empty], np.ones((5, 1)), background)
