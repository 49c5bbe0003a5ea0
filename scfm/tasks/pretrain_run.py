"""A whole pretraining run as one object, and what of it may change when the run goes on.

in   a YAML file or a run folder
out  PretrainRun, or the subclass of another family of models
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from scfm.config import from_mapping, read_settings, to_mapping
from scfm.data.soma_address import absolute_address, is_address
from scfm.errors import ConfigError, ScfmWarning
from scfm.model.base import CellModel
from scfm.model.config import ModelSizes, ScfoundationSizes, ScmulanSizes
from scfm.model.pretrained import ScfmModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.model.scmulan import ScmulanModel
from scfm.tasks.pretrain_objective import (
    MaskedObjectiveConfig,
    ObjectiveConfig,
    SentenceObjectiveConfig,
)
from scfm.tokens.collate import TokenConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.masking import MaskConfig
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.sentence_vocab import sentence_vocab
from scfm.tokens.vocab import GeneVocab
from scfm.train.checkpoint import CheckpointConfig
from scfm.train.checkpoint_mirror import Mirror
from scfm.train.datamodule import LoaderConfig
from scfm.train.guard import GuardConfig, require_can_skip
from scfm.train.loggers import LoggingConfig
from scfm.train.optim import OptimConfig
from scfm.train.settings import as_started
from scfm.train.strategy import build_strategy
from scfm.train.trainer import TrainConfig

# What may differ when a run goes on: where it runs and what is kept of it, never what it computes.
# The guard too: it changes what happens at a bad step only, and a run that it stopped could not go
# on else. That it changed is said.
MACHINE_KEYS = (
    *("train.accelerator", "train.devices", "train.num_nodes", "train.strategy"),
    *("train.offload", "train.offload_to", "train.deepspeed", "train.recompute", "train.compile"),
    *(f"checkpoints.{f.name}" for f in fields(CheckpointConfig)),
    *(f"logging.{f.name}" for f in fields(LoggingConfig)),
    *(f"guard.{f.name}" for f in fields(GuardConfig)),
    "loader.prefetch",
)


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """A whole pretraining run; one YAML file. Of the default family, scfm."""

    family: str = "scfm"  # of models: which keys the sections model, tokens and objective have
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

    def vocab(self) -> GeneVocab:
        """The genes that a fresh model of the family knows."""
        return GeneVocab.human()

    def new_model(self, vocab: GeneVocab) -> CellModel:
        """A fresh model. Draws from torch's global generator."""
        return ScfmModel.from_scratch(vocab, self.model, max_genes=self.tokens.max_genes)


@dataclass(frozen=True, kw_only=True)
class ScfoundationRun(PretrainRun):
    """A run of scFoundation's architecture and objective."""

    # A family's sections differ from the default's, though whoever handles runs asks the same of
    # them; pyright cannot know that no field is ever written.
    family: str = "scfoundation"
    model: ScfoundationSizes = field(default_factory=ScfoundationSizes)  # pyright: ignore
    tokens: MaskConfig = field(default_factory=MaskConfig)  # pyright: ignore
    objective: MaskedObjectiveConfig = field(default_factory=MaskedObjectiveConfig)  # pyright: ignore

    def vocab(self) -> GeneVocab:
        return GeneVocab.scfoundation()

    def new_model(self, vocab: GeneVocab) -> CellModel:
        return ScfoundationModel.from_scratch(vocab, self.model, max_genes=self.tokens.max_genes)


@dataclass(frozen=True, kw_only=True)
class ScmulanRun(PretrainRun):
    """A run of scMulan's architecture and objective."""

    family: str = "scmulan"
    model: ScmulanSizes = field(default_factory=ScmulanSizes)  # pyright: ignore
    tokens: SentenceConfig = field(default_factory=SentenceConfig)  # pyright: ignore
    objective: SentenceObjectiveConfig = field(default_factory=SentenceObjectiveConfig)  # pyright: ignore

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.n_bins != self.tokens.n_bins:
            raise ValueError(
                f"model.n_bins ({self.model.n_bins}) and tokens.n_bins ({self.tokens.n_bins}) "
                "must be the same"
            )

    def vocab(self) -> GeneVocab:
        """Genes and words of the run's data, which are read; without data the published ones."""
        return self._words_of_data if self.data else GeneVocab.scmulan()

    @cached_property
    def _words_of_data(self) -> GeneVocab:
        human = GeneVocab.human()
        members = [open_input(path, human, self.input)[0] for path in self.data]
        return sentence_vocab(members, self.tokens)

    def new_model(self, vocab: GeneVocab) -> CellModel:
        return ScmulanModel.from_scratch(
            vocab, self.model, max_genes=self.tokens.max_genes, types=self.tokens.types
        )


