"""Peaks x cells of two types on a toy genome: a TF binds its motif where the peak is open."""

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scfm.model.dna import BindingModel
from scfm.model.dna_config import BindingConfig
from tests.toys_regions import BASES, planted_codes

LENGTH = 60
CHROMS = ("chr1", "chr2", "chr3", "chr4")


def toy_peaks(rng, n=240, n_cells=24, folder=None):
    """An AnnData with sequences and labels; with ``folder`` also genome.fa, and its path."""
    codes, motif = planted_codes(rng, n, LENGTH)
    is_open = rng.random((2, n)) < 0.5
    types = np.repeat(["B", "T"], n_cells // 2)
    rate = np.where(is_open[(types == "T").astype(int)], 0.8, 0.05)
    counts = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
    chrom = np.array([CHROMS[i * len(CHROMS) // n] for i in range(n)])
    within = np.concatenate([np.arange((chrom == name).sum()) for name in CHROMS])
    start = 100 + within * 2 * LENGTH
    sequences = ["".join(BASES[c] for c in row) for row in codes]
    var = pd.DataFrame(
        {"chrom": chrom, "start": start, "end": start + LENGTH, "sequence": sequences},
        index=[f"{c}:{s}-{s + LENGTH}" for c, s in zip(chrom, start, strict=True)],
    )
    obs = pd.DataFrame({"cell_type": types}, index=[f"c{i}" for i in range(n_cells)])
    adata = ad.AnnData(counts, obs=obs, var=var)
    for at, name in enumerate(("B", "T")):
        adata.varm[f"chip_{name}"] = (motif * is_open[at][:, None]).astype(np.int8)
        adata.uns[f"chip_tfs_{name}"] = ["AP1", "SP1"]
    adata.uns["genome"], adata.uns["counting"] = "toy", "fragments"
    if folder is None:
        return adata
    with (folder / "genome.fa").open("w") as file:
        for name in CHROMS:
            here = np.flatnonzero(chrom == name)
            letters = rng.choice(list(BASES), size=int(start[here].max()) + 300)
            for row in here:
                letters[start[row] : start[row] + LENGTH] = list(sequences[row])
            file.write(f">{name}\n{''.join(letters)}\n")
    return adata, folder / "genome.fa"


def toy_binding(n_tracks=0, tasks=("AP1", "SP1"), **more) -> BindingModel:
    """A small model with random weights."""
    torch.manual_seed(0)
    config = BindingConfig(
        length=LENGTH,
        n_tracks=n_tracks,
        first_filters=8,
        track_filters=4,
        d_model=8,
        n_blocks=1,
        d_hidden=8,
        **more,
    )
    return BindingModel(config, tasks).eval()
