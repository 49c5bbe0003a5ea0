"""Gene modules of a model beside those of co-expression alone.

in   modules, expression of their genes in the cells they were made with, and in other cells
out  how alike the two groupings are, and how well the genes of a module go together in other cells

The last is measured on cells that formed neither grouping, and beside random modules of the same
sizes: a grouping into more and smaller modules would else look better for nothing. Intervals are
over those cells: they speak for more cells of these samples, and say nothing of other donors.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scfm.evaluate.intervals import ScoreDraws
from scfm.evaluate.results import Interval
from scfm.tasks.gene_graph import leiden_modules
from scfm.tasks.perturbation import correlations

N_RANDOM = 100
N_BOOTSTRAP = 200


def compare_modules(
    modules: Int[np.ndarray, " gene"],
    shown: Float[np.ndarray, "shown gene"],
    others: Float[np.ndarray, "other gene"],
    *,
    n_neighbours: int,
    resolution: float,
    seed: int,
) -> dict[str, Any]:
    """Both groupings' within-module Pearson's r in other cells, and their likeness.

    ARI: Hubert & Arabie 1985, doi:10.1007/BF01908075; NMI: arithmetic mean, as scikit-learn has it.
    """
    by_cells = (shown - shown.mean(0)).T  # cosine of these is Pearson's r
    coexpressed = leiden_modules(
        np.asarray(by_cells, dtype=np.float64),
        n_neighbours=n_neighbours,
        resolution=resolution,
        seed=seed,
    )
    r = correlations(others)
    difference = difference_over_cells(others, modules, coexpressed, seed)
    found = {
        "ari": float(adjusted_rand_score(modules, coexpressed)),
        "nmi": float(normalized_mutual_info_score(modules, coexpressed)),
        "n_other_cells": len(others),
        "model": held_out_coexpression(r, modules, seed),
        "coexpression": held_out_coexpression(r, coexpressed, seed),
        "model_minus_coexpression": asdict(difference),
        "modules": [int(module) for module in coexpressed],
    }
    return {**found, "verdict": verdict_on(found)}


def difference_over_cells(
    cells: Float[np.ndarray, "cell gene"],
    one: Int[np.ndarray, " gene"],
    other: Int[np.ndarray, " gene"],
    seed: int,
) -> Interval:
    """Within-module r of one grouping minus the other's; 95 %, both on the same resampled cells.

    Random modules of any sizes share one expected r, the mean over all pairs of genes, so it is
    no part of the difference.
    """
    rng, n = np.random.default_rng(seed), len(cells)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP)
    ours, theirs = within_of_weighted(cells, np.vstack([np.ones(n), weights]), [one, other])
    return ScoreDraws(ours[0], ours[1:]).minus(ScoreDraws(theirs[0], theirs[1:]))


def within_of_weighted(
    cells: Float[np.ndarray, "cell gene"],
    weights: Float[np.ndarray, "draw cell"],
    groupings: Sequence[Int[np.ndarray, " gene"]],
) -> Float[np.ndarray, "grouping draw"]:
    """`within` of each grouping where every cell is there ``weights`` times, without any r.

    Of genes standardised to z, r summed over all pairs of a module is the mean over cells of
    (sum of z over its genes)^2: genes by modules, where r would be genes by genes a draw.
    """
    x = cells - cells.mean(0, dtype=np.float64)
    shares = weights / weights.sum(1, keepdims=True)
    means, squares = shares @ x, shares @ x**2
    variances = squares - means**2
    varies = variances > 1e-12 * np.maximum(squares, 1e-12)
    scales = np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0)
    found = np.zeros((len(groupings), len(weights)))
    for at, modules in enumerate(groupings):
        belongs = (modules[:, None] == np.arange(modules.max() + 1)).astype(np.float64)
        n_pairs = (belongs.sum(0) * (belongs.sum(0) - 1)).sum()
        for draw, (share, mean, scale) in enumerate(zip(shares, means, scales, strict=True)):
            z_sums = (x @ (belongs * scale[:, None]) - (mean * scale) @ belongs) ** 2
            of_pairs = (share @ z_sums).sum() - varies[draw].sum()
            found[at, draw] = of_pairs / n_pairs if n_pairs else 0.0
    return found


def held_out_coexpression(
    r: Float[np.ndarray, "gene gene"], modules: Int[np.ndarray, " gene"], seed: int
) -> dict[str, float]:
    """Mean r over pairs within modules, and the same of random modules of equal sizes (95 %)."""
    rng = np.random.default_rng(seed)
    random = np.array([within(r, rng.permutation(modules)) for _ in range(N_RANDOM)])
    low, high = np.percentile(random, [2.5, 97.5])
    return {
        "n_modules": int(modules.max()) + 1,
        "within": within(r, modules),
        "random": float(random.mean()),
        "random_low": float(low),
        "random_high": float(high),
    }


def within(r: Float[np.ndarray, "gene gene"], modules: Int[np.ndarray, " gene"]) -> float:
    """Mean of r over all pairs of genes that share a module; 0 where none do."""
    belongs = (modules[:, None] == np.arange(modules.max() + 1)).astype(np.float64)
    sums = np.einsum("gm,gm->m", belongs, r @ belongs) - np.diag(r) @ belongs
    sizes = belongs.sum(0)
    n_pairs = (sizes * (sizes - 1)).sum()
    return float(sums.sum() / n_pairs) if n_pairs else 0.0


def verdict_on(found: dict[str, Any]) -> str:
    """Whose modules hold better in other cells, over random ones; said plainly either way.

    A winner is named only where the interval of the difference excludes zero.
    """
    ours, theirs = found["model"], found["coexpression"]
    apart = found["model_minus_coexpression"]
    where = f"in {found['n_other_cells']:,} other cells"
    if apart["low"] > 0 or apart["high"] < 0:
        ahead = "The model's" if apart["low"] > 0 else "Co-expression's"
        said = f"{ahead} modules go together better {where}"
    else:
        said = f"The model's and co-expression's modules cannot be told apart {where}"
    return (
        f"{said}: within-module r {ours['within']:.3f} for the model (random modules "
        f"{ours['random']:.3f}) and {theirs['within']:.3f} for co-expression (random "
        f"{theirs['random']:.3f}), difference {apart['value']:+.3f}, 95 % {apart['low']:+.3f} to "
        f"{apart['high']:+.3f}; ARI {found['ari']:.2f}, NMI {found['nmi']:.2f} between the two."
    )
