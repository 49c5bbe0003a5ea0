"""A run's checkpoints as folders: whole or not there, found again, held to what was written.

in   a folder that all processes have filled
out  RUN/checkpoints/step=N with checkpoint.json, which lists every file, its size and its hash

Everything is made under a name that begins with a dot and renamed when it is complete. Loads no
torch.
"""

import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from scfm.errors import ModelError, NewerFormatError, ScfmWarning
from scfm.version import __version__

MANIFEST = "checkpoint.json"
FORMAT = 1
HASH_BYTES = 2**22  # read at a time


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is, and what it is made of."""

    step: int  # optimiser steps done
    strategy: str  # train.strategy of the run that wrote it
    world_size: int  # processes
    precision: str
    written_at: float  # seconds since 1970
    val_loss: float | None = None  # of these weights; None where the step was not validated
    versions: Mapping[str, str]  # of the packages that wrote it
    files: Mapping[str, list]  # name in the folder: bytes, xxh3
    format: int = FORMAT


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimiser steps lies."""
    return run / "checkpoints" / f"step={step}"


def step_of(path: Path) -> int:
    """The optimiser steps done at a checkpoint."""
    return int(path.name.removeprefix("step="))


def checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, newest step first, whole or damaged."""
    found = (run / "checkpoints").glob("step=*")
    return sorted(
        (p for p in found if is_checkpoint_name(p.name) and p.is_dir()), key=step_of, reverse=True
    )


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder is called as a checkpoint is."""
    return re.fullmatch(r"step=\d+", name) is not None


def partial_folder(path: Path) -> Path:
    """What a checkpoint is called while it is being written."""
    return path.with_name(f".{path.name}.partial")


def universal_folder(path: Path) -> Path:
    """A DeepSpeed checkpoint's contents, ready for another number of processes."""
    return path.with_name(f".{path.name}.universal")


