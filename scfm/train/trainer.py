"""A trainer for any task: Lightning's own, configured.

in   TrainConfig, LoggingConfig, loggers, callbacks
out  lightning.pytorch.Trainer that checkpoints atomically and resumes exactly
"""

import logging as python_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from scfm.errors import ConfigError
from scfm.train.checkpoint_io import StateFileIO
from scfm.train.loggers import LoggingConfig
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig
from scfm.train.strategy import build_strategy


def build_trainer(
    config: TrainConfig,
    optim: OptimConfig,
    logging: LoggingConfig,
    loggers: list[Logger],
    callbacks: list[L.Callback],
) -> L.Trainer:
    """The whole run is one Lightning epoch of ``steps`` steps: epochs over the data are the
    loader's business, which alone knows where one ends."""
    with _machine_errors_in_words(config):
        return _trainer(config, optim, logging, loggers, callbacks)


@contextmanager
def _machine_errors_in_words(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(
            f"This machine cannot run train.accelerator={config.accelerator} with "
            f"train.devices={config.devices}: {error} Try --set train.accelerator=auto "
            "--set train.devices=1."
        ) from error


def _trainer(
    config: TrainConfig,
    optim: OptimConfig,
    logging: LoggingConfig,
    loggers: list[Logger],
    callbacks: list[L.Callback],
) -> L.Trainer:
    strategy, precision = build_strategy(config)
    return L.Trainer(
        max_steps=config.steps,
        max_epochs=1,
        precision=precision,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=optim.gradient_clip or None,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy,
        plugins=[StateFileIO()],
        logger=loggers,
        log_every_n_steps=min(logging.every_n_steps, config.steps),
        val_check_interval=min(config.validate_every, config.steps) * config.accumulate,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # without one of ours Lightning would add its own, in the working directory
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        callbacks=callbacks,
    )


# What Lightning says that is untrue or answered here, with the reason it may go unheard.
ANSWERED = (
    "Checkpoint directory .* exists and is not empty",  # so it must be, when a run is resumed
    "You're resuming from a checkpoint that ended before the epoch ended",  # the datamodule knows
    ".*does not have many workers",  # the loader runs in this process on purpose
    ".*sync_dist=True",  # every process judges all held-out cells; there is nothing to average
    ".*LeafSpec",  # torch's renaming, Lightning's to follow
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's advertisements and answered warnings out of the way; all others pass."""
    loggers = [python_logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(python_logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ANSWERED:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
