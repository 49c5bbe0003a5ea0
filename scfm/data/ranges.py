"""Byte ranges of files, on this machine or behind a URL.

in   a folder (a path or any URL that fsspec knows), names in it, ranges of bytes
out  the bytes, all of them, or an error that says what is wrong

Local files are read with pread: no mapped pages count as the reader's memory.
"""

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from scfm.errors import MissingFileError, StoreError

OPEN_FILES = 64  # kept open at a time
ByteRange = tuple[str, int, int]  # file, first byte, byte after the last


@runtime_checkable
class Folder(Protocol):
    """Where a store lies."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def size(self, file: str) -> int:
        """Bytes of a file; MissingFileError where there is none."""
        ...

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of each range; StoreError where some are missing."""
        ...

    def read_whole(self, file: str) -> bytes:
        """All bytes of a file; MissingFileError where there is none."""
        ...

    def exists(self, file: str) -> bool: ...


def open_folder(path: str | Path) -> Folder:
    """A local folder, or a remote one where ``path`` is a URL such as s3://bucket/store."""
    if "://" in str(path) and not str(path).startswith("file://"):
        return RemoteFolder(str(path))
    return LocalFolder(Path(str(path).removeprefix("file://")))


class LocalFolder:
    """A folder on this machine. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return str(self.path)

    def exists(self, file: str) -> bool:
        return (self.path / file).is_file()

    def size(self, file: str) -> int:
        try:
            return (self.path / file).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(self.name, file) from None

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        with self._lock:
            found = [
                os.pread(self._descriptor(file), stop - start, start)
                for file, start, stop in ranges
            ]
        _require_all(found, ranges, self.name)
        return found

    def read_whole(self, file: str) -> bytes:
        try:
            return (self.path / file).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(self.name, file) from None

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self):
        return LocalFolder, (self.path,)

    def _descriptor(self, file: str) -> int:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        try:
            descriptor = os.open(self.path / file, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(self.name, file) from None
        self._open[file] = descriptor
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor


class RemoteFolder:
    """A folder behind a URL, through fsspec."""

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        self.url, self.options = url, options
        try:
            self.filesystem, self.root = fsspec.core.url_to_fs(url, **options)
        except (ValueError, ImportError) as error:  # no such scheme; its package is not installed
            raise StoreError(f"{url}: cannot be opened: {error}.") from error

    @property
    def name(self) -> str:
        return self.url

    def exists(self, file: str) -> bool:
        return bool(self.filesystem.exists(self._path(file)))

    def size(self, file: str) -> int:
        try:
            size = self.filesystem.size(self._path(file))
        except FileNotFoundError:
            raise _missing(self.name, file) from None
        except remote_errors() as error:
            raise _unreachable(self.name, file, error) from error
        if size is None:
            raise StoreError(
                f"{self.name}/{file}: the server does not say how long the file is. Use one that "
                "does, or copy the store to this machine."
            )
        return int(size)

    def read(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        paths = [self._path(file) for file, _, _ in ranges]
        starts, stops = [start for _, start, _ in ranges], [stop for _, _, stop in ranges]
        try:
            found = self.filesystem.cat_ranges(paths, starts, stops, on_error="raise")
        except FileNotFoundError as error:
            raise _missing(self.name, error.filename or str(error)) from None
        except remote_errors() as error:
            raise _unreachable(self.name, ranges[0][0], error) from error
        found = [bytes(data) for data in found]
        _require_all(found, ranges, self.name)
        return found

    def read_whole(self, file: str) -> bytes:
        try:
            return bytes(self.filesystem.cat_file(self._path(file)))
        except FileNotFoundError:
            raise _missing(self.name, file) from None
        except remote_errors() as error:
            raise _unreachable(self.name, file, error) from error

    def __reduce__(self):
        return RemoteFolder, (self.url,)

    def _path(self, file: str) -> str:
        return f"{self.root.rstrip('/')}/{file}"


def remote_errors() -> tuple[type[Exception], ...]:
    """What file systems raise, some of it no OSError. A package not loaded cannot have raised."""
    others = [
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    ]
    loaded = [getattr(sys.modules[m], name) for m, name in others if m in sys.modules]
    return (OSError, *loaded)


def _require_all(found: list[bytes], ranges: Sequence[ByteRange], folder: str) -> None:
    for data, (file, start, stop) in zip(found, ranges, strict=True):
        if len(data) > stop - start:
            raise StoreError(
                f"{folder}/{file}: asked for {stop - start:,} bytes, got {len(data):,}. The server "
                "does not know byte ranges; use one that does, or copy the store to this machine."
            )
        if len(data) != stop - start:
            raise StoreError(
                f"{folder}/{file} is truncated: it ends before byte {stop:,}. Copy the store "
                f"again, or see what else is damaged: scfm prepare --verify {folder}"
            )


def _missing(folder: str, file: str) -> MissingFileError:
    return MissingFileError(f"{folder}/{file}: no such file. Is {folder} a store, copied whole?")


def _unreachable(folder: str, file: str, error: Exception) -> StoreError:
    return StoreError(
        f"{folder}/{file} cannot be read ({type(error).__name__}: {error}). Nothing was taken from "
        "it; try again, or copy the store to this machine first."
    )
