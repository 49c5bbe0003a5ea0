"""A path or an AnnData -> Container. What a file is, its content decides, not its name.

in   h5ad, zarr (folder or .zarr.zip), annbatch collection, 10x h5, 10x mtx folder, loom; address of
     a SOMA database; AnnData, backed or not
out  Container
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import h5py
import pandas as pd

from scfm.data.annbatch import is_collection, members_of, stack_containers
from scfm.data.census import open_soma
from scfm.data.container import DAMAGE, Candidate, Container, reading
from scfm.data.loom import is_loom, open_loom
from scfm.data.matrices import as_matrix
from scfm.data.soma_address import is_address
from scfm.data.tenx import find_mtx, is_tenx_h5, open_mtx, open_tenx_h5
from scfm.errors import InputError, MissingFileError, ScfmWarning, UnreadableFileError

UNDERSTOOD = (
    "scfm reads .h5ad, .zarr, .zarr.zip, 10x .h5, 10x mtx folders (matrix.mtx, features.tsv or "
    "genes.tsv, barcodes.tsv; gzipped or not), .loom, annbatch collections, soma: and census:."
)


def open_container(source: Any) -> Container:
    """Open a path or an AnnData.

    Raises MissingFileError, UnreadableFileError.
    """
    if not isinstance(source, str | Path):
        return open_anndata(source)
    if is_address(source):
        return open_soma(source)
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder (looked in {path.absolute()}).")
    with reading(str(path)):
        if path.is_dir():
            return _open_folder(path)
        if h5py.is_hdf5(path):
            return _open_hdf5(path)
        if path.name.endswith((".mtx", ".mtx.gz")):
            return open_mtx(path, path)
        if _starts_with(path, b"PK"):
            return _open_zarr(path)
    raise UnreadableFileError(_foreign(path))


def _open_folder(path: Path) -> Container:
    if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zmetadata")):
        return _open_zarr(path)
    matrix_file = find_mtx(path)
    if matrix_file:
        return open_mtx(matrix_file, path)
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise UnreadableFileError(
        f"{path}: is neither a zarr store nor a 10x mtx folder; it holds {inside}. {UNDERSTOOD}"
    )


def _open_hdf5(path: Path) -> Container:
    file = h5py.File(path, "r")
    try:
        if is_tenx_h5(file):
            return open_tenx_h5(file, path)
        if is_loom(file):
            return open_loom(file, path)
        if "obs" in file and "var" in file:
            if isinstance(file["obs"], h5py.Dataset):  # written before anndata 0.7
                file.close()
                return _open_old_h5ad(path)
            return open_groups(file, path, "h5ad", file.close)
        inside = ", ".join(list(file)[:5]) or "nothing"
        raise UnreadableFileError(
            f"{path}: is an HDF5 file, but not one of single-cell counts; it holds {inside}. "
            f"{UNDERSTOOD}"
        )
    except BaseException:
        file.close()
        raise


def open_modality(path: str | Path, modality: str) -> Container:
    """One modality of an h5mu file, which has the layout of an h5ad of its own.

    Raises MissingFileError, UnreadableFileError.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder (looked in {path.absolute()}).")
    with reading(str(path)):
        file = h5py.File(path, "r")
        modalities: Any = file.get("mod", {})
        if modality not in modalities:
            inside = ", ".join(modalities) or "none"
            file.close()
            raise UnreadableFileError(f"{path}: has no modality '{modality}'; it has {inside}.")
        return open_groups(modalities[modality], path, "h5mu", file.close)


