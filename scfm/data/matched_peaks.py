"""Peaks -> others like them, to compare with: as accessible over all cells, of the same GC content.

in   accessibility of each peak over all cells, GC content where the DNA is known
out  (background, peak): for every peak as many others as are asked for, drawn with replacement

As chromVAR draws them (Schep et al. 2017, doi:10.1038/nmeth.4401): log accessibility and GC are
whitened and laid on a grid; a cell of the grid is drawn by a normal density of its distance, then
one of its peaks.
"""

import numpy as np
from jaxtyping import Float, Int

N_BACKGROUNDS = 50
GRID = 50  # cells a side
WIDTH = 0.1  # standard deviation of the density, in whitened units


def matched_peaks(
    accessibility: Float[np.ndarray, " peak"],
    gc: Float[np.ndarray, " peak"] | None,
    *,
    n: int = N_BACKGROUNDS,
    seed: int = 0,
) -> Int[np.ndarray, "background peak"]:
    """For each peak ``n`` others; a peak that is open in no cell is its own background.

    Peaks whose GC is NaN count as of mean GC. The draws of a seed are the same for the same peaks.
    """
    rng = np.random.default_rng(seed)
    n_peaks = len(accessibility)
    found = np.broadcast_to(np.arange(n_peaks), (n, n_peaks)).copy()
    open_ = np.flatnonzero(accessibility > 0)
    if len(open_) == 0:
        return found
    cell, centre = _grid(_whitened(accessibility[open_], None if gc is None else gc[open_]))
    order = np.argsort(cell, kind="stable")
    size = np.bincount(cell, minlength=len(centre))
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    occupied = np.flatnonzero(size)
    for here in occupied:
        gap = ((centre[occupied] - centre[here]) ** 2).sum(1)
        density = np.exp(-gap / (2 * WIDTH**2))
        members = order[first[here] : first[here] + size[here]]
        drawn = occupied[
            rng.choice(len(occupied), size=(n, len(members)), p=density / density.sum())
        ]
        within = rng.integers(0, size[drawn])
        found[:, open_[members]] = open_[order[first[drawn] + within]]
    return found


def _whitened(
    accessibility: Float[np.ndarray, " peak"], gc: Float[np.ndarray, " peak"] | None
) -> Float[np.ndarray, "peak property"]:
    columns = [np.log10(accessibility)]
    if gc is not None and np.isfinite(gc).any():
        columns.append(np.where(np.isfinite(gc), gc, np.nanmean(gc)))
    values = np.stack(columns, axis=1).astype(np.float64)
    values -= values.mean(0)
    varying = values[:, values.std(0) > 1e-12]
    if varying.shape[1] == 0 or len(values) < 3:
        return np.zeros((len(values), 1))
    covariance = np.atleast_2d(np.cov(varying.T))
    covariance += 1e-12 * np.eye(len(covariance))  # GC may follow accessibility exactly
    return np.linalg.solve(np.linalg.cholesky(covariance), varying.T).T


def _grid(
    values: Float[np.ndarray, "peak property"],
) -> tuple[Int[np.ndarray, " peak"], Float[np.ndarray, "cell property"]]:
    """Which cell of the grid each peak lies in, and the cells' centres."""
    low, span = values.min(0), np.ptp(values, axis=0)
    step = np.where(span > 0, span, 1) / GRID
    place = np.minimum(((values - low) / step).astype(np.int64), GRID - 1)
    names, cell = np.unique(place, axis=0, return_inverse=True)
    return cell.ravel(), low + (names + 0.5) * step
