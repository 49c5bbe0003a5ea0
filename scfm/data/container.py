"""What an opened file offers: matrices that may hold the counts, and the tables beside them.

in   a path, from scfm.data.formats, scfm.data.tenx or scfm.data.loom
out  Container; nothing of it is read before it is asked for
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scfm.data.matrices import Matrix
from scfm.errors import UnreadableFileError

# What h5py, zarr, SciPy and anndata raise on bytes that are not what they should be.
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Candidate:
    """One matrix of a file.

    Attributes
    ----------
    label
        How it is spoken of: "X", "layers['counts']", "raw.X".
    key
        What ``layer=`` calls it: "X", "counts", "raw".
    open
        Returns the matrix, unread.
    read_var
        Returns the table of its columns, those left out included.
    is_kept
        (column,) False for columns that are no genes; None keeps all.
    """

    label: str
    key: str
    open: Callable[[], Matrix]
    read_var: Callable[[], pd.DataFrame]
    is_kept: np.ndarray | None = None


@dataclass(frozen=True)
class Container:
    """An opened file or an AnnData.

    Attributes
    ----------
    name
        For messages: the path, or "AnnData".
    format
        "h5ad", "zarr", "annbatch", "10x h5", "10x mtx", "loom", "soma", "census" or "AnnData".
    path
        The file; None for an AnnData and for a database.
    candidates
        X first, then layers["counts"], then raw, then the other layers.
    read_obs
        Returns the table of cells.
    close
        Lets go of the file.
    must_choose
        The candidates are no alternatives (genomes of two species): ``layer`` has to name one.
    fingerprint
        Returns what identifies the content, in hex, where that is not the file's sha256.
    """

    name: str
    format: str
    path: Path | None
    candidates: list[Candidate]
    read_obs: Callable[[], pd.DataFrame]
    close: Callable[[], None] = lambda: None
    must_choose: bool = False
    fingerprint: Callable[[], str] | None = None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what a library raises on damaged bytes into UnreadableFileError, with its reason."""
    try:
        yield
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnreadableFileError(
            f"{name}: cannot be read; it is truncated, damaged or in use by another program. "
            f"Get or write the file again. (The reader says: {reason})"
        ) from error
    except UnreadableFileError as error:
        if str(error).startswith(name):
            raise
        raise UnreadableFileError(f"{name}: {error}") from error
