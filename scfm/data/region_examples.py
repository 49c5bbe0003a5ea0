"""Examples of binding: (region, group of cells) -> RegionBatch. What models and scores read.

in   a file of regions: h5ad, h5mu, npz, h5; FASTA and bigWigs beside it
out  RegionExamples
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

import h5py
import numpy as np
from jaxtyping import Int, Int8, Integer, Shaped

from scfm.batch import RegionBatch
from scfm.data.region_formats import is_window_h5, read_npz, read_window_h5
from scfm.data.region_sequences import SequenceRegions
from scfm.errors import MissingFileError, UnreadableFileError

__all__ = ["RegionExamples", "SequenceRegions", "open_regions"]


@runtime_checkable
class RegionExamples(Protocol):
    """Regions, each seen in groups of cells or in none.

    Labels cost nothing to ask for; sequence and signal are read when a batch is.
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Columns of the labels: TFs where there are groups, else "TF:cell" or what was given."""
        ...

    @property
    def tracks(self) -> tuple[str, ...]:
        """Rows of the signal; none where there is sequence only."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of cells; none where all examples have group -1."""
        ...

    @property
    def length(self) -> int:
        """Bases a window."""
        ...

    @property
    def chrom(self) -> Shaped[np.ndarray, " region"]: ...

    @property
    def start(self) -> Int[np.ndarray, " region"]:
        """Of the region itself, 0-based, not of the window around its middle."""
        ...

    @property
    def end(self) -> Int[np.ndarray, " region"]:
        """Half-open: the first base after the region."""
        ...

    @property
    def n_regions(self) -> int: ...

    def labels(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> Int8[np.ndarray, "example task"]:
        """1 bound, 0 not bound, -1 unknown."""
        ...

    def batch(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> RegionBatch:
        """Windows, signal and labels of these examples, as NumPy arrays."""
        ...


def open_regions(path: str | Path, *, length: int | None = None) -> RegionExamples:
    """Open a file of regions; what it is, its content decides.

    Raises MissingFileError, UnreadableFileError, and what the format's reader raises.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file (looked in {path.absolute()}).")
    if _starts_with(path, b"PK"):
        return read_npz(path).cut(length)
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            is_windows = is_window_h5(file)
        if is_windows:
            return read_window_h5(path).cut(length)
    raise UnreadableFileError(
        f"{path}: is no file of regions. scfm reads .h5ad and .h5mu (peaks x cells), .npz (keys, "
        "seq, Y) and .h5 (X_train, Y_train, ...)."
    )


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
