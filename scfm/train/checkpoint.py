"""A run's checkpoints while it trains: when one is due, who writes what, which stay.

in   a trainer's events
out  RUN/checkpoints/step=N, whole or not there, and a copy of each in a second place

All processes write into a hidden folder; when they are done the first one lists and hashes the
files and renames it. Where the strategy allows, all of that but a copy in memory happens beside
training. At most one checkpoint is under way.
"""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.checkpoint.api import CheckpointException

from scfm.data.ranges import remote_errors
from scfm.errors import ConfigError, ModelError, NewerFormatError, OutputError, ScfmWarning
from scfm.train.checkpoint_files import (
    Manifest,
    begin,
    checkpoint_folder,
    checkpoints,
    complete,
    discard,
    newest_whole,
    partial_folder,
    read_manifest,
    remove,
    remove_beyond,
    remove_leftovers,
    retained,
    step_of,
)
from scfm.train.checkpoint_io import Rest, take_rest
from scfm.train.checkpoint_mirror import Mirror, fetch_newest, mirror_problem
from scfm.train.settings import TrainConfig

ARCHIVE_FAILURE = re.compile(r"PytorchStreamWriter|enforce fail at inline_container")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often, how many, where else."""

    every_n_steps: int = 500  # optimiser steps
    keep_last: int = 2
    keep_best: int = 0  # by the validation loss, of checkpoints at steps that are validated
    keep_every_hours: float | None = None  # one of each so many hours stays for good
    asynchronous: bool = True  # written beside training, where the strategy can
    mirror: str | None = None  # a second place for each (fsspec), of this run alone

    def __post_init__(self) -> None:
        for name, least in (("every_n_steps", 1), ("keep_last", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"checkpoints.{name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.keep_every_hours is not None and not self.keep_every_hours > 0:
            raise ValueError(
                f"checkpoints.keep_every_hours must be positive, got {self.keep_every_hours}"
            )


class StepCheckpoint(Checkpoint):
    """Every ``every_n_steps`` optimiser steps and at the last.

    A checkpoint is taken before the next step begins: by then the step is logged and validated.
    ``resume_command`` is what to type after a failure.
    """

    def __init__(
        self, run: Path, config: CheckpointConfig, train: TrainConfig, resume_command: str
    ):
        self.run, self.config, self.train = run, config, train
        self.resume_command = resume_command
        self.mirror = Mirror(config.mirror) if config.mirror else None
        self.writer = Writer()
        self.saved: int | None = None  # the step of the last one
        self.validated: tuple[int, float] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            remove_leftovers(self.run)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # a run that goes on comes from a checkpoint of this step
        self.saved = trainer.global_step or None
        if trainer.is_global_zero:
            remove_beyond(self.run, trainer.global_step)
        if self.saved is None and self.mirror:
            self._require_empty_mirror(trainer, self.mirror)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._raise(self.writer.failure())
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if step and step % self.config.every_n_steps == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        self.validated = None if loss is None else (trainer.global_step, float(loss))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer, wait=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        # What is under way is still worth having; a failure of it must not hide the exception.
        failure = self.writer.wait()
        if failure is not None:
            rank_zero_warn(str(self._explained(failure)), category=ScfmWarning)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.writer.close()

    def save(self, trainer: L.Trainer, *, wait: bool = False) -> Path:
        """Take a checkpoint of the steps done, unless there is one; all processes must call it.

        Returns where it lies, once it is complete: ``wait`` for that. Raises OutputError.
        """
        path = checkpoint_folder(self.run, trainer.global_step)
        if self.saved != trainer.global_step:
            self._begin(trainer, path)
        if wait or not self.config.asynchronous:
            self.wait(trainer)
        return path

    def _begin(self, trainer: L.Trainer, path: Path) -> None:
        self.wait(trainer)
        about = self._about(trainer)
        is_first = trainer.is_global_zero
        if is_first:
            self._raise(_failure_of(lambda: begin(path)))
        trainer.strategy.barrier()
        try:
            self._raise(_failure_of(lambda: trainer.save_checkpoint(partial_folder(path))))
        except BaseException:  # also weights that are not finite, which nobody may save
            if is_first:
                discard(path)
            raise
        rest = take_rest(trainer.strategy)
        self.writer.submit(partial(self._finish, rest, path, about) if is_first else rest)
        self.saved = trainer.global_step

    def wait(self, trainer: L.Trainer) -> None:
        """Until no checkpoint is under way. Raises OutputError, in all processes, if one failed."""
        failure = self.writer.wait()
        self._warn()
        said = str(self._explained(failure)) if failure else ""
        others: str = trainer.strategy.broadcast(said)
        self._raise(failure)
        if others:
            raise OutputError(others)

    def _about(self, trainer: L.Trainer) -> dict[str, Any]:
        step = trainer.global_step
        is_judged = self.validated is not None and self.validated[0] == step
        return {
            "step": step,
            "strategy": self.train.strategy,
            "world_size": trainer.world_size,
            "precision": self.train.precision,
            "val_loss": self.validated[1] if self.validated and is_judged else None,
        }

    def _finish(self, rest: Rest, path: Path, about: dict[str, Any]) -> None:
        """Of the first process, in the thread; once all have written it asks no other process."""
        try:
            rest()
            manifest = complete(path, about)
        except BaseException:
            discard(path)
            raise
        for old in self._doomed(manifest.step):
            remove(old)
        if self.mirror:
            try:
                self.mirror.put(path, manifest)
                self.mirror.keep(partial(self._kept, manifest.step))
            except (*remote_errors(), ModelError) as error:
                self.writer.warnings.append(mirror_problem(self.mirror.url, error))

    def _doomed(self, newest: int) -> list[Path]:
        readable: dict[Path, Manifest] = {}
        unreadable = []
        for path in checkpoints(self.run):
            try:
                readable[path] = read_manifest(path)
            except NewerFormatError:
                continue  # not this scfm's to judge
            except ModelError:
                unreadable.append(path)
        kept = self._kept(newest, list(readable.values()))
        return [*unreadable, *(path for path in readable if step_of(path) not in kept)]

    def _kept(self, newest: int, manifests: list[Manifest]) -> set[int]:
        return retained(
            manifests,
            newest,
            keep_last=self.config.keep_last,
            keep_best=self.config.keep_best,
            keep_every_hours=self.config.keep_every_hours,
        )

    def _require_empty_mirror(self, trainer: L.Trainer, mirror: Mirror) -> None:
        """Two runs in one mirror would overwrite each other's."""
        n_found = 0
        if trainer.is_global_zero:
            try:
                n_found = len(mirror.manifests())
            except (*remote_errors(), ModelError) as error:
                self.writer.warnings.append(mirror_problem(mirror.url, error))
        if trainer.strategy.broadcast(n_found):
            raise ConfigError(
                f"checkpoints.mirror={mirror.url} holds checkpoints of another run. Give each run "
                "a place of its own."
            )

    def _warn(self) -> None:
        while self.writer.warnings:
            rank_zero_warn(self.writer.warnings.pop(0), category=ScfmWarning)

    def _raise(self, failure: BaseException | None) -> None:
        self._warn()
        if failure is not None:
            raise self._explained(failure) from failure

    def _explained(self, failure: BaseException) -> BaseException:
        cause = _write_failure(failure)
        if cause is None:
            return failure
        folder = self.run / "checkpoints"
        free = shutil.disk_usage(self.run).free / 2**20
        return OutputError(
            f"A checkpoint cannot be written to {folder}: {cause} ({free:,.0f} MB free). Those "
            f"before it are kept. Make room, then go on with: {self.resume_command}"
        )


