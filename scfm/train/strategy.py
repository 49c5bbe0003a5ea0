"""How the processes of a run share its work: Lightning's strategies, by name.

in   TrainConfig, the machine's accelerator
out  a Lightning strategy and the precision to give the trainer

auto         one process; ddp where there are several
ddp          every process holds all, gradients are averaged
fsdp         weights, gradients and optimiser states in shards (FSDP2, torch's fully_shard)
deepspeed_N  ZeRO stage N: optimiser states (1), gradients (2) and weights (3) in shards

``bf16-mixed`` is the same arithmetic under each: weights, gradients and optimiser states in
float32, matrix products in bfloat16 by torch.autocast. ``bf16-true`` keeps weights in bfloat16
(DeepSpeed: with a float32 copy in the optimiser).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from scfm.errors import ConfigError
from scfm.train.checkpoint_io import SafeDeepSpeed, ShardingStrategy
from scfm.train.processes import world_size
from scfm.train.settings import Precision, TrainConfig

# What a value in a file of machine settings may be, in words.
FLAG = "true or false"
COUNT = "a whole number, at least 0"
POSITIVE = "a whole number above 0"
SHARE = "a number from 0 to 1"
# What such a file may hold: nothing that could move a loss.
OFFLOAD_OPTIMIZER = {
    "pin_memory": FLAG,
    "buffer_count": POSITIVE,
    "fast_init": FLAG,
    "ratio": SHARE,
}
OFFLOAD_PARAM = {
    "pin_memory": FLAG,
    "buffer_count": POSITIVE,
    "buffer_size": POSITIVE,
    "max_in_cpu": COUNT,
}
MACHINE_SETTINGS: dict[str, Any] = {
    "zero_optimization": {
        "allgather_partitions": FLAG,
        "allgather_bucket_size": POSITIVE,
        "overlap_comm": FLAG,
        "reduce_scatter": FLAG,
        "reduce_bucket_size": POSITIVE,
        "contiguous_gradients": FLAG,
        "round_robin_gradients": FLAG,
        "sub_group_size": POSITIVE,
        "stage3_prefetch_bucket_size": COUNT,
        "stage3_param_persistence_threshold": COUNT,
        "stage3_max_live_parameters": COUNT,
        "stage3_max_reuse_distance": COUNT,
        "offload_optimizer": OFFLOAD_OPTIMIZER,
        "offload_param": OFFLOAD_PARAM,
    },
    "aio": {
        "block_size": POSITIVE,
        "queue_depth": POSITIVE,
        "single_submit": FLAG,
        "overlap_events": FLAG,
        "thread_count": POSITIVE,
    },
    "comms_logger": {"enabled": FLAG, "verbose": FLAG, "prof_all": FLAG, "debug": FLAG},
    "wall_clock_breakdown": FLAG,
    "steps_per_print": POSITIVE,
}


def build_strategy(config: TrainConfig) -> tuple[Strategy | str, Precision]:
    """The strategy for a trainer, and the precision it is to be built with.

    Raises ConfigError for settings the strategy cannot have, or without DeepSpeed.
    """
    if config.zero_stage is not None:
        return _deepspeed(config)
    if config.deepspeed is not None:
        raise ConfigError(
            f"train.deepspeed={config.deepspeed} needs train.strategy=deepspeed_1, deepspeed_2 or "
            f"deepspeed_3, got {config.strategy}."
        )
    if config.strategy == "fsdp":
        shards = world_size()
        return ShardingStrategy(shards, 1), config.precision
    if config.strategy == "ddp" or world_size() > 1:
        return DDPStrategy(gradient_as_bucket_view=True, static_graph=False), config.precision
    return "auto", config.precision


def _deepspeed(config: TrainConfig) -> tuple[Strategy, Precision]:
    on_cpu = not wants_gpu(config)
    strategy_class = _deepspeed_class(on_cpu)
    if config.offload != "none" and config.offload_to != "cpu":
        _require_async_io(config.offload_to)
    settings = deepspeed_settings(config)
    backend = "gloo" if on_cpu else None
    # DeepSpeed's own bf16 would put the weights in bfloat16: mixed is autocast here as elsewhere.
    precision: Precision = "32-true" if config.precision == "bf16-mixed" else config.precision
    return strategy_class(config=settings, process_group_backend=backend), precision


def _require_async_io(folder: str) -> None:
    """Refuse a drive where DeepSpeed cannot build what reads and writes it."""
    from deepspeed.ops.op_builder import AsyncIOBuilder  # pyright: ignore[reportAttributeAccessIssue]

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            f"train.offload_to={folder} needs libaio and a C++ compiler, which are not here "
            "(Debian: apt install libaio-dev g++). Install them, or use --set "
            "train.offload_to=cpu."
        )
    if not Path(folder).is_dir():
        raise ConfigError(f"train.offload_to={folder} is no folder. Make it, or name another.")


def offloads_optimizer(strategy: Strategy) -> bool:
    """Whether the optimiser's states lie outside device memory."""
    settings = getattr(strategy, "config", None) or {}
    return "offload_optimizer" in settings.get("zero_optimization", {})


