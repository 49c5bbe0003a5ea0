"""Peaks x cells as the contract has them, small."""

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def toy_peaks(rng: np.random.Generator, *, n_cells: int = 12, n_peaks: int = 30) -> ad.AnnData:
    """Peaks of 20 bases, every 40, on chr1 and chr2; cells of types A and B; ChIP of both."""
    first = n_peaks // 2
    chrom = np.array(["chr1"] * first + ["chr2"] * (n_peaks - first))
    start = np.concatenate([40 * np.arange(first), 40 * np.arange(n_peaks - first)]) + 10
    var = pd.DataFrame({"chrom": chrom, "start": start, "end": start + 20})
    var.index = [f"{c}:{s}-{s + 20}" for c, s in zip(chrom, start, strict=True)]
    kind = np.array(["A", "B"] * n_cells)[:n_cells]
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(kind)}, index=[f"cell{i}" for i in range(n_cells)]
    )
    counts = sp.csr_matrix(rng.poisson(1.5, (n_cells, n_peaks)).astype(np.float32))
    labels: dict[str, Any] = {
        "chip_A": rng.integers(-1, 2, (n_peaks, 2)).astype(np.int8),
        "chip_B": rng.integers(-1, 2, (n_peaks, 3)).astype(np.int8),
    }
    return ad.AnnData(
        X=counts,
        obs=obs,
        var=var,
        varm=labels,
        uns={
            "genome": "toy1",
            "counting": "insertions",
            "chip_tfs_A": np.array(["CTCF", "MAX"]),
            "chip_tfs_B": np.array(["CTCF", "SPI1", "YY1"]),
        },
        obsm={"X_lsi": rng.normal(size=(n_cells, 4)).astype(np.float32)},
    )
