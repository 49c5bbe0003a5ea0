"""The corpus of the loader's benchmark: four h5ad files, sorted by donor and type.

200,000 cells x 20,000 genes, 40 types x 12 states, 40 donors, 8 tissues; log-normal abundances,
about 5,000 UMI and 1,800 genes a cell. Genes have no order and no programmes beyond type and state,
so its compression is indicative only. Made once in a folder (3 GB), then reused.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from numba import njit

N_CELLS, N_GENES, N_FILES = 200_000, 20_000, 4
N_TYPES, N_STATES, N_DONORS, N_TISSUES = 40, 12, 40, 8
CHUNK = 2_000  # cells made at a time


def make_corpus(folder: Path, n_cells: int = N_CELLS, seed: int = 7) -> list[Path]:
    """The files, made where they are not there yet."""
    paths = [folder / f"corpus_{n_cells}_{k}.h5ad" for k in range(N_FILES)]
    folder.mkdir(parents=True, exist_ok=True)
    if all(path.exists() for path in paths):
        return paths
    rng = np.random.default_rng(seed)
    profiles = Profiles(rng)
    for number, path in enumerate(paths):
        temporary = path.with_suffix(".part")
        _write_file(temporary, number, n_cells // N_FILES, profiles, rng)
        temporary.rename(path)
    return paths


class Profiles:
    """Abundances of each type in each state, as alias tables (Walker 1974) to draw genes from."""

    def __init__(self, rng: np.random.Generator) -> None:
        base = rng.lognormal(0, 2.27, N_GENES)
        self.share = np.empty((N_TYPES * N_STATES, N_GENES))
        self.alias = np.empty((N_TYPES * N_STATES, N_GENES), np.int32)
        for type_ in range(N_TYPES):
            of_type = base * rng.gamma(2.0, 0.5, N_GENES)
            for state in range(N_STATES):
                abundance = of_type * rng.gamma(4.0, 0.25, N_GENES)
                row = type_ * N_STATES + state
                _alias_table(abundance / abundance.sum(), self.share[row], self.alias[row])


def _write_file(
    path: Path, number: int, n_cells: int, profiles: Profiles, rng: np.random.Generator
) -> None:
    donor = rng.integers(0, N_DONORS // N_FILES, n_cells) + number * (N_DONORS // N_FILES)
    type_ = rng.integers(0, N_TYPES, n_cells)
    order = np.lexsort((type_, donor))
    donor, type_ = donor[order], type_[order]
    profile = type_ * N_STATES + rng.integers(0, N_STATES, n_cells)
    depth = np.minimum(5_000 * rng.lognormal(0, 0.4, n_cells), 60_000).astype(np.int64)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(type_, [f"type {i}" for i in range(N_TYPES)]),
            "donor_id": pd.Categorical.from_codes(donor, [f"donor {i}" for i in range(N_DONORS)]),
            "tissue": pd.Categorical.from_codes(
                donor % N_TISSUES, [f"tissue {i}" for i in range(N_TISSUES)]
            ),
        },
        index=pd.Index([f"cell{number}_{i}" for i in range(n_cells)]),
    )
    var = pd.DataFrame(index=pd.Index(_gene_names()))
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", obs)
        write_elem(file, "var", var)
        for key in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, key, {})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([n_cells, N_GENES])
        for key, dtype in (("data", np.float32), ("indices", np.int32)):
            group.create_dataset(key, (0,), dtype, maxshape=(None,), chunks=(2**16,))
        indptr = [np.zeros(1, np.int64)]
        for first in range(0, n_cells, CHUNK):
            part = slice(first, first + CHUNK)
            lengths, columns, counts = _draw(
                profiles.share, profiles.alias, profile[part], depth[part], int(rng.integers(2**31))
            )
            for key, values in (("data", counts), ("indices", columns)):
                stored: Any = group[key]
                n = len(stored)
                stored.resize((n + len(values),))
                stored[n:] = values
            indptr.append(indptr[-1][-1] + np.cumsum(lengths))
        group.create_dataset("indptr", data=np.concatenate(indptr))


def _gene_names() -> list[str]:
    """Real symbols where there are as many, so that genes match; then invented ones."""
    from scfm.tokens.vocab import GeneVocab

    symbols = list(GeneVocab.human().symbols)
    return [*symbols, *(f"novel{i}" for i in range(N_GENES))][:N_GENES]


@njit
def _alias_table(p, share, alias):
    n = len(p)
    scaled = p * n
    small, large = np.empty(n, np.int64), np.empty(n, np.int64)
    n_small = n_large = 0
    for i in range(n):
        if scaled[i] < 1:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    share[:], alias[:] = 1.0, np.arange(n)
    while n_small and n_large:
        n_small -= 1
        s, g = small[n_small], large[n_large - 1]
        share[s], alias[s] = scaled[s], g
        scaled[g] -= 1 - scaled[s]
        if scaled[g] < 1:
            n_large -= 1
            small[n_small] = g
            n_small += 1


@njit
def _draw(share, alias, profile, depth, seed):
    np.random.seed(seed)  # noqa: NPY002  (numba's own generator)
    n_genes = share.shape[1]
    counts = np.zeros(n_genes, np.int32)
    room = depth.sum()
    columns, values = np.empty(room, np.int32), np.empty(room, np.float32)
    lengths, at = np.zeros(len(profile), np.int64), 0
    for i in range(len(profile)):
        p = profile[i]
        for _ in range(depth[i]):
            gene = int(np.random.random() * n_genes)  # noqa: NPY002
            if np.random.random() >= share[p, gene]:  # noqa: NPY002
                gene = alias[p, gene]
            counts[gene] += 1
        start = at
        for gene in range(n_genes):
            if counts[gene]:
                columns[at], values[at] = gene, counts[gene]
                at += 1
                counts[gene] = 0
        lengths[i] = at - start
    return lengths, columns[:at], values[:at]
