"""Arrays whose memory is used again.

in   a size and a type
out  an uninitialised array; its memory comes back to the pool when nothing refers to it any more

Batches are some megabytes each. Memory that malloc has given back to the system comes page by page
the next time, and clearing those pages costs as much as filling them.
"""

import math
import threading
from typing import Any

import numpy as np

KEPT = 8  # idle pieces of memory in a pool; the smallest are let go


class BufferPool:
    """Hands out arrays like ``np.empty``. Several threads may share it."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._idle: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised array."""
        n_items = math.prod(shape) if isinstance(shape, tuple) else int(shape)
        dtype = np.dtype(dtype)
        lease = _Lease(self, self._memory(n_items * dtype.itemsize), n_items, dtype)
        return np.asarray(lease).reshape(shape)

    @property
    def idle_bytes(self) -> int:
        return sum(len(memory) for memory in self._idle)

    def _memory(self, n_bytes: int) -> np.ndarray:
        with self._lock:
            while len(self._idle) > self._kept:
                sizes = [len(memory) for memory in self._idle]
                del self._idle[sizes.index(min(sizes))]
            fitting = [k for k, memory in enumerate(self._idle) if len(memory) >= n_bytes]
            if fitting:
                return self._idle.pop(min(fitting, key=lambda k: len(self._idle[k])))
        return np.empty(n_bytes + n_bytes // 8, np.uint8)  # batches differ a little in size

    def _take_back(self, memory: np.ndarray) -> None:
        # no lock: the garbage collector may call this while the same thread holds it
        self._idle.append(memory)


class _Lease:
    """What an array refers to as its base: memory that goes back when the last view is gone."""

    def __init__(self, pool: BufferPool, memory: np.ndarray, n_items: int, dtype: np.dtype) -> None:
        self._pool, self._memory = pool, memory
        self.__array_interface__ = {
            "version": 3,
            "data": memory.__array_interface__["data"],
            "shape": (n_items,),
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        self._pool._take_back(self._memory)
