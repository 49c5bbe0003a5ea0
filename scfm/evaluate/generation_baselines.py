"""What generated cells must beat, and what bounds them: cells made without a model.

in   raw counts of real cells of one type (CSR, cells by genes), how many cells to make
out  counts or expression of that many cells; a row's sum is free, only its shares count

``noisy`` and ``negative_binomial`` are baselines: they are told the type and see real cells of it.
``binned`` is a bound: real cells after the bins in which a model says values, and back.
"""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from scfm.evaluate.log_counts import log1p_cp10k
from scfm.tokens.bin_values import values_from_bins
from scfm.tokens.value_bins import value_bins

MOST_VALUES = 2**22  # of a dense block of the negative binomial


def n_rows(cells: sp.csr_matrix) -> int:
    """Cells of a matrix."""
    return len(cells.indptr) - 1


def n_columns(cells: sp.csr_matrix) -> int:
    """Genes of a matrix."""
    return sp.csr_matrix.get_shape(cells)[1]


def noisy(counts: sp.csr_matrix, n_cells: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Real cells drawn with replacement, the molecules of each drawn anew.

    A multinomial of the cell's own total and shares: the noise of sequencing it once more.
    """
    drawn = sp.csr_matrix(counts[rng.integers(n_rows(counts), size=n_cells)], copy=True)
    for cell in range(n_cells):
        genes = slice(drawn.indptr[cell], drawn.indptr[cell + 1])
        own = drawn.data[genes].astype(np.float64)
        drawn.data[genes] = rng.multinomial(round(own.sum()), own / own.sum())
    drawn.eliminate_zeros()
    return drawn


def moments(
    counts: sp.csr_matrix,
) -> tuple[Float[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    """Share and dispersion of each gene: count ~ NB(mean L p, variance L p + a (L p)^2).

    L is a cell's total. p pools the counts; a makes the summed squared deviations what they are
    expected to be, sum (c - L p)^2 = sum L p + a sum (L p)^2, and is 0 where that is negative.
    """
    counts = sp.csr_matrix(counts, dtype=np.float64)
    total = np.asarray(counts.sum(1)).ravel()
    share = np.asarray(counts.sum(0)).ravel() / total.sum()
    squares = np.asarray(counts.multiply(counts).sum(0)).ravel()
    mean_squares = share**2 * (total**2).sum()
    deviations = squares - 2 * share * (counts.T @ total) + mean_squares
    excess = deviations - share * total.sum()
    return share, np.maximum(excess, 0) / np.maximum(mean_squares, 1e-300)


def negative_binomial(
    counts: sp.csr_matrix, n_cells: int, rng: np.random.Generator
) -> sp.csr_matrix:
    """Every gene from its own negative binomial, given the total of a real cell of the type.

    Genes are drawn one by one: whatever they do together is lost. A cell that comes out empty is
    drawn again.
    """
    share, dispersion = moments(counts)
    total = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    at_once, blocks, n_done = max(1, MOST_VALUES // len(share)), [], 0
    while n_done < n_cells:
        n = min(at_once, n_cells - n_done)
        mean = rng.choice(total, n)[:, None] * share
        shape = 1 / np.maximum(dispersion, 1e-8)  # beyond it the rates are the means
        block = sp.csr_matrix(rng.poisson(mean * rng.gamma(shape, 1 / shape, mean.shape)))
        blocks.append(block[np.asarray(block.sum(1)).ravel() > 0])
        n_done += n_rows(blocks[-1])
    return sp.csr_matrix(sp.vstack(blocks))


def binned(counts: sp.csr_matrix, n_bins: int) -> sp.csr_matrix:
    """The cells as a perfect model could say them: through ``n_bins`` bins and back.

    Bins are of log1p(cp10k), as in the sentences of scfm.tokens.value_bins.
    """
    log_values = log1p_cp10k(counts, np.arange(n_columns(counts)))
    log_values.eliminate_zeros()
    bins = value_bins(log_values.indptr, log_values.data, n_bins)
    values = values_from_bins(log_values.indptr, bins, n_bins)
    parts = (np.expm1(values), log_values.indices, log_values.indptr)
    return sp.csr_matrix(parts, shape=(n_rows(log_values), n_columns(log_values)))
