"""Which TFs are active in a cell, from how likely each binds at the peaks the cell has open.

in   open peaks of cells (CSR), probability of binding (peak, TF), matched background peaks
out  (cell, TF)

deviation   mean probability over the open peaks, minus the mean over as many peaks like them (of
            their accessibility and GC content), in standard deviations over the backgrounds: the
            score of chromVAR (Schep et al. 2017, doi:10.1038/nmeth.4401) on predictions
top2        how often a TF is among the two most probable at an open peak, of all such places: the
            score of scFAN (Fu et al. 2020, doi:10.1126/sciadv.aba9031). It ignores how probable
            these two are, and gives 2 / n even where nothing binds
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

N_AT_ONCE = 1 << 24  # numbers held while backgrounds are averaged, 128 MB

METHODS = ("deviation", "top2")


def open_peaks(counts: sp.csr_matrix, threshold: float = 0) -> sp.csr_matrix:
    """1 where a cell has more than ``threshold`` counts."""
    found = sp.csr_matrix(counts > threshold, dtype=np.float64)
    return found


def deviations(
    is_open: sp.csr_matrix,
    probability: Float[np.ndarray, "peak tf"],
    background: Int[np.ndarray, "background peak"],
) -> Float[np.ndarray, "cell tf"]:
    """Background-corrected mean probability at each cell's open peaks, float32.

    NaN for a cell without an open peak; 0 where the backgrounds do not differ at all.
    """
    probability = np.asarray(probability, dtype=np.float64)
    n_cells, n_tfs = len(is_open.indptr) - 1, probability.shape[1]
    found = np.empty((n_cells, n_tfs), dtype=np.float32)
    step = max(1, N_AT_ONCE // (len(background) * n_tfs))
    mean = _row_means(is_open)
    for start in range(0, n_cells, step):
        rows = sp.csr_matrix(mean[start : start + step])
        observed = rows @ probability
        others = np.stack([rows @ probability[peaks] for peaks in background])
        spread = others.std(0, ddof=1)
        gap = observed - others.mean(0)
        is_flat = spread <= 1e-12
        found[start : start + step] = np.where(is_flat, 0, gap / np.where(is_flat, 1, spread))
    found[np.diff(is_open.indptr) == 0] = np.nan
    return found


def top2_shares(
    is_open: sp.csr_matrix,
    probability: Float[np.ndarray, "peak tf"],
    blocks: Sequence[Int[np.ndarray, "_"]] | None = None,
) -> Float[np.ndarray, "cell tf"]:
    """Share of each TF among the two most probable of every open peak, float32.

    ``blocks`` are the columns of models that vote apart, as scFAN's three: each block's shares sum
    to 1. Of equal probabilities the later column counts as higher. NaN without an open peak.
    """
    n_peaks, n_tfs = probability.shape
    votes = np.zeros((n_peaks, n_tfs))
    for columns in [np.arange(n_tfs)] if blocks is None else blocks:
        two = np.argsort(probability[:, columns], axis=1, kind="stable")[:, ::-1][:, :2]
        np.put_along_axis(votes, columns[two], 1 / two.shape[1], axis=1)
    found = _row_means(is_open) @ votes
    found[np.diff(is_open.indptr) == 0] = np.nan
    return found.astype(np.float32)


def _row_means(is_open: sp.csr_matrix) -> sp.csr_matrix:
    """Rows that average over the open peaks."""
    n_open = np.diff(is_open.indptr)
    weight = np.repeat(1 / np.maximum(n_open, 1), n_open)
    return sp.csr_matrix((weight, is_open.indices, is_open.indptr), is_open.shape)
