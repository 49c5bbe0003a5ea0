"""Cells of a file -> groups with a signal, an embedding, and the cell type their labels are of.

in   RegionFile, an obs column (or "obs_names": every row a group)
out  GroupSignal; the cell type of each group among those with ChIP
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfm.data.counts import CellSource
from scfm.data.genome_regions import GroupSignal
from scfm.data.metacells import cell_depth, log_rate, pool_counts
from scfm.data.region_file import RegionFile
from scfm.data.split import group_codes
from scfm.errors import CountsError, LabelError, ScfmWarning

EACH_ROW = "obs_names"
SHORTEST_NAME = 2  # letters from which on a name's beginning tells anything: GM, H1
LOOKED_AT = 4096  # cells, until a count above 1 is found


def group_signal(
    file: RegionFile,
    group_key: str,
    kept: np.ndarray,
    width: np.ndarray,
    *,
    counting: str | None = None,
    cell_key: str | None = None,
    layer: str | None = None,
    binarised: bool = False,
) -> tuple[GroupSignal, pd.Series]:
    """Signal of the groups at the ``kept`` regions, and the group of each cell (NaN: none).

    Raises LabelError for a missing column, CountsError for what is no counts, or is binarised
    without ``binarised`` saying so; with EACH_ROW every row of the file is a group.
    """
    if file.n_cells == 0:
        raise LabelError(
            f"{file.name} has regions but no cells, so no groups. Leave out the group column, or "
            "count a fragments file over these regions: scfm tfbind count."
        )
    groups, names, codes = _groups(file, group_key)
    is_in = codes >= 0
    members = sp.csr_matrix(
        (np.ones(is_in.sum()), (codes[is_in], np.flatnonzero(is_in))),
        shape=(len(names), file.n_cells),
    )
    with file.open_counts(layer=layer, keep_empty=True) as source:
        if not binarised:
            refuse_binarised(source)
            warn_if_unsaid(counting, source)
        if group_key == EACH_ROW:
            rate, depth = _rate_of_rows(source, kept, width)
        else:
            sums = pool_counts(members, source)
            depth = cell_depth(sums)
            rate = sp.csr_matrix(log_rate(sums, width, depth)[:, kept])
    empty = [name for name, total in zip(names, depth, strict=True) if total == 0]
    if empty:
        raise CountsError(
            f"{file.name}: {len(empty)} of {len(names)} groups have no count at all: "
            f"{', '.join(empty[:5])}. Drop their cells."
        )
    embedding, has = (None, None) if cell_key is None else _mean(file.embedding(cell_key), members)
    signal = GroupSignal(
        names=names,
        log_rate=rate,
        depth=depth,
        n_cells=np.diff(members.indptr),
        embedding=embedding,
        has_embedding=has,
    )
    return signal, groups


def _rate_of_rows(
    source: CellSource, kept: np.ndarray, width: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Every row's signal, and its counts; rows may be many, so no count is held twice."""
    rates, depths = [], []
    for rows in source.chunks(LOOKED_AT):
        counts = sp.csr_matrix(
            (rows.counts, rows.indices, rows.indptr), shape=(rows.n_cells, len(width))
        )
        depths.append(cell_depth(counts))
        rate = log_rate(counts, width, depths[-1])
        rates.append(rate if len(kept) == len(width) else rate[:, kept])
    return sp.csr_matrix(sp.vstack(rates, format="csr")), np.concatenate(depths)


def _groups(file: RegionFile, key: str) -> tuple[pd.Series, tuple[str, ...], np.ndarray]:
    if key == EACH_ROW:
        names = tuple(map(str, file.obs.index))
        return pd.Series(names), names, np.arange(len(names))
    codes, names = group_codes(file.obs, key, file.name)
    if not len(names):
        raise LabelError(f"{file.name}: no cell has a value in obs '{key}'.")
    values = np.array([*names, None], dtype=object)[codes]
    return pd.Series(values), tuple(names), codes


def _mean(embedding: np.ndarray, members: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the cells that have an embedding; groups without one are 0 and said so."""
    is_there = np.asarray(np.isfinite(embedding).all(axis=1))
    n_cells = members @ is_there.astype(np.float64)
    sums = members @ np.where(is_there[:, None], embedding, 0)
    return (sums / np.maximum(n_cells, 1)[:, None]).astype(np.float32), n_cells > 0


def refuse_binarised(source: CellSource) -> None:
    """Refuse a matrix of 0 and 1 where counts are asked for (CountsError)."""
    n_cells = 0
    for rows in source.chunks(LOOKED_AT):
        if (rows.counts > 1).any():
            return
        n_cells += rows.n_cells
    if n_cells > 1:
        raise CountsError(
            f"{source.name}: {source.counts_from} holds only 0 and 1: it is binarised, and depth "
            "cannot be told from it. Give the counts, or say that it is so: --binarised (then the "
            "signal is that of the number of cells with the peak open)."
        )


def warn_if_unsaid(counting: str | None, source: CellSource) -> None:
    """Say what counts look like where the file does not say what they are (ScfmWarning).

    Most fragments have both ends in the peak they touch, so counts of ends are mostly even: then
    twos outnumber ones, which counts of fragments never show.
    """
    if counting is not None:
        return
    rows = next(iter(source.chunks(LOOKED_AT)))
    n_ones, n_twos = int((rows.counts == 1).sum()), int((rows.counts == 2).sum())
    looks = "insertions" if n_twos > n_ones else "fragments"
    warnings.warn(
        f"{source.name} does not say what it counts; by its {n_ones:,} ones and {n_twos:,} twos, "
        f"{looks}. Say it in the file: adata.uns['counting'] = '{looks}'.",
        ScfmWarning,
        stacklevel=3,
    )


def cell_types_of(
    names: Sequence[str],
    chip: Sequence[str],
    given: Mapping[str, str] | None,
    *,
    source: str,
) -> list[str | None]:
    """The cell type of ``chip`` each group's labels are of; None where it has none.

    As ``given``; else the one of the same name; else, where only one begins with the group's name
    or the group's with its, that one, which is said. Raises LabelError for a given cell type that
    has no ChIP.
    """
    given = given or {}
    strangers = [cell for cell in given.values() if cell not in chip]
    if strangers:
        raise LabelError(
            f"{source}: has no ChIP of {', '.join(sorted(set(strangers)))}; it has that of "
            f"{', '.join(chip) or 'none'}."
        )
    found = {name: given.get(name) or _same_or_begun(name, chip) for name in dict.fromkeys(names)}
    guessed = {n: c for n, c in found.items() if c is not None and c != n and n not in given}
    if guessed:
        pairs = ", ".join(f"{name} = {cell}" for name, cell in guessed.items())
        warnings.warn(
            f"{source}: labels of groups are taken from the ChIP whose name they begin: {pairs}. "
            "Say it yourself where that is wrong: --chip GROUP=CELL.",
            ScfmWarning,
            stacklevel=3,
        )
    return [found[name] for name in names]


def _same_or_begun(name: str, chip: Sequence[str]) -> str | None:
    if name in chip:
        return name
    if len(name) < SHORTEST_NAME:
        return None
    begun = [cell for cell in chip if cell.lower().startswith(name.lower())]
    begun += [cell for cell in chip if name.lower().startswith(cell.lower())]
    return begun[0] if len(begun) == 1 else None
