"""Value bins back to expression: what a cell that was said in bins would have been measured as.

in   bins 1 ... n_bins of the expressed genes of packed cells
out  log1p of counts per 10,000; and counts of any depth

A bin keeps a gene's share of the cell's largest log value, not the value itself. What is lost is
one number a cell, its scale, and that is what a known total gives back.
"""

import numpy as np
from jaxtyping import Float, Int

SCALE = 1e4
MOST_STEPS = 100  # of Newton's method; ten are the rule


def bin_scale(
    histogram: Int[np.ndarray, "cell bin"], total: float = SCALE
) -> Float[np.ndarray, " cell"]:
    """The largest log value s of each cell for which its values sum to ``total`` per 10,000.

    Bin b of B stands for its middle, x = s (b - 1/2) / B, and s solves sum expm1(x) = ``total``.
    ``histogram`` has the number of genes in bins 1 ... B. 0 for a cell without a gene.

    The sum is convex and rises with s, and the s at which the highest gene alone reaches the total
    is too large, so Newton's method comes down from there and never steps past the root.
    """
    n_bins = histogram.shape[1]
    middle = (np.arange(n_bins) + 0.5) / n_bins
    is_some = histogram.sum(1) > 0
    genes = histogram[is_some].astype(np.float64)
    highest = n_bins - 1 - np.argmax(genes[:, ::-1] > 0, axis=1)
    s = np.log1p(total) / middle[highest]
    for _ in range(MOST_STEPS):
        grown = np.exp(s[:, None] * middle)
        excess = (genes * (grown - 1)).sum(1) - total
        step = excess / (genes * middle * grown).sum(1)
        s = s - step
        if (np.abs(step) <= 1e-14 * s).all():
            break
    found = np.zeros(len(histogram))
    found[is_some] = s
    return found


def values_from_bins(
    indptr: Int[np.ndarray, " bound"],
    bins: Int[np.ndarray, " gene"],
    n_bins: int,
    *,
    share: float = 1.0,
) -> Float[np.ndarray, " gene"]:
    """log1p of counts per 10,000 of genes said in bins (nats); 0 where the bin is 0.

    ``share`` is the part of a cell's counts that falls on the genes that can be said: the values
    of a cell sum to 10,000 times that. Raises ValueError for a bin outside 0 ... ``n_bins`` and a
    share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if bins.size and not 0 <= bins.min() <= bins.max() <= n_bins:
        raise ValueError(f"bins are 0 to {n_bins}, got {bins.min()} to {bins.max()}")
    n_cells = len(indptr) - 1
    cell = np.repeat(np.arange(n_cells), np.diff(indptr))
    counted = np.bincount(cell * (n_bins + 1) + bins, minlength=n_cells * (n_bins + 1))
    scale = bin_scale(counted.reshape(n_cells, n_bins + 1)[:, 1:], SCALE * share)
    return np.where(bins > 0, scale[cell] * (bins - 0.5) / n_bins, 0.0)


def counts_from_values(
    indptr: Int[np.ndarray, " bound"],
    values: Float[np.ndarray, " gene"],
    depth: int,
    *,
    seed: int,
) -> Int[np.ndarray, " gene"]:
    """Counts of cells of ``depth`` molecules on these genes, drawn with their shares.

    ``values`` are log1p of counts per 10,000. One multinomial draw a cell, which hangs on
    (``seed``, the cell's place) alone; a cell without expression has no counts.
    """
    expected = np.expm1(values)
    counts = np.zeros(len(values), dtype=np.int64)
    for cell in range(len(indptr) - 1):
        genes = slice(indptr[cell], indptr[cell + 1])
        total = expected[genes].sum()
        if total > 0:
            key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, cell], dtype=np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key))
            counts[genes] = rng.multinomial(depth, expected[genes] / total)
    return counts
