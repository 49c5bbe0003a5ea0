"""Why an output cannot be written, in words: the operating system's errors -> OutputError.

in   the path that was asked for, an OSError
out  an OutputError naming the path, the reason and what to type next
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scfm.errors import OutputError

NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_PLACE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EINVAL, errno.ENOTSUP, errno.ENXIO, errno.ENODEV),
}


@contextmanager
def explained(out: Path, folder: Path | None = None) -> Iterator[None]:
    """OSErrors of writing -> OutputError; others, such as reading a source, pass.

    ``folder`` is where something is written, if not beside ``out``.
    """
    try:
        yield
    except OSError as error:
        message = _explanation(out, folder or real(out).parent, error)
        if message is None:
            raise
        raise OutputError(message) from error


def _explanation(out: Path, folder: Path, error: OSError) -> str | None:
    what = os.strerror(error.errno or 0)
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(nearest(folder)).free / 2**20
        return (
            f"Cannot write {out}: {what} ({free:,.0f} MB free in {folder}). "
            "What was there before is untouched. Make room, or choose another --out."
        )
    if error.filename and not _concerns(folder, real(Path(error.filename))):
        return None
    if error.errno in NO_PERMISSION:
        return (
            f"Cannot write {out}: {what}. Choose another --out, in a folder you may write to, or "
            f"ask for permission: ls -ld {nearest(folder)}"
        )
    if error.errno in NO_PLACE and error.filename:
        return _no_place(out, folder, what, Path(error.filename))
    return None


def _concerns(folder: Path, failed: Path) -> bool:
    """Whether the failure is of ``folder``, of something in it, or of a folder above it."""
    return failed.parent == folder or failed in (folder, *folder.parents)


def _no_place(out: Path, folder: Path, what: str, failed: Path) -> str:
    there = nearest(folder)
    if not there.is_dir():
        return f"Cannot write {out}: {there} is no folder. Choose another --out."
    if there == folder:
        return f"Cannot write {out} in {folder}: {what}. Choose another --out."
    if real(failed).parent == folder:  # nobody has tried to make it
        return (
            f"Cannot write {out}: {what}. Make the folder first, or choose another --out: "
            f"mkdir -p {folder}"
        )
    return f"Cannot write {out}: no folder can be made in {there} ({what}). Choose another --out."


def nearest(folder: Path) -> Path:
    """``folder``, or what is there of the way to it."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def real(path: Path) -> Path:
    """``path.resolve()``, but for links in a circle: opening them says that best."""
    return Path(os.path.realpath(path))
