"""Peaks x cells -> peaks x metacells, as a file.

in   h5ad, h5mu or zarr that holds the contract of scfm.data.regions
out  h5ad of the same regions; a row is the sum of a metacell's cells
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scfm.data.lsi import lsi
from scfm.data.metacells import Metacells, pooled
from scfm.data.pooled_source import PooledSource
from scfm.data.read import CountsSource
from scfm.data.region_file import RegionFile, open_region_file
from scfm.data.region_groups import refuse_binarised, warn_if_unsaid
from scfm.data.regions import read_regions
from scfm.data.split import missing_column
from scfm.data.write import check_writable, put, write_h5ad_from
from scfm.errors import ConfigError

LSI = "X_lsi"
CHUNK_CELLS = 8192


@dataclass(frozen=True)
class Aggregated:
    """What was pooled, and how. Counts and cells are medians.

    Attributes
    ----------
    by
        The obsm neighbours were looked for in, or the obs column whose groups were pooled.
    k
        Neighbours looked at; None for groups.
    purity
        Share of a cell's partners of its own group; None where no groups were named.
    """

    out: str
    n_cells: int
    n_metacells: int
    by: str
    k: int | None
    purity: float | None
    cells_per_metacell: float
    counts_per_cell: float
    counts_per_metacell: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        k = "" if self.k is None else f", k = {self.k}"
        pure = "" if self.purity is None else f"; {self.purity:.0%} of partners are of one's own"
        return (
            f"{self.n_metacells:,} metacells of {self.n_cells:,} cells by {self.by}{k}: "
            f"{self.cells_per_metacell:,.0f} cells with {self.counts_per_metacell:,.0f} counts, "
            f"where a cell has {self.counts_per_cell:,.0f} (medians){pure}"
        )


def aggregate_file(
    source: Any,
    out: str | Path,
    *,
    by: str | None = None,
    use_rep: str | None = None,
    against: str | None = None,
    target_depth: float = 500_000,
    n_metacells: int | None = None,
    layer: str | None = None,
    counting: str | None = None,
    binarised: bool = False,
    seed: int = 0,
) -> Aggregated:
    """Pool cells into metacells and write peaks x metacells, out of core.

    Parameters
    ----------
    by
        obs column whose groups are pooled. Without it every cell is pooled with its mutual nearest
        neighbours.
    use_rep
        obsm the neighbours are looked for in; by itself "X_lsi" where there is one, else an LSI of
        the counts, which is stored.
    against
        obs column neighbours are held against: how pure they are, and a warning where more are
        taken than half of the smallest group has. It changes no metacell.
    target_depth
        Counts the median metacell is to have.
    n_metacells
        Keep that many, drawn at random, each with all its cells. By itself one a cell.

    X are sums, uns["metacells"] says which cells went into each, var, varm and uns are the file's.
    Raises ConfigError, and what reading the counts, the embedding and the groups raises.
    """
    if by is not None and (use_rep or against):
        raise ConfigError(
            "Groups are pooled whole: an embedding and a column to hold against have no part in "
            "it. Give --by alone, or --use-rep and --against."
        )
    check_writable(out)
    file = open_region_file(source)
    counting = read_regions(file, counting=counting).counting  # the contract before any work
    with file.open_counts(layer=layer, keep_empty=by is not None) as counts:
        if not binarised:
            refuse_binarised(counts)
            warn_if_unsaid(counting, counts)
        depth = _depth(counts)
        rep, embedding = (None, None) if by else _embedding(file, counts, use_rep, seed)
        found = pooled(
            depth,
            embedding=embedding,
            groups=_column(file, by or against),
            names=[str(name) for name in file.obs.index],
            target_depth=target_depth,
        )
        rows = np.arange(len(found.names))
        if n_metacells is not None and n_metacells < len(rows):
            rng = np.random.default_rng(seed)
            rows = np.sort(rng.choice(len(rows), n_metacells, replace=False))
            found = found.take(rows)
        how = {"by": str(by or rep), "target_depth": target_depth}
        _write(file, counts, found, rows, by, rep, embedding, how, counting, out)
    return Aggregated(
        out=str(out),
        n_cells=file.n_cells,
        n_metacells=len(found.names),
        by=str(by or rep),
        k=found.k,
        purity=found.purity,
        cells_per_metacell=float(np.median(found.n_cells)),
        counts_per_cell=float(np.median(depth)),
        counts_per_metacell=float(np.median(found.depth)),
    )


def _depth(counts: CountsSource) -> np.ndarray:
    """Counts of each cell."""
    parts = []
    for rows in counts.chunks(CHUNK_CELLS):
        row = np.repeat(np.arange(rows.n_cells), np.diff(rows.indptr))
        parts.append(np.bincount(row, rows.counts, rows.n_cells))
    return np.concatenate(parts)


def _embedding(
    file: RegionFile, counts: CountsSource, use_rep: str | None, seed: int
) -> tuple[str, np.ndarray]:
    """The name of the embedding and the embedding."""
    if use_rep is None and LSI not in file.obsm:
        return LSI, lsi(counts, seed=seed)
    use_rep = use_rep or LSI
    return use_rep, file.embedding(use_rep)


def _column(file: RegionFile, key: str | None) -> np.ndarray | None:
    if key is None:
        return None
    if key not in file.obs.columns:
        raise missing_column(key, file.name, [str(column) for column in file.obs.columns])
    return file.obs[key].astype(object).to_numpy()


def _write(
    file: RegionFile,
    counts: CountsSource,
    found: Metacells,
    rows: np.ndarray,
    by: str | None,
    rep: str | None,
    embedding: np.ndarray | None,
    how: dict[str, Any],
    counting: str | None,
    out: str | Path,
) -> None:
    obs = _group_obs(file, found, by) if by else file.obs.iloc[rows].copy()
    obs["n_pooled"] = found.n_cells
    obs["pooled_counts"] = found.depth
    how |= {"cells": file.obs.index.to_numpy(dtype=str), "weights": found.weights}
    how |= {} if found.k is None else {"k": found.k}

    def write(target: Any) -> None:
        for key, read in file.varm.items():
            put(target, f"varm/{key}", read())
        for key, read in file.uns.items():
            put(target, f"uns/{key}", read())
        put(target, "uns/metacells", how)
        if counting is not None:
            put(target, "uns/counting", counting)
        if embedding is not None:
            put(target, f"obsm/{rep}", embedding[rows])

    write_h5ad_from(PooledSource(counts, found, obs), out, write)


def _group_obs(file: RegionFile, found: Metacells, by: str) -> pd.DataFrame:
    """One row a group: the group, and the columns in which all its cells agree."""
    values: Any = file.obs.astype(object).groupby(file.obs[by].astype(str).to_numpy())
    agree = (values.nunique() == 1).all()
    same = values.first().loc[list(found.names), agree[agree].index.union([by])]
    return pd.DataFrame(same).infer_objects().astype({by: "category"})
