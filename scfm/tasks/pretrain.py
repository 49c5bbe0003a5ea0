"""Pretraining: raw counts in, a model folder out.

in   a PretrainRun and count files
out  RUN/ with config.yaml, data.json, metrics.csv, checkpoints/ and model/
"""

import errno
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.loggers import Logger

from scfm.config import to_mapping, to_yaml
from scfm.data.lock import LOCK, Occupied, release_lock, take_lock
from scfm.data.write import atomic_path, make_folder
from scfm.errors import ConfigError, OutputError, ScfmWarning
from scfm.tasks.model_export import export_checkpoint
from scfm.tasks.pretrain_module import PretrainModule
from scfm.tasks.pretrain_objective import metrics_of
from scfm.tasks.pretrain_run import (
    PretrainRun,
    absolute,
    check,
    moved,
    on_these_processes,
    read_run,
)
from scfm.tasks.run_data import RunData, open_data, record_data, require_same_data
from scfm.tokens.vocab import GeneVocab
from scfm.train.callbacks import build_callbacks
from scfm.train.checkpoint import latest_checkpoint
from scfm.train.checkpoint_files import checkpoint_folder, checkpoints, step_of
from scfm.train.checkpoint_io import read_universal
from scfm.train.checkpoint_mirror import holds_checkpoints
from scfm.train.datamodule import CellDataModule
from scfm.train.loggers import CsvMetrics, tensorboard_logger, wandb_logger
from scfm.train.processes import decided_by_first, rank
from scfm.train.trainer import build_trainer, quiet_lightning
from scfm.train.universal import is_universal, loadable

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of file systems


def pretrain(run: PretrainRun, out: Path, *, vocab: GeneVocab | None = None) -> Path:
    """Train from scratch in a new run folder; returns the folder of the exported model.

    Raises ConfigError where ``out`` already holds a run, or one is going on there; InputError for
    unusable data; Interrupted, with a checkpoint written, when stopped by Ctrl-C, SIGTERM or
    SIGUSR1.
    """
    if not run.data:
        raise ConfigError("No data to train on. Name count files: --data cells.h5ad")
    check(run)
    with _alone_in(out):
        return _begin(run, out, vocab or run.vocab())


def _begin(run: PretrainRun, out: Path, vocab: GeneVocab) -> Path:
    if decided_by_first(lambda: bool(checkpoints(out)) or _is_finished(out)):
        raise ConfigError(
            f"{out} already holds a run. Go on with it: scfm pretrain --out {out} --resume; or "
            "give another --out."
        )
    make_folder(out)
    data = open_data(run, vocab)
    _require_best_is_known(run, data)
    if rank() == 0:
        _record(run, out, data, vocab)
    return _fit(on_these_processes(run), out, vocab, data, checkpoint=None)


def resume(out: Path, overrides: Sequence[str] = (), *, asked: PretrainRun | None = None) -> Path:
    """Go on with a run from its newest whole checkpoint, on the data it was started with.

    It may move to another machine or number of processes (``MACHINE_KEYS``): by ``overrides`` of
    its own config, or by ``asked``, the whole run as a start has it. Then it begins where there is
    no run yet. One without a checkpoint begins again, as recorded; a finished one stays as it is.
    Each is said with a ScfmWarning. Raises ConfigError for a change of any other key, where
    ``out`` is no run and nothing is asked, and where the run is going on already; InputError where
    the data is gone or has changed.
    """
    if asked and not decided_by_first(lambda: (out / "config.yaml").exists()):
        warnings.warn(f"{out} holds no run yet: it begins.", ScfmWarning, stacklevel=2)
        return pretrain(asked, out)
    run = on_these_processes(moved(out, asked or read_run(out, overrides)))
    if decided_by_first(lambda: _is_finished(out)):
        warnings.warn(f"The run in {out} is finished already.", ScfmWarning, stacklevel=2)
        return out / "model"
    with _alone_in(out):
        return _go_on(run, out)


