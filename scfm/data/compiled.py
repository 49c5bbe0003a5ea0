"""How inner loops are compiled.

in   a plain Python function over NumPy arrays
out  the same function as machine code: without the GIL, strict IEEE arithmetic, cached on disk
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache


def compiled(function: Callable) -> Callable:
    """Compile at the first call; keep the machine code on disk where a place for it can be written.

    numba looks for that place in NUMBA_CACHE_DIR, ``__pycache__`` and the user's cache folder.
    """
    function = inspect.unwrap(function)  # shape checks that tests put around it, numba cannot read
    dispatcher: Any = njit(nogil=True)(function)
    # numba raises RuntimeError where no such place is writable: compiling anew is all that is lost.
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = _WatchfulCache(function)
    return dispatcher


class _WatchfulCache(FunctionCache):
    """numba's cache of one function, with two of its traps closed."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple:
        # By itself numba looks at the function's own file: after an edit of a function that is
        # called from another file the caller's old machine code, callee included, would still run.
        return (*super()._index_key(sig, codegen), _sources_hash())

    def save_overload(self, sig: Any, data: Any) -> None:
        # A full disk must not end a run that only wanted to be faster the next time.
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


@cache
def _sources_hash() -> str:
    """sha256 (hex) of all sources that hold compiled functions."""
    package = Path(__file__).parents[1]
    places = ("data/*.py", "tokens/*.py", "tasks/nearest.py")
    sources = sorted(path for place in places for path in package.glob(place))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