FAMILIES: dict[str, type[PretrainRun]] = {
    run.family: run for run in (PretrainRun, ScfoundationRun, ScmulanRun)
}


def load_run(name: str, overrides: Sequence[str] = ()) -> PretrainRun:
    """The run that a config's name or path describes, with ``a.b=c`` applied.

    Raises ConfigError, also for a family that is not known.
    """
    settings, where = read_settings(name, overrides)
    family = settings.get("family", "scfm")
    if family not in FAMILIES:
        raise ConfigError(
            f"{where}: family is {family!r}; known are {', '.join(FAMILIES)}. "
            "A config of a family: --config scfm-tiny, scfoundation-tiny, scmulan-tiny."
        )
    return from_mapping(FAMILIES[family], settings, where=where)


def asked_for(config: str | None, data: Sequence[str], overrides: Sequence[str]) -> PretrainRun:
    """The run that a command asks for: a config's name or path, count files, ``a.b=c``."""
    run = load_run(config or "scfm-tiny", overrides)
    return replace(run, data=tuple(data)) if data else run


def check(run: PretrainRun) -> None:
    """Refuse what cannot be, before anything of the run is written.

    Raises ConfigError for a strategy that this machine or the settings cannot have, a guard that
    the strategy cannot have, and a mirror that nobody can open.
    """
    require_can_skip(run.guard, run.train.strategy)
    if run.checkpoints.mirror:
        Mirror(run.checkpoints.mirror)
    build_strategy(run.train)


def read_run(out: Path, overrides: Sequence[str] = ()) -> PretrainRun:
    """The settings a run was started with."""
    path = out / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{out} is no run folder: it has no config.yaml. Check --out.")
    return load_run(str(path), overrides)


def moved(out: Path, asked: PretrainRun) -> PretrainRun:
    """The run in ``out`` on the machine that ``asked`` names, and with its checkpoints and logging.

    Raises ConfigError where ``asked`` differs in anything else; no data is no difference. Another
    guard is said with a ScfmWarning.
    """
    recorded = read_run(out)
    asked = replace(absolute(asked), data=absolute(asked).data or recorded.data)
    was, wanted = _flat(recorded), _flat(asked)
    changed = [k for k in was if was[k] != wanted[k] and k not in MACHINE_KEYS]
    if changed:
        words = "; ".join(f"{k} is {was[k]} in {out}, asked is {wanted[k]}" for k in changed)
        raise ConfigError(
            "--resume goes on with the run as it was configured, and what the command asks would "
            f"change it: {words}. Leave that out, or start another run with another --out. Only "
            "the machine may differ (train.devices, train.recompute, ...; of train.strategy auto "
            "and ddp are one, others stay), checkpoints.*, logging.*, guard.* and loader.prefetch."
        )
    for key in was:
        if key.startswith("guard.") and was[key] != wanted[key]:
            warnings.warn(
                f"{key} was {was[key]} when the run in {out} began; it goes on with {wanted[key]}.",
                ScfmWarning,
                stacklevel=2,
            )
    return asked


def _flat(run: PretrainRun) -> dict[str, Any]:
    """Values by their dotted keys, as --set writes them."""
    found: dict[str, Any] = {}
    for key, value in to_mapping(run).items():
        is_section = isinstance(value, dict)
        found |= {f"{key}.{k}": v for k, v in value.items()} if is_section else {key: value}
    return found


def on_these_processes(run: PretrainRun) -> PretrainRun:
    """The run on as many processes as there are: torchrun's numbers, where it started this one."""
    train = as_started(run.train)
    return run if train is run.train else replace(run, train=train)


def absolute(run: PretrainRun) -> PretrainRun:
    """File paths made absolute, so that a resume finds them from anywhere."""
    return with_paths(run, _absolute_path)


def with_paths(run: PretrainRun, change: Callable[[str], str]) -> PretrainRun:
    """Each path and URL of the run passed through ``change``."""
    train, mirror = run.train, run.checkpoints.mirror
    to_cpu = train.offload_to == "cpu"  # no folder
    return replace(
        run,
        data=tuple(map(change, run.data)),
        train=replace(
            train,
            offload_to=train.offload_to if to_cpu else change(train.offload_to),
            deepspeed=None if train.deepspeed is None else change(train.deepspeed),
        ),
        checkpoints=replace(run.checkpoints, mirror=None if mirror is None else change(mirror)),
    )


def _absolute_path(path: str) -> str:
    if is_address(path):
        return absolute_address(path)
    # fsspec reads ~ as the home folder
    stays = "://" in path or path.startswith("~/")
    return path if stays else str(Path(path).absolute())
