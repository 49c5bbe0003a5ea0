"""A whole pretraining run as one object, and what of it may change when the run goes on.

in   a YAML file or a run folder
out  PretrainRun
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scfm.config import load_config
from scfm.data.soma_address import absolute_address, is_address
from scfm.errors import ConfigError
from scfm.model.config import ModelSizes
from scfm.tasks.pretrain_module import ObjectiveConfig
from scfm.tokens.collate import TokenConfig
from scfm.tokens.inputs import InputConfig
from scfm.train.checkpoint import CheckpointConfig
from scfm.train.datamodule import LoaderConfig
from scfm.train.guard import GuardConfig
from scfm.train.loggers import LoggingConfig
from scfm.train.optim import OptimConfig
from scfm.train.trainer import TrainConfig

# What may differ when a run goes on: where it runs, never what it computes.
MACHINE_KEYS = tuple(f"train.{k}" for k in ("accelerator", "devices", "num_nodes", "strategy"))


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """A whole pretraining run; one YAML file."""

    seed: int = 0  # 0 to 2**32 - 1
    data: tuple[str, ...] = ()  # count files; --data replaces them
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelSizes = field(default_factory=ModelSizes)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 4294967295, got {self.seed}")


def read_run(out: Path, overrides: Sequence[str] = ()) -> PretrainRun:
    """The settings a run was started with."""
    path = out / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{out} is no run folder: it has no config.yaml. Check --out.")
    return load_config(PretrainRun, str(path), overrides)


def absolute(run: PretrainRun) -> PretrainRun:
    """File paths made absolute, so that a resume finds them from anywhere."""
    return replace(run, data=tuple(map(_absolute_path, run.data)))


def _absolute_path(path: str) -> str:
    if is_address(path):
        return absolute_address(path)
    return path if "://" in path else str(Path(path).absolute())