def _open_old_h5ad(path: Path) -> Container:
    """The layout of anndata 0.6, which only anndata itself still knows; read into memory."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all it can say is that the file is old
        container = open_anndata(anndata.read_h5ad(path))
    return Container(
        str(path), "h5ad of anndata < 0.7", path, container.candidates, container.read_obs
    )


def _open_zarr(path: Path) -> Container:
    import zarr
    from zarr.storage import ZipStore

    if path.is_dir():
        store, close = path, lambda: None
    else:
        store = ZipStore(path, mode="r")
        close = store.close
    root = zarr.open_group(store, mode="r")
    if is_collection(root):
        members = [open_groups(root[key], path / key, "zarr", close) for key in members_of(root)]
        return stack_containers(members, path, close)
    if "obs" not in root or "var" not in root:
        close()
        inside = ", ".join(sorted(root.keys())[:5]) or "nothing"
        raise UnreadableFileError(
            f"{path}: is a zarr store, but not of an AnnData; it holds {inside}. {UNDERSTOOD}"
        )
    return open_groups(root, path, "zarr", close)


def open_groups(root: Any, path: Path, kind: str, close: Any) -> Container:
    """The layout anndata gives h5ad and zarr alike."""
    name = str(path)
    var = partial(read_frame, root["var"], f"{name}: var")
    stored: list[tuple[str, str, Any, Any]] = []
    if _is_there(root, "X"):
        stored.append(("X", "X", root["X"], var))
    layers = {key: root["layers"][key] for key in root["layers"]} if "layers" in root else {}
    if "counts" in layers:
        stored.append(("layers['counts']", "counts", layers.pop("counts"), var))
    if _is_there(root, "raw") and _is_there(root["raw"], "X"):
        raw = root["raw"]
        raw_var = partial(read_frame, raw["var"], f"{name}: raw.var")
        stored.append(("raw.X", "raw", raw["X"], raw_var))
    stored.extend((f"layers['{key}']", key, layer, var) for key, layer in layers.items())
    return Container(
        name=name,
        format=kind,
        path=path,
        candidates=[
            Candidate(label, key, partial(as_matrix, matrix), read)
            for label, key, matrix, read in stored
        ],
        read_obs=partial(read_frame, root["obs"], f"{name}: obs"),
        close=close,
    )


def open_anndata(adata: Any) -> Container:
    """An AnnData object; its matrices are used where they lie, in memory or on disk, uncopied.

    A view of a backed AnnData is read into memory, as AnnData itself does.
    """
    if not (hasattr(adata, "obs") and hasattr(adata, "var") and hasattr(adata, "layers")):
        raise InputError(f"Expected a path or an AnnData, got {type(adata).__name__}. {UNDERSTOOD}")
    candidates = []
    if adata.X is not None:
        candidates.append(_of_anndata("X", "X", adata.X, adata.var))
    layers = dict(adata.layers)
    if "counts" in layers:
        counts = layers.pop("counts")
        candidates.append(_of_anndata("layers['counts']", "counts", counts, adata.var))
    if adata.raw is not None:
        candidates.append(_of_anndata("raw.X", "raw", adata.raw.X, adata.raw.var))
    candidates += [
        _of_anndata(f"layers['{key}']", key, layer, adata.var) for key, layer in layers.items()
    ]
    return Container("AnnData", "AnnData", None, candidates, lambda: adata.obs)


def _of_anndata(label: str, key: str, matrix: Any, var: pd.DataFrame) -> Candidate:
    return Candidate(label, key, partial(as_matrix, matrix), lambda: var)


def read_frame(group: Any, name: str) -> pd.DataFrame:
    """A table as anndata stores it. A column that cannot be read is left out, and said."""
    from anndata.io import read_elem

    with warnings.catch_warnings():
        # Files of older anndata versions are as good as new ones; the user cannot mend them.
        warnings.filterwarnings("ignore", message=".*without encoding metadata.*")
        try:
            frame = cast(pd.DataFrame, read_elem(group))
            frame.columns = frame.columns.astype(object)  # integers where there is none
            return frame
        except _frame_damage():
            frame, lost = _column_by_column(group)
    warnings.warn(f"{name}: cannot read {', '.join(lost)}; left out.", ScfmWarning, stacklevel=2)
    return frame


def _column_by_column(group: Any) -> tuple[pd.DataFrame, list[str]]:
    from anndata.io import read_elem

    index = pd.Index(read_elem(group[group.attrs["_index"]]))
    columns, lost = {}, []
    for key in group.attrs["column-order"]:
        try:
            columns[key] = pd.Series(read_elem(group[key]), index=range(len(index))).array
        except _frame_damage():
            lost.append(repr(key))
    return pd.DataFrame(columns, index=index), lost


def _frame_damage() -> tuple[type[Exception], ...]:
    from anndata._io.specs.registry import IORegistryError  # anndata exports it nowhere else

    return (*DAMAGE, AttributeError, TypeError, IORegistryError)


def _is_there(root: Any, key: str) -> bool:
    """Whether an element is stored: anndata writes None as an element of its own kind."""
    return key in root and root[key].attrs.get("encoding-type") != "null"


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _foreign(path: Path) -> str:
    """What a file is that is nothing we know, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(40)
    if not start:
        found = "is an empty file"
    elif start.startswith(b"\x1f\x8b"):
        found = f"is a gzip archive; unpack it first: gunzip {path.name}"
    elif start.startswith(b"\x89HDF"):
        found = "is a damaged HDF5 file"
    elif all(byte in b"\t\r\n" or byte >= 32 for byte in start):
        shown = start.decode("utf-8", errors="replace").splitlines()[0]
        found = f"is not HDF5 but text; it begins with {shown!r}"
    else:
        found = "is no file of a format scfm understands"
    return f"{path}: {found}. {UNDERSTOOD}"