def _go_on(run: PretrainRun, out: Path) -> Path:
    found, manifests = decided_by_first(
        lambda: (_newest_checkpoint(out, run.checkpoints.mirror), require_same_data(run, out))
    )
    vocab = GeneVocab.load(out / "vocab.tsv")
    data = open_data(run, vocab, manifests)
    _require_best_is_known(run, data)
    return _fit(run, out, vocab, data, Path(found) if found else None)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder; the first process does it for all."""
    with ExitStack() as until_the_end:
        decided_by_first(lambda: _lock(out, until_the_end))
        yield


def _lock(out: Path, until_the_end: ExitStack) -> None:
    try:
        until_the_end.callback(release_lock, take_lock(make_folder(out) / LOCK))
    except Occupied as owner:
        raise ConfigError(
            f"A run is going on in {out} ({owner}). Wait for it, or stop it: Ctrl-C, or SIGTERM to "
            "its launcher; or give another --out."
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OutputError(f"{out} cannot be locked: {error}. Is it yours to write?") from error
        warnings.warn(
            f"{out} cannot be locked ({error}). See to it that no other run is started in it.",
            ScfmWarning,
            stacklevel=2,
        )


def _require_best_is_known(run: PretrainRun, data: RunData) -> None:
    """Refuse to keep the best checkpoints where none would be validated."""
    if not run.checkpoints.keep_best:
        return
    if not len(data.split.judged):
        raise ConfigError(
            f"checkpoints.keep_best={run.checkpoints.keep_best} needs held-out cells to judge by, "
            "and there are none: --set loader.held_out_share=0.05, or checkpoints.keep_best=0."
        )
    every, validated = run.checkpoints.every_n_steps, run.train.validate_every
    if every % validated and validated % every:
        raise ConfigError(
            f"checkpoints.keep_best={run.checkpoints.keep_best} needs checkpoints at steps that "
            f"are validated: checkpoints.every_n_steps={every} must be a multiple of "
            f"train.validate_every={validated}, or divide it. Try --set "
            f"checkpoints.every_n_steps={validated}, or checkpoints.keep_best=0."
        )


def _is_finished(out: Path) -> bool:
    return (out / "model").exists()


def _newest_checkpoint(out: Path, mirror: str | None) -> str | None:
    if not checkpoints(out) and not (mirror and holds_checkpoints(mirror)):
        warnings.warn(
            f"{out} has no checkpoint yet: the run begins again at step 0.",
            ScfmWarning,
            stacklevel=2,
        )
        return None
    return str(latest_checkpoint(out, mirror))


def _record(run: PretrainRun, out: Path, data: RunData, vocab: GeneVocab) -> None:
    """What the run is made of; config.yaml last, since with it the folder is a run."""
    record_data(run, out, data, vocab)
    resolved = run if run.train.devices == "auto" else on_these_processes(run)
    with atomic_path(out / "config.yaml") as temporary:
        temporary.write_text(to_yaml(absolute(resolved)))


def _fit(
    run: PretrainRun, out: Path, vocab: GeneVocab, data: RunData, checkpoint: Path | None
) -> Path:
    L.seed_everything(run.seed, verbose=False)
    model = run.new_model(vocab)
    model.recompute(run.train.recompute)
    if run.train.compile:
        for block in model.blocks:
            block.compile(dynamic=True)
    module = PretrainModule(model, run.objective, run.optim, seed=run.seed)
    cells = CellDataModule(
        data.pool,
        data.split,
        run.loader,
        total_steps=run.train.steps,
        accumulate=run.train.accumulate,
    )
    started = time.perf_counter()
    with quiet_lightning():
        trainer = build_trainer(
            run.train,
            run.optim,
            run.logging,
            _loggers(run, out, checkpoint),
            build_callbacks(
                out,
                run.train,
                run.checkpoints,
                run.guard,
                run.logging,
                flops=model.batch_flops,
                resume_command=f"scfm pretrain --out {out} --resume",
            ),
        )
        trainer.fit(module, cells, ckpt_path=_to_load(run, checkpoint, trainer), weights_only=True)
    if trainer.is_global_zero:
        seconds = round(time.perf_counter() - started, 1)
        last = checkpoint_folder(out, trainer.global_step)
        export_checkpoint(last, run, out, out / "model", seconds_of_last_session=seconds)
    return out / "model"


def _to_load(run: PretrainRun, checkpoint: Path | None, trainer: L.Trainer) -> Path | None:
    if checkpoint is None:
        return None
    strategy, world_size = run.train.strategy, trainer.world_size
    path = Path(decided_by_first(lambda: str(loadable(checkpoint, strategy, world_size))))
    if is_universal(path):
        read_universal(trainer.strategy)
    return path


def _loggers(run: PretrainRun, out: Path, checkpoint: Path | None) -> list[Logger]:
    metrics = CsvMetrics(out / "metrics.csv", metrics_of(run.objective))
    step = step_of(checkpoint) if checkpoint else 0
    metrics.start(at_step=step)
    loggers: list[Logger] = [metrics]
    if run.logging.tensorboard:
        loggers.append(tensorboard_logger(out, at_step=step))
    if run.logging.wandb != "off":
        loggers.append(wandb_logger(out, run.logging, to_mapping(run)))
    return loggers
