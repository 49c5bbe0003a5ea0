"""Results -> files, whole or not at all.

in   a path, and code that writes; for annotated copies a source of cells and what to add
out  the complete file under its name, or an OutputError and what was there before, untouched

Everything is written under a temporary name in the same folder and renamed when complete.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import h5py
import numpy as np
import pandas as pd

from scfm.data.counts import CellSource
from scfm.data.unwritable import explained, nearest, real
from scfm.errors import InputError, MissingFileError, OutputError, ScfmWarning

if TYPE_CHECKING:
    from anndata import AnnData

CHUNK_CELLS = 2048
STORAGE_CHUNK = (
    2**16
)  # values in one compressed chunk: 256 KB, so that a few cells are a cheap read


def check_writable(out: str | Path) -> None:
    """Refuse early what would fail hours later. Writes and removes an empty file beside ``out``.

    Raises OutputError: no such folder, no permission, ``out`` is a folder, no space.
    """
    out = Path(out)
    with explained(out):
        if out.is_dir():
            raise OutputError(f"Cannot write {out}: it is a folder. Name a file in it: {out}/NAME.")
        probe = _beside(out)
        probe.touch(exist_ok=False)
        probe.unlink()


def make_folder(out: str | Path) -> Path:
    """Make a folder with its parents and see that files can be written in it.

    Raises OutputError: ``out`` is a file; no permission, no space.
    """
    out = Path(out)
    with explained(out):
        _refuse_file(out)
        out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "probe")
    return out


def check_new_folder(out: str | Path) -> None:
    """Refuse early a folder that is there already or could not be made. Makes no folder.

    Raises OutputError: ``out`` exists; what would hold it is no folder; no permission, no space.
    """
    out = Path(out)
    with explained(out):
        if out.exists():
            raise OutputError(f"{out} exists already. Name a new folder: --out NAME.")
    place = nearest(real(out).parent)
    with explained(out, place):
        probe = _beside(place / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()


def set_usual_mode(path: Path) -> None:
    """Give a file the mode of any new file in its folder; some libraries write theirs as 0600."""
    fresh = _beside(path)
    fresh.touch(exist_ok=False)  # asking for the umask means changing it, for all threads
    shutil.copymode(fresh, path)
    fresh.unlink()


@contextmanager
def atomic_path(out: str | Path) -> Iterator[Path]:
    """A temporary path to write to; renamed to ``out`` at the end, removed on any failure.

    It ends in the suffixes of ``out``. A symbolic link is followed: its target is replaced.
    HDF5 must be written through ``hdf5_file``: the library crashes at exit after a full disk.

    Raises OutputError: no space, no permission, no such folder.
    """
    out = Path(out)
    check_writable(out)
    temporary = _beside(out)
    try:
        with explained(out):
            yield temporary
            if out.exists():
                shutil.copymode(out, temporary)
            _to_disk(temporary)
            temporary.replace(real(out))
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(out: str | Path, *, marker: str | None = None) -> Iterator[Path]:
    """A temporary folder to fill; renamed to ``out`` at the end, removed on any failure.

    Parents are made. ``out`` may be absent or empty; a folder that holds something is replaced
    only if the file ``marker`` is in it, which says that it is an earlier result and not, say, the
    user's home.

    Raises OutputError: ``out`` holds other things or is a file; no space, no permission.
    """
    out = Path(out)
    with explained(out):
        _refuse_occupied(out, marker)
        real(out).parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(out)
        temporary.mkdir()
        try:
            yield temporary
            _swap(temporary, real(out))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_occupied(out: Path, marker: str | None) -> None:
    if not out.exists():
        return
    _refuse_file(out)
    if any(out.iterdir()) and not (marker and (out / marker).is_file()):
        raise OutputError(
            f"Cannot write to {out}: it holds files that are not an earlier result of this "
            f"command. Choose another folder, or remove it first: rm -r {out}"
        )


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"Cannot write to the folder {out}: it is a file. Choose another name.")


def _swap(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out``, which is back in its place if that fails."""
    if not out.exists():
        new.rename(out)
        return
    previous = _beside(out)
    out.rename(previous)
    try:
        new.rename(out)
    except BaseException:
        previous.rename(out)
        raise
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def hdf5_file(path: Path, mode: str) -> Iterator["SafeFile"]:
    """An HDF5 file to write, "w" or "r+", that survives a full disk.

    HDF5 that cannot flush keeps the file open and crashes the process at exit. So after a failed
    write the rest is let go, HDF5 closes in peace, and the failure is raised at the end; code that
    writes for long calls ``check`` to hear of it sooner.
    """
    with _ForgivingFile(path, "r+b" if mode == "r+" else "w+b") as raw:
        try:
            with SafeFile(raw, mode) as file:
                yield file
        except Exception:
            if raw.failure:  # whatever HDF5 made of it
                raise raw.failure from None
            raise
        if raw.failure:
            raise raw.failure


class SafeFile(h5py.File):
    """What ``hdf5_file`` hands out."""

    def __init__(self, raw: "_ForgivingFile", mode: str) -> None:
        super().__init__(raw, mode)
        self._raw = raw

    def check(self) -> None:
        """Raise the OSError of a write that failed, if one has."""
        if self._raw.failure:
            raise self._raw.failure