def begin(path: Path) -> Path:
    """An empty folder in which processes write what will be the checkpoint ``path``."""
    partial = partial_folder(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def complete(path: Path, about: Mapping[str, Any]) -> Manifest:
    """List and hash what all processes have written, and give it its name, all of it on disk.

    ``about`` are the manifest's fields but those of the files. Raises OSError.
    """
    partial = partial_folder(path)
    files = {
        file.relative_to(partial).as_posix(): [file.stat().st_size, _hash_on_disk(file)]
        for file in sorted(partial.rglob("*"))
        if file.is_file()
    }
    manifest = Manifest(**about, written_at=time.time(), versions=_versions(), files=files)
    with (partial / MANIFEST).open("w") as file:
        json.dump(asdict(manifest), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for folder in (partial, *(p for p in partial.rglob("*") if p.is_dir())):
        _folder_to_disk(folder)
    remove(path)
    partial.rename(path)
    _folder_to_disk(path.parent)
    return manifest


def discard(path: Path) -> None:
    """Remove what has been written of a checkpoint that will not be completed."""
    shutil.rmtree(partial_folder(path), ignore_errors=True)


def _versions() -> dict[str, str]:
    found = {"scfm": __version__}
    for package in ("torch", "lightning", "deepspeed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # deepspeed is an extra
            continue
    return found


def remove(path: Path) -> None:
    """Remove a checkpoint; one that is half removed is no checkpoint."""
    shutil.rmtree(universal_folder(path), ignore_errors=True)
    if path.exists():
        doomed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Clear away what killed runs left half written or half removed."""
    for ending in ("partial", "removed"):
        for path in (run / "checkpoints").glob(f".step=*.{ending}"):
            shutil.rmtree(path, ignore_errors=True)


def remove_beyond(run: Path, step: int) -> None:
    """Remove checkpoints of later steps: damaged ones, since the run goes on before them."""
    for path in checkpoints(run):
        if step_of(path) > step and not is_newer(path):
            remove(path)


def is_newer(path: Path) -> bool:
    """Whether a newer scfm wrote a checkpoint, of which this one cannot tell what it is worth."""
    try:
        read_manifest(path)
    except NewerFormatError:
        return True
    except ModelError:
        return False
    return False


def parse_manifest(text: str | bytes, where: object) -> Manifest:
    """A manifest from its JSON. Raises ModelError, NewerFormatError."""
    try:
        fields = json.loads(text)
        _refuse_newer(fields, where)
        manifest = Manifest(**fields)
        sizes = {name: (int(size), str(hash_)) for name, (size, hash_) in manifest.files.items()}
        is_sound = manifest.step >= 0 and all(map(_is_inside, sizes))
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{where} is damaged: its {MANIFEST} is unreadable ({error}).") from error
    if not is_sound:
        raise ModelError(f"{where} is damaged: its {MANIFEST} names files outside of it.")
    return manifest


def _refuse_newer(fields: Mapping[str, Any], where: object) -> None:
    """Before anything else is asked of it: a newer manifest may have other fields."""
    number = int(fields.get("format", 0))
    if number > FORMAT:
        raise NewerFormatError(
            f"{where} was written by a newer scfm: it is of format {number}, this one reads "
            f"{FORMAT}. Upgrade: pip install -U scfm"
        )
    if number != FORMAT:
        raise ValueError(f"format {number}")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def read_manifest(path: Path) -> Manifest:
    """What a checkpoint says of itself. Raises ModelError where it says nothing."""
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise ModelError(f"{path} is damaged: it has no readable {MANIFEST}.") from error
    return parse_manifest(text, path)


def verify(path: Path) -> Manifest:
    """Read all of a checkpoint and hold it to its manifest. Raises ModelError: what is wrong.

    What cannot be read is damaged. NewerFormatError where a newer scfm wrote it.
    """
    manifest = read_manifest(path)
    try:
        _require_files(path, manifest)
    except OSError as error:
        raise ModelError(f"{path} is damaged: it cannot be read ({error}).") from error
    return manifest


def _require_files(path: Path, manifest: Manifest) -> None:
    found = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(found ^ set(manifest.files)):
        what = "is not in its manifest" if name in found else "is missing"
        raise ModelError(f"{path} is damaged: {name} {what}.")
    for name, (size, hash_) in manifest.files.items():
        n_bytes = (path / name).stat().st_size
        if n_bytes != size:
            raise ModelError(f"{path} is damaged: {name} has {n_bytes:,} bytes of {size:,}.")
        if _hash(path / name) != hash_:
            raise ModelError(f"{path} is damaged: {name} is not what was written (by its hash).")


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint that is whole, with a ScfmWarning that names those passed over.

    Raises NewerFormatError for one of a newer scfm: it is no damaged one, to be done without.
    """
    damaged = []
    for path in checkpoints(run):
        try:
            verify(path)
        except NewerFormatError:
            raise
        except ModelError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{' '.join(damaged)} Taking {path}.", ScfmWarning, stacklevel=2)
        return path
    if damaged:
        warnings.warn(" ".join(damaged), ScfmWarning, stacklevel=2)
    return None


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while data := file.read(HASH_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _hash_on_disk(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _hash(path)


def _folder_to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def retained(
    manifests: Iterable[Manifest],
    newest: int,
    *,
    keep_last: int,
    keep_best: int,
    keep_every_hours: float | None,
) -> set[int]:
    """Steps of the checkpoints that stay; ``newest`` is always one of them.

    The last by step; the best by validation loss, of those that were validated; and the first of
    each stretch of hours since 1970, which does not hang on what was removed before.
    """
    by_step = sorted(manifests, key=lambda m: m.step)
    kept = {newest, *(m.step for m in by_step[-keep_last:])}
    judged = [m for m in by_step if m.val_loss is not None]
    judged.sort(key=lambda m: (m.val_loss, -m.step))
    kept |= {m.step for m in judged[:keep_best]}
    if keep_every_hours is not None:
        first: dict[int, int] = {}
        for m in by_step:
            first.setdefault(int(m.written_at / 3600 / keep_every_hours), m.step)
        kept |= set(first.values())
    return kept
