"""A file or folder -> the hash that names its content."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex digest of a file; of a folder (zarr, mtx), over its files' names and digests."""
    if path.is_dir():
        members = sorted(p for p in path.rglob("*") if p.is_file())
        lines = [f"{p.relative_to(path).as_posix()} {sha256(p)}\n" for p in members]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