class _ForgivingFile(FileIO):
    """A file that remembers its first failed write and takes the rest without writing it."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        written = 0
        try:
            while not self.failure and written < len(data):
                written += super().write(data[written:]) or 0
        except OSError as error:
            self.failure = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.tell() if self.failure else super().truncate(size)
        except OSError as error:
            self.failure = error
            return self.tell()

    def flush(self) -> None:
        """HDF5 asks for it; there is no buffer to flush."""


def write_annotated(
    source: CellSource, out: str | Path, write: Callable[["SafeFile"], None]
) -> None:
    """An h5ad of the source's cells plus what ``write`` adds, in flat memory.

    A copy, byte for byte, where the source is an h5ad file; else a new h5ad with the raw counts
    as X, obs and var, which is said. ``out``, which must end in .h5ad, may be the source's own.
    """
    if Path(out).suffix != ".h5ad":
        raise OutputError(f"Cannot write {out}: the output is an h5ad file. Give it that ending.")
    if getattr(source, "format", None) == "h5ad":
        copy_h5ad_with(source.name, out, write)
    else:
        warnings.warn(
            f"{source.name} is no h5ad file: {out} gets its raw counts ({source.counts_from}) as "
            "X, its obs and its var, and nothing else it may hold.",
            ScfmWarning,
            stacklevel=2,
        )
        write_h5ad_from(source, out, write)


def copy_h5ad_with(
    source_path: str | Path, out: str | Path, write: Callable[["SafeFile"], None]
) -> None:
    """Copy an h5ad file as it is and let ``write`` add to the copy (put, put_obs).

    Raises MissingFileError, OutputError; ``out``, which may be ``source_path``, then is untouched.
    """
    source_path = Path(source_path)
    if not source_path.is_file():
        raise MissingFileError(f"{source_path}: no such file.")
    with atomic_path(out) as temporary:
        shutil.copyfile(source_path, temporary)
        with hdf5_file(temporary, "r+") as file:
            write(file)


def write_h5ad_from(
    source: CellSource,
    out: str | Path,
    write: Callable[["SafeFile"], None],
    *,
    chunk_cells: int = CHUNK_CELLS,
) -> None:
    """Stream a source into a new h5ad (X: CSR, gzip), then let ``write`` add to it.

    Raises OutputError, and what the source raises; ``out`` then is untouched.
    """
    from anndata.io import write_elem

    with atomic_path(out) as temporary, hdf5_file(temporary, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", source.obs)
        write_elem(file, "var", source.var)
        for key in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, key, {})
        _append_counts(file, source, chunk_cells)
        write(file)


def _append_counts(file: SafeFile, source: CellSource, chunk_cells: int) -> None:
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array([source.n_cells, len(source.var)])
    indptr, n_stored = [np.zeros(1, dtype=np.int64)], 0
    for rows in source.chunks(chunk_cells):
        for key, values in (("data", rows.counts), ("indices", rows.indices)):
            if key not in group:
                _create_growing(group, key, values.dtype)
            stored: Any = group[key]
            stored.resize((n_stored + len(values),))
            stored[n_stored:] = values
        indptr.append(rows.indptr[1:] + n_stored)
        n_stored += len(rows.indices)
        file.check()
    group.create_dataset("indptr", data=np.concatenate(indptr), compression="gzip")


def _create_growing(group: h5py.Group, key: str, dtype: np.dtype) -> None:
    group.create_dataset(
        key,
        shape=(0,),
        maxshape=(None,),
        dtype=dtype,
        chunks=(STORAGE_CHUNK,),
        compression="gzip",
        compression_opts=4,
        shuffle=True,  # small integers: half the size at the same speed
    )


def write_h5ad(adata: "AnnData", out: str | Path) -> None:
    """``adata.write_h5ad``, but whole or not at all, and safe on a full disk."""
    from anndata.io import write_elem

    with atomic_path(out) as temporary, hdf5_file(temporary, "w") as file:
        write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})


def put(file: h5py.File, key: str, value: Any) -> None:
    """Write one element, "obsm/X_scfm", "uns/scfm", in the place of one of that name."""
    from anndata.io import write_elem

    if key in file:
        del file[key]
    write_elem(file, key, value)


def put_obs(file: h5py.File, columns: pd.DataFrame) -> None:
    """Add columns of cells, in file order, to ``obs``, in the place of those of the same names.

    Raises InputError where ``obs`` has another number of rows or a layout older than anndata 0.7.
    """
    from anndata.io import write_elem

    obs: Any = file["obs"]
    if not isinstance(obs, h5py.Group):
        raise InputError(
            "The file is of anndata < 0.7. Write it again: anndata.read_h5ad(IN).write_h5ad(OUT)."
        )
    index: Any = obs[obs.attrs["_index"]]
    codes: Any = index["codes"] if isinstance(index, h5py.Group) else index
    n_cells = len(codes)
    if n_cells != len(columns):
        raise InputError(f"obs has {n_cells:,} rows, the columns to add have {len(columns):,}.")
    order = [str(name) for name in obs.attrs.get("column-order", [])]
    for name in columns:
        if name in obs:
            del obs[name]
        values = columns[name].array
        plain = isinstance(values, pd.arrays.NumpyExtensionArray)
        write_elem(obs, name, values.to_numpy() if plain else values)
        order += [] if name in order else [str(name)]
    obs.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())


def _beside(out: Path) -> Path:
    """A new hidden name in the folder of ``out``, with its suffixes: writers go by them."""
    out = real(out)
    return out.with_name(f".{out.name.split('.')[0]}.{uuid4().hex[:8]}.tmp{''.join(out.suffixes)}")


def _to_disk(path: Path) -> None:
    """Some file systems report a full disk only here."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
