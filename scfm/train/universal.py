"""A DeepSpeed checkpoint for another number of processes, by DeepSpeed's own converter.

in   RUN/checkpoints/step=N as so many processes wrote it
out  RUN/checkpoints/.step=N.universal, which any number can read; removed with its checkpoint
"""

import contextlib
import io
import shutil
from pathlib import Path
from types import SimpleNamespace

from scfm.errors import ConfigError
from scfm.train.checkpoint_files import Manifest, read_manifest, universal_folder
from scfm.train.checkpoint_io import DEEPSPEED_TAG
from scfm.train.checkpoint_pickles import require_plain


def loadable(path: Path, strategy: str, world_size: int) -> Path:
    """What this run is to load of a checkpoint: itself, or a universal one made of it.

    To be called by one process, the others waiting. Raises ConfigError where another strategy
    wrote it.
    """
    manifest = read_manifest(path)
    require_same_strategy(manifest, strategy)
    if strategy.startswith("deepspeed") and manifest.world_size != world_size:
        return universal(path)
    return path


def require_same_strategy(manifest: Manifest, strategy: str) -> None:
    """Raise ConfigError for a strategy that cannot go on where another left off."""
    if _family(manifest.strategy) != _family(strategy):
        raise ConfigError(
            f"The run's checkpoint is of train.strategy={manifest.strategy}; {strategy} cannot "
            f"read its optimiser states. Go on with --set train.strategy={manifest.strategy}, on "
            "any number of processes."
        )


def _family(strategy: str) -> str:
    return "ddp" if strategy == "auto" else strategy


def is_universal(path: Path) -> bool:
    """Whether a folder is what ``universal`` makes."""
    return (path / "latest_universal").exists()


def universal(path: Path) -> Path:
    """Convert a checkpoint, unless it has been. Raises ModelError for files that would run."""
    folder = universal_folder(path)
    if is_universal(folder):
        return folder
    require_plain(path)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _convert(path / DEEPSPEED_TAG, partial / DEEPSPEED_TAG)
    partial.rename(folder)
    return folder


def _convert(source: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    settings = SimpleNamespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # one: in this process
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    talk = io.StringIO()
    with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
        ds_to_universal.main(settings)
