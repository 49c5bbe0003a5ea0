"""What goes on around a run's steps, put together.

in   a run's settings and folder
out  Lightning callbacks, in the order in which they act
"""

from pathlib import Path

import lightning.pytorch as L

from scfm.train.checkpoint import CheckpointConfig, StepCheckpoint
from scfm.train.guard import FiniteGuard, GuardConfig
from scfm.train.host_batch import HostBatches
from scfm.train.loggers import LoggingConfig, LogSteps
from scfm.train.progress import StepProgress
from scfm.train.spikes import LossSpikes
from scfm.train.stopping import StopOnRequest
from scfm.train.throughput import Flops, Throughput
from scfm.train.trainer import TrainConfig


def build_callbacks(
    run: Path,
    train: TrainConfig,
    checkpoints: CheckpointConfig,
    guard: GuardConfig,
    logging: LoggingConfig,
    *,
    flops: Flops | None = None,
    resume_command: str,
) -> list[L.Callback]:
    """Throughput, guards, progress, checkpoints, stopping on request.

    ``flops`` are the operations of a training step, for the utilisation. Raises ConfigError for a
    guard that the strategy cannot have.
    """
    batches = HostBatches()
    saving = StepCheckpoint(run, checkpoints, train, resume_command)
    return [
        LogSteps(),
        batches,
        Throughput(batches, flops, train.precision, logging.peak_tflops),
        FiniteGuard(run, batches, guard, train.strategy),
        LossSpikes(guard.spike_sigmas),
        StepProgress(train.steps, logging.every_n_steps),
        saving,
        StopOnRequest(saving, resume_command),
    ]
