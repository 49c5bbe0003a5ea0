"""A published PyTorch checkpoint -> plain Python containers and tensors, without running its code.

in   a path
out  what was pickled: dicts, lists, numbers, strings, tensors; anything else is refused
"""

import pickle
import struct
import textwrap
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from scfm.errors import MissingFileError, UnreadableFileError

# All that zipfile raises of a damaged file.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(RuntimeError, ValueError, KeyError, IndexError, OverflowError),
)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of ``torch.save``; tensors stay on disk until they are used.

    Raises MissingFileError; UnreadableFileError for a truncated, damaged or foreign file, and for
    one that asks for code to be run. Files of torch before 1.6 hold no checksums: damage to their
    numbers cannot be seen.
    """
    if not path.is_file():
        raise MissingFileError(
            f"There is no file {path}. Download the published checkpoint first, and name its path."
        )
    is_zip = _is_whole_zip(path)  # what torch has written since 1.6, and the only mappable one
    try:
        with warnings.catch_warnings():  # of pickles that are no checkpoints: refused below
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise UnreadableFileError(
            f"{path} is no checkpoint of plain tensors, or holds objects whose code would run. "
            "Nothing of it was run. Download the file again from where its authors publish it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise UnreadableFileError(
            f"{path} is truncated or no PyTorch checkpoint ({_first_line(error)}). Download it "
            "again and compare its size with the published one."
        ) from error
    if not isinstance(found, dict):
        raise UnreadableFileError(
            f"{path} holds a {type(found).__name__}; wanted a checkpoint, a dict."
        )
    return found


def _is_whole_zip(path: Path) -> bool:
    """Whether it is a zip; UnreadableFileError where one of its parts is damaged, or its end gone.

    torch does not look at the checksums of a zip's parts.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise UnreadableFileError(
                    f"{path} is truncated: its table of contents, at the end, is missing. Download "
                    "it again and compare its size with the published one."
                )
        return False
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except ZIP_ERRORS as error:
        raise UnreadableFileError(
            f"{path} is damaged ({_first_line(error)}). Download it again and compare its size and "
            "checksum with the published ones."
        ) from error
    if damaged is not None:
        raise UnreadableFileError(
            f"{path} is damaged: its part '{damaged}' is not what its checksum says. Download it "
            "again and compare its checksum with the published one."
        )
    return True


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 80, placeholder=" ...")