class Writer:
    """Does what is left of a checkpoint in a thread, one at a time."""

    def __init__(self) -> None:
        self.thread: ThreadPoolExecutor | None = None
        self.under_way: Future | None = None
        self.warnings: list[str] = []  # for the main thread to say

    def submit(self, work: Callable[[], None]) -> None:
        """Begin; the one before must have been waited for."""
        assert self.under_way is None
        self.thread = self.thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.under_way = self.thread.submit(work)

    def failure(self) -> BaseException | None:
        """What went wrong in one that has ended; does not wait."""
        return self.wait() if self.under_way is not None and self.under_way.done() else None

    def wait(self) -> BaseException | None:
        """What went wrong, once the one under way has ended."""
        if self.under_way is None:
            return None
        failure = self.under_way.exception()
        self.under_way = None
        return failure

    def close(self) -> None:
        """End the thread, after what it has under way."""
        if self.thread is not None:
            self.thread.shutdown()
            self.thread = None


def _failure_of(work: Callable[[], Any]) -> BaseException | None:
    """What of a kind that ``_write_failure`` knows went wrong; raises all else."""
    try:
        work()
    except (OSError, RuntimeError, CheckpointException) as error:
        if _write_failure(error) is None:
            raise
        return error
    return None


def _write_failure(failure: BaseException) -> str | None:
    """What to call a failure to write; None for one of another kind."""
    if isinstance(failure, CheckpointException):
        causes = [_write_failure(wrapped[0]) for wrapped in failure.failures.values()]
        return next((cause for cause in causes if cause), None)
    if isinstance(failure, OSError):
        return failure.strerror or str(failure)
    # torch's archive writer has its own words for a write that fell short
    if isinstance(failure, RuntimeError) and ARCHIVE_FAILURE.search(str(failure)):
        return "torch could not write all of a file"
    return None


def latest_checkpoint(run: Path, mirror: str | None = None) -> Path:
    """The newest checkpoint that is whole, if need be from the mirror.

    Those passed over are named by a ScfmWarning. Raises ModelError where there is none, and
    NewerFormatError where a newer scfm wrote it.
    """
    found = newest_whole(run) or (fetch_newest(mirror, run) if mirror else None)
    if found is None:
        raise ModelError(
            f"{run} holds no checkpoint to resume from. Start the run anew with another --out, or "
            "remove the folder."
        )
    return found
