"""What goes on around a run's steps, put together.

in   a run's settings and folder
out  Lightning callbacks, in the order in which they act
"""

from pathlib import Path

import lightning.pytorch as L

from scfm.train.checkpoint import CheckpointConfig, StepCheckpoint
from scfm.train.loggers import LoggingConfig
from scfm.train.progress import StepProgress
from scfm.train.stopping import StopOnRequest
from scfm.train.throughput import Throughput
from scfm.train.trainer import TrainConfig


def build_callbacks(
    run: Path,
    train: TrainConfig,
    checkpoints: CheckpointConfig,
    logging: LoggingConfig,
    *,
    resume_command: str,
) -> list[L.Callback]:
    """Throughput, progress, checkpoints, stopping on request."""
    return [
        Throughput(),
        StepProgress(train.steps, logging.every_n_steps),
        StepCheckpoint(run, checkpoints.every_n_steps, checkpoints.keep_last),
        StopOnRequest(run, resume_command),
    ]
