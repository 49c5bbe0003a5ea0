"""A published PyTorch checkpoint -> plain Python containers and tensors, without running its code.

in   a path
out  what was pickled: dicts, lists, numbers, strings, tensors; anything else is refused
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from scfm.errors import MissingFileError, UnreadableFileError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of ``torch.save``; tensors stay on disk until they are used.

    Raises MissingFileError; UnreadableFileError for a truncated or foreign file, and for one that
    asks for code to be run.
    """
    if not path.is_file():
        raise MissingFileError(
            f"There is no file {path}. Download the published checkpoint first, and name its path."
        )
    is_zip = zipfile.is_zipfile(path)  # what torch has written since 1.6, and the only mappable one
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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
