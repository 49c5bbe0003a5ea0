"""Peaks x cells as a file or in memory: its tables, and its counts when they are asked for.

in   h5ad, zarr, h5mu (modality "atac"), AnnData, MuData
out  RegionFile
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Num

from scfm.data.container import reading
from scfm.data.formats import open_modality, read_frame
from scfm.data.read import CountsSource, counts_in, open_counts
from scfm.errors import InputError, LabelError, MissingFileError, UnreadableFileError

UNDERSTOOD = (
    "scfm reads .h5ad, .h5mu and zarr of peaks x cells, .npz (keys, seq, Y) and .h5 of windows "
    "(X_train, Y_train, ...)."
)
MODALITIES = ("atac", "ATAC", "chromatin", "peaks")


@dataclass(frozen=True)
class RegionFile:
    """What is known of regions and cells, counts unread.

    Attributes
    ----------
    name
        For messages: the path, or "AnnData".
    path
        None for what is in memory.
    var, obs
        Tables of the regions and of the cells.
    varm, uns
        What there is, by name; read when looked up.
    obsm
        Arrays of the cells, by name. Those of the modality "rna" are found here too, as "rna:KEY".
    open_counts
        Opens the cells x regions counts; ``layer`` names where they are.
    """

    name: str
    path: Path | None
    var: pd.DataFrame
    obs: pd.DataFrame
    varm: Mapping[str, Callable[[], Any]]
    uns: Mapping[str, Callable[[], Any]]
    obsm: Mapping[str, Callable[[], Any]]
    open_counts: Callable[..., CountsSource] = field(repr=False)

    @property
    def n_cells(self) -> int:
        return len(self.obs)

    def get_uns(self, key: str, default: Any = None) -> Any:
        """An entry of uns, or ``default``."""
        return self.uns[key]() if key in self.uns else default

    def embedding(self, key: str) -> Num[np.ndarray, "cell d"]:
        """An array of obsm, a row of NaN where the other modality has no such cell.

        Raises LabelError where there is none of this name.
        """
        found = self.obsm.get(key) or self.obsm.get(f"rna:{key}")
        if found is None:
            there = ", ".join(self.obsm) or "none"
            raise LabelError(f"{self.name} has no obsm '{key}'. There is: {there}.")
        array = np.asarray(found())
        if array.ndim != 2 or len(array) != self.n_cells:
            raise LabelError(
                f"{self.name}: obsm '{key}' is no table of its {self.n_cells:,} cells."
            )
        return array


def open_region_file(source: Any) -> RegionFile:
    """Open peaks x cells. Raises MissingFileError, UnreadableFileError, InputError."""
    if not isinstance(source, str | Path):
        return _of_memory(source)
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder (looked in {path.absolute()}).")
    with reading(str(path)):
        if path.is_dir():
            import zarr

            return _of_groups(zarr.open_group(path, mode="r"), path, partial(open_counts, path))
        if not h5py.is_hdf5(path):
            raise UnreadableFileError(f"{path}: is no file of regions. {UNDERSTOOD}")
        with h5py.File(path, "r") as file:
            if "mod" in file:
                return _of_modalities(file["mod"], path)
            return _of_groups(file, path, partial(open_counts, path))


def _of_modalities(modalities: Any, path: Path) -> RegionFile:
    name = _modality(list(modalities), str(path))
    # uns and obsm are read when asked for, when this file is closed: each opens it again
    opened = _of_groups(
        modalities[name],
        path,
        lambda **how: counts_in(open_modality(path, name), **how),
        root=f"mod/{name}",
    )
    if "rna" not in modalities:
        return opened
    rna_cells = read_frame(modalities["rna"]["obs"], f"{path}: rna obs").index
    keys = list(modalities["rna"].get("obsm", {}))
    rna = {
        f"rna:{key}": partial(
            _aligned, partial(_read_later, path, f"mod/rna/obsm/{key}"), rna_cells, opened.obs.index
        )
        for key in keys
    }
    return RegionFile(**{**vars(opened), "obsm": {**opened.obsm, **rna}})


def _of_groups(root_group: Any, path: Path, counts: Any, root: str = "") -> RegionFile:
    """The layout anndata gives h5ad and zarr; elements are read when they are looked up."""
    for table in ("obs", "var"):
        if table not in root_group:
            inside = ", ".join(list(root_group)[:5]) or "nothing"
            raise UnreadableFileError(f"{path}: holds no {table}; it holds {inside}. {UNDERSTOOD}")

    def elements(key: str) -> dict[str, Callable[[], Any]]:
        held: Any = root_group.get(key, {})
        prefix = f"{root}/{key}" if root else key
        return {name: partial(_read_later, path, f"{prefix}/{name}") for name in held}

    return RegionFile(
        name=str(path),
        path=path,
        var=read_frame(root_group["var"], f"{path}: var"),
        obs=read_frame(root_group["obs"], f"{path}: obs"),
        varm=elements("varm"),
        uns=elements("uns"),
        obsm=elements("obsm"),
        open_counts=counts,
    )


def _of_memory(data: Any) -> RegionFile:
    if hasattr(data, "mod"):
        name = _modality(list(data.mod), "MuData")
        opened = _of_memory(data.mod[name])
        if "rna" not in data.mod:
            return opened
        rna = data.mod["rna"]
        more = {
            f"rna:{key}": partial(
                _aligned, partial(_same, rna.obsm[key]), rna.obs.index, opened.obs.index
            )
            for key in rna.obsm
        }
        return RegionFile(**{**vars(opened), "obsm": {**opened.obsm, **more}})
    if not (hasattr(data, "obs") and hasattr(data, "varm")):
        raise InputError(f"Expected a path, an AnnData or a MuData, got {type(data).__name__}.")
    varm, uns, obsm = (
        {key: partial(_same, held[key]) for key in held}
        for held in (data.varm, data.uns, data.obsm)
    )
    return RegionFile(
        name="AnnData",
        path=None,
        var=data.var,
        obs=data.obs,
        varm=varm,
        uns=uns,
        obsm=obsm,
        open_counts=partial(open_counts, data),
    )


def _modality(names: list[str], where: str) -> str:
    found = [name for name in MODALITIES if name in names]
    if not found:
        raise InputError(
            f"{where}: has no modality {' or '.join(MODALITIES[:2])}; it has {', '.join(names)}. "
            "Rename the one of chromatin accessibility to 'atac'."
        )
    return found[0]


def _read_later(path: Path, key: str) -> Any:
    from anndata.io import read_elem

    with reading(str(path)):
        if path.is_dir():
            import zarr

            return read_elem(zarr.open_group(path, mode="r")[key])
        with h5py.File(path, "r") as file:
            stored: Any = file[key]
            return read_elem(stored)


def _same(value: Any) -> Any:
    return value


def _aligned(read: Callable[[], Any], theirs: pd.Index, ours: pd.Index) -> np.ndarray:
    """Rows of another modality in the order of our cells, NaN where it lacks one."""
    array = np.asarray(read(), dtype=np.float32)
    place = theirs.get_indexer(ours)
    out = np.full((len(ours), *array.shape[1:]), np.nan, dtype=np.float32)
    out[place >= 0] = array[place[place >= 0]]
    return out
