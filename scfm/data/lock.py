"""One process at a time in a folder.

in   a lock file's path
out  the lock, held until it is let go or the process ends, however it ends
"""

import fcntl
import os
import time
from pathlib import Path

LOCK = ".lock"
GRACE_SECONDS = 5.0  # a process that was just killed still lets go of its memory, then of its lock
POLL_SECONDS = 0.05


class Occupied(Exception):
    """Another process holds the lock; the message says which, as far as it is known."""


def take_lock(file: Path) -> int:
    """An open descriptor that holds the lock; the file says whose it is.

    Raises Occupied where it is still another's after ``GRACE_SECONDS``; OSError also where the
    file system has no locks.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take(descriptor: int) -> None:
    until = time.monotonic() + GRACE_SECONDS
    while not _is_taken(descriptor):
        if time.monotonic() >= until:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise Occupied(owner or "unknown process")
        time.sleep(POLL_SECONDS)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release_lock(descriptor: int) -> None:
    """Let another process in, also where a forked child still has the file open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
