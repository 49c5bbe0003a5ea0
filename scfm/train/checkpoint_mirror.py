"""A second place for each checkpoint, behind any URL that fsspec knows.

in   a complete checkpoint folder
out  URL/step=N with the same files, the manifest last: without one it is no checkpoint

The first process copies, so the run's folder must be one that all machines share.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scfm.data.ranges import remote_errors
from scfm.errors import ConfigError, ModelError, NewerFormatError, ScfmWarning
from scfm.train.checkpoint_files import (
    MANIFEST,
    Manifest,
    begin,
    checkpoint_folder,
    is_checkpoint_name,
    parse_manifest,
    remove,
    verify,
)


class Mirror:
    """One run's checkpoints elsewhere. Raises ConfigError for a URL nobody can open.

    Its methods raise what the file system does: catch ``remote_errors()``.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = url
        try:
            self.files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:  # no such scheme; its package is not installed
            raise ConfigError(f"checkpoints.mirror={url} cannot be opened: {error}.") from error
        self.root = root.rstrip("/")

    def manifests(self) -> dict[int, Manifest]:
        """Of all checkpoints that have one, by step."""
        self.files.invalidate_cache()
        found: dict[int, Manifest] = {}
        for path in self.files.glob(f"{self.root}/step=*/{MANIFEST}"):
            manifest = parse_manifest(self.files.cat_file(path), path)
            found[manifest.step] = manifest
        return found

    def put(self, folder: Path, manifest: Manifest) -> None:
        """Copy a complete checkpoint."""
        self.remove(manifest.step)
        for name in (*manifest.files, MANIFEST):
            target = f"{self._folder(manifest.step)}/{name}"
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(folder / name), target)

    def remove(self, step: int) -> None:
        """Remove a checkpoint, its manifest first. Raises NewerFormatError for a newer scfm's."""
        self._refuse_newer(step)
        folder = self._folder(step)
        for path in (f"{folder}/{MANIFEST}", folder):
            if self.files.exists(path):
                self.files.rm(path, recursive=True)

    def keep(self, choose: Callable[[list[Manifest]], set[int]]) -> None:
        """Remove all checkpoints but those of the steps chosen, and what killed uploads left.

        Not to be called while one is copied.
        """
        manifests = self.manifests()
        for step in self._steps() - choose(list(manifests.values())):
            self.remove(step)

    def fetch_newest(self, run: Path) -> Path | None:
        """Copy the newest whole checkpoint into the run; those damaged are said. None without."""
        manifests = self.manifests()
        for step in sorted(manifests, reverse=True):
            path = checkpoint_folder(run, step)
            try:
                self._fetch(manifests[step], path)
            except ModelError as error:
                warnings.warn(f"{self.url}: {error}", ScfmWarning, stacklevel=2)
                continue
            warnings.warn(
                f"{run} holds no whole checkpoint: {path.name} is taken from {self.url}.",
                ScfmWarning,
                stacklevel=2,
            )
            return path
        return None

    def _fetch(self, manifest: Manifest, path: Path) -> None:
        partial = begin(path)
        for name in (*manifest.files, MANIFEST):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self.files.get_file(f"{self._folder(manifest.step)}/{name}", str(partial / name))
            except FileNotFoundError as error:
                raise ModelError(f"{path.name} lacks {name}.") from error
        verify(partial)
        remove(path)  # a damaged one
        partial.rename(path)

    def _refuse_newer(self, step: int) -> None:
        path = f"{self._folder(step)}/{MANIFEST}"
        if not self.files.exists(path):
            return
        try:
            parse_manifest(self.files.cat_file(path), path)
        except NewerFormatError:
            raise
        except ModelError:
            return  # a damaged one may go

    def _steps(self) -> set[int]:
        """Of all folders, with a manifest or without."""
        names = (
            path.rstrip("/").rpartition("/")[2] for path in self.files.glob(f"{self.root}/step=*")
        )
        return {int(name.removeprefix("step=")) for name in names if is_checkpoint_name(name)}

    def _folder(self, step: int) -> str:
        return f"{self.root}/step={step}"


def holds_checkpoints(url: str) -> bool:
    """Whether a mirror has any. Raises ConfigError for a URL nobody can open, ModelError."""
    with _reached(url) as mirror:
        return bool(mirror.manifests())


def fetch_newest(url: str, run: Path) -> Path | None:
    """The newest whole checkpoint of a mirror, copied into the run; None where there is none.

    Raises ConfigError for a URL nobody can open, ModelError where it cannot be reached.
    """
    with _reached(url) as mirror:
        return mirror.fetch_newest(run)


@contextmanager
def _reached(url: str) -> Iterator[Mirror]:
    try:
        yield Mirror(url)
    except remote_errors() as error:
        raise ModelError(
            f"The run's folder holds no whole checkpoint, and the mirror {url} cannot be read: "
            f"{error}."
        ) from error


def mirror_problem(url: str, error: Any) -> str:
    """What to say of a copy that failed; the run goes on."""
    return (
        f"The checkpoint could not be copied to {url} ({type(error).__name__}: {error}). The run "
        "goes on; the next checkpoint is tried again."
    )