def wants_gpu(config: TrainConfig) -> bool:
    """Whether the run computes on GPUs."""
    return config.accelerator != "cpu" and torch.cuda.is_available()


def deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    """The whole configuration for DeepSpeed: the run's, and the machine's from a file."""
    settings = read_machine_settings(Path(config.deepspeed)) if config.deepspeed else {}
    zero = {"stage": config.zero_stage, **settings.pop("zero_optimization", {})}
    for part, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        more = zero.pop(key, {})
        if config.offload == "parameters" or config.offload == part:
            zero[key] = {**_offload_device(config), **more}
    mixed = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        **(mixed if config.precision == "bf16-mixed" else {}),
        **settings,
    }


def _offload_device(config: TrainConfig) -> dict[str, Any]:
    # Page-locked memory speeds up copies to a GPU; without one there is nothing to copy to.
    pinned = {"pin_memory": wants_gpu(config)}
    if config.offload_to == "cpu":
        return {"device": "cpu", **pinned}
    return {"device": "nvme", "nvme_path": config.offload_to, **pinned}


def read_machine_settings(path: Path) -> dict[str, Any]:
    """A JSON file for DeepSpeed.

    Raises ConfigError for a file that is none, what is no machine's business, and values of
    another kind than DeepSpeed takes.
    """
    try:
        settings = json.loads(path.read_text(), parse_float=_number)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no file {path} (train.deepspeed). Examples: launch/deepspeed."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} (train.deepspeed) cannot be read: {error.strerror}. Name a JSON file; "
            "examples: launch/deepspeed."
        ) from error
    except ValueError as error:  # no JSON, no text, or a number of thousands of digits
        raise ConfigError(f"{path} (train.deepspeed) is not readable JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} (train.deepspeed) must hold an object of settings.")
    _require_known(MACHINE_SETTINGS, settings, path, "")
    return settings


def _number(text: str) -> int | float:
    """5e8 is a whole number, and some of DeepSpeed's take no other."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _require_known(
    allowed: Mapping[str, Any], settings: Mapping[str, Any], path: Path, prefix: str
) -> None:
    for key, value in settings.items():
        if key not in allowed:
            raise ConfigError(
                f"{path} (train.deepspeed) sets {prefix}{key}, which is no machine setting: what "
                "changes the loss stands in the run's config alone. Known: "
                f"{', '.join(sorted(allowed))}."
            )
        wanted = allowed[key]
        is_section = isinstance(wanted, Mapping)
        if is_section and isinstance(value, Mapping):
            _require_known(wanted, value, path, f"{prefix}{key}.")
        elif is_section or not _is_of_kind(value, wanted):
            kind = "an object" if is_section else wanted
            raise ConfigError(
                f"{path} (train.deepspeed): {prefix}{key} must be {kind}, got {value!r}."
            )


def _is_of_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or kind == FLAG:
        return isinstance(value, bool) and kind == FLAG
    if kind == SHARE:
        return isinstance(value, int | float) and 0 <= value <= 1
    return isinstance(value, int) and value >= (kind == POSITIVE)


def _deepspeed_class(on_cpu: bool) -> type:
    """DeepSpeedStrategy, for the accelerator. Imports DeepSpeed, which takes seconds."""
    if on_cpu:
        # read when deepspeed is first imported
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        raise ConfigError(
            "train.strategy names DeepSpeed, which is not installed. Run: pip install "
            "'scfm[deepspeed]', or use --set train.strategy=fsdp"
        ) from error
    from lightning.pytorch.strategies import DeepSpeedStrategy

    if not on_cpu:
        return type("SafeDeepSpeedStrategy", (SafeDeepSpeed, DeepSpeedStrategy), {})
    # Shared-memory collectives would be compiled on first use, for a fifth of a step's time.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    class CpuDeepSpeedStrategy(SafeDeepSpeed, DeepSpeedStrategy):
        """Lightning's, without its refusal of CPUs: for tests and for trying a run out."""

        def setup_environment(self) -> None:
            # Lightning tells processes' devices apart by their index, which CPUs lack
            assert self.parallel_devices is not None
            n_devices = len(self.parallel_devices)
            self.parallel_devices = [torch.device("cpu", index) for index in range(n_devices)]
            DDPStrategy.setup_environment(self)

    return CpuDeepSpeedStrategy
