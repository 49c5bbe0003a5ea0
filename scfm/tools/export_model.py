"""Any checkpoint of a run -> one model folder.

in   RUN, or RUN@STEP
out  a folder for scfm.load, ``scfm embed`` and the rest
"""

from pathlib import Path

from scfm.data.write import check_new_folder, make_folder
from scfm.errors import ConfigError, ModelError
from scfm.train.checkpoint_files import (
    checkpoint_folder,
    checkpoints,
    newest_whole,
    step_of,
    verify,
)


def export_model(source: str | Path, out: str | Path) -> Path:
    """Write the model of a run's newest whole checkpoint, or of the one named, into ``out``.

    Works for every strategy, without a GPU, in one process. Raises ConfigError where there is no
    such run or step, ModelError for a damaged checkpoint, OutputError where ``out`` exists or
    cannot be made.
    """
    out = Path(out)
    check_new_folder(out)
    run, step = _parse(str(source))
    checkpoint = _newest(run) if step is None else _of_step(run, step)
    # light refusals above, torch only from here on
    from scfm.tasks.model_export import export_checkpoint
    from scfm.tasks.pretrain_run import read_run

    make_folder(out.parent)
    return export_checkpoint(checkpoint, read_run(run), run, out)


def _parse(source: str) -> tuple[Path, int | None]:
    run, at, step = source.rpartition("@")
    if not at or Path(source).exists():
        run, step = source, ""
    elif not step.isdecimal():
        raise ConfigError(f"{source}: what follows the @ must be a step, such as {run}@1000.")
    folder = Path(run)
    if not (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} is no run folder of 'scfm pretrain': it has no config.yaml.")
    return folder, int(step) if step else None


def _newest(run: Path) -> Path:
    found = newest_whole(run)
    if found is None:
        raise ModelError(f"{run} holds no whole checkpoint to export.")
    return found


def _of_step(run: Path, step: int) -> Path:
    path = checkpoint_folder(run, step)
    if not path.is_dir():
        steps = ", ".join(str(step_of(p)) for p in reversed(checkpoints(run)))
        raise ConfigError(f"{run} has no checkpoint of step {step}. There are: {steps or 'none'}.")
    verify(path)
    return path
