"""A whole run of TF binding as one object: what is trained, on what, how, and when it stops.

in   a YAML file, ``a.b=c`` overrides
out  BindingRun; BindingTraining is the part of it that needs no files
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scfm.config import from_mapping, read_settings
from scfm.errors import ConfigError
from scfm.model.dna_config import BindingConfig
from scfm.objectives.binding import BindingObjective
from scfm.tasks.tfbinding_adversary import AdversaryConfig
from scfm.tasks.tfbinding_augment import AugmentConfig
from scfm.train.checkpoint import CheckpointConfig
from scfm.train.loggers import LoggingConfig
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig
from scfm.train.strategy import build_strategy

FAMILY = "tfbinding"
WHOLE_WEIGHTS = ("auto", "ddp")  # strategies that leave every process all of them


@dataclass(frozen=True, kw_only=True)
class RegionLoaderConfig:
    """How windows are dealt out."""

    batch_size: int = 128  # windows an optimiser step, over all processes and accumulation
    background_ratio: float | None = 1.0  # background windows for each bound one; None: all
    prefetch: int = 2  # batches that a thread prepares ahead

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.prefetch < 0:
            raise ValueError("loader.batch_size must be at least 2, loader.prefetch at least 0")
        if self.background_ratio is not None and not 0 <= self.background_ratio < math.inf:
            raise ValueError(
                f"loader.background_ratio must be at least 0, got {self.background_ratio}"
            )


@dataclass(frozen=True, kw_only=True)
class StoppingConfig:
    """When training stops before its last step: by the mean AUPR on validation chromosomes."""

    patience: int = 8  # validations without a better one; 0: never
    most_windows: int = 20_000  # that are judged at a validation, evenly spread

    def __post_init__(self) -> None:
        if self.patience < 0 or self.most_windows < 1:
            raise ValueError(
                "stopping.patience must be at least 0, stopping.most_windows at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """The second stage, on windows as they are: augmented ones are not quite what is asked of it.

    Source: EvoAug, Lee et al. 2023. It begins with the first stage's best weights, and is left out
    where it does not better them.
    """

    steps: int = 0  # optimiser steps; 0: no second stage
    lr_share: float = 0.1  # of optim.lr

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.lr_share <= 1:
            raise ValueError("fine_tuning.steps must be at least 0, fine_tuning.lr_share in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class BindingTraining:
    """How a binding model is trained."""

    seed: int = 0
    objective: BindingObjective = field(default_factory=BindingObjective)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    loader: RegionLoaderConfig = field(default_factory=RegionLoaderConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(gradient_clip=5.0))
    train: TrainConfig = field(default_factory=TrainConfig)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    fine_tuning: FineTuningConfig = field(default_factory=FineTuningConfig)
    cells_only: bool = False  # train what reads the cell embedding, and leave the rest as it is
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 4294967295, got {self.seed}")

    @property
    def second_stage(self) -> "BindingTraining":
        """The settings of the plain fine-tuning."""
        steps = self.fine_tuning.steps
        optim = replace(self.optim, lr=self.optim.lr * self.fine_tuning.lr_share, warmup_steps=0)
        return replace(
            self,
            augment=self.augment.plain,
            adversary=AdversaryConfig(),
            optim=optim,
            train=replace(self.train, steps=steps),
            fine_tuning=FineTuningConfig(),
        )


@dataclass(frozen=True, kw_only=True)
class BindingData:
    """Where regions, their DNA and their accessibility are: what scfm.data.region_examples opens.

    Attributes
    ----------
    path
        Regions with labels: h5ad, zarr, h5mu, npz, h5.
    fasta, tracks
        The genome, and bigWig files by name; where the regions' own file does not have them.
    group_key, cell_key
        obs column of the groups of cells, obsm key of the embedding that conditions the model.
    chip_key, chip_of
        obs column that says of which cell type with ChIP a cell is, and those types by its values
        where the names differ.
    genome, counting, layer, sequence_key, binarised
        What the file does not say of itself.
    length
        Bases a window, around the middle of its region. None: of a FASTA as many as model.length;
        else all that the file's own sequences have, which then is the model's length.
    """

    path: str = ""
    fasta: str | None = None
    tracks: dict[str, str] = field(default_factory=dict)
    group_key: str | None = None
    cell_key: str | None = None
    chip_key: str | None = None
    chip_of: dict[str, str] = field(default_factory=dict)
    genome: str | None = None
    counting: str | None = None
    layer: str | None = None
    sequence_key: str | None = None
    binarised: bool = False
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Chromosomes and groups that are kept apart; () of training: all others with labels."""

    training_chroms: tuple[str, ...] = ()
    validation_chroms: tuple[str, ...] = ("chr11",)
    test_chroms: tuple[str, ...] = ("chr2", "chr9", "chr20")
    held_out_groups: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BindingRun(BindingTraining):
    """A whole run; one YAML file.

    ``start`` is a binding model, or a run of one, whose weights training begins with.
    """

    family: str = FAMILY
    start: str | None = None
    data: BindingData = field(default_factory=BindingData)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: BindingConfig = field(default_factory=BindingConfig)


def load_binding_run(name: str, overrides: Sequence[str] = ()) -> BindingRun:
    """The run that a config's name or path describes. ConfigError also for another family."""
    settings, where = read_settings(name, overrides)
    family = settings.get("family")
    if family != FAMILY:
        raise ConfigError(
            f"{where} is of family {family!r}; TF binding is trained by those of {FAMILY!r}: "
            "--config tfbinding-seqacc, tfbinding-scfan."
        )
    return from_mapping(BindingRun, settings, where=where)


def check(run: BindingTraining) -> None:
    """Refuse what cannot be, before anything is written.

    Raises ConfigError for a strategy that shards weights, too few windows a process, best
    checkpoints, and what the strategy itself refuses.
    """
    train = run.train
    if train.strategy not in WHOLE_WEIGHTS:
        raise ConfigError(
            f"train.strategy={train.strategy} shards what fits on any device: a binding model has "
            "some million parameters. Use --set train.strategy=ddp."
        )
    if train.compile or train.recompute != "none":
        raise ConfigError("train.compile and train.recompute are not for binding models.")
    if run.checkpoints.keep_best:
        raise ConfigError(
            "checkpoints.keep_best: the best weights by validation AUPR are kept in every "
            "checkpoint anyway. Use checkpoints.keep_best=0."
        )
    n_devices = train.devices if isinstance(train.devices, int) else 1
    parts = n_devices * train.num_nodes * train.accumulate
    if run.loader.batch_size < 2 * parts:
        raise ConfigError(
            f"loader.batch_size ({run.loader.batch_size}) must be at least {2 * parts}: two "
            "windows for each process and micro-batch, whose norms have no spread of one."
        )
    build_strategy(train)


def absolute(run: BindingRun) -> BindingRun:
    """File paths made absolute, so that a resume finds them from anywhere."""

    def whole(path: str) -> str:
        return str(Path(path).absolute())

    data = run.data
    return replace(
        run,
        start=whole(run.start) if run.start else None,
        data=replace(
            data,
            path=whole(data.path),
            fasta=whole(data.fasta) if data.fasta else None,
            tracks={name: whole(path) for name, path in data.tracks.items()},
        ),
    )
