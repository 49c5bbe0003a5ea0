"""One command -> the processes of a run, which speak with one voice.

in   how many processes a run wants, and the command's arguments
out  as many workers under torch's elastic agent (torchrun's); their exit code

A signal to the command goes to the workers. Nothing heavy is imported before it is needed.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import typer

from scfm.cli import options
from scfm.errors import ConfigError, Interrupted, ScfmWarning

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PATIENCE = 10.0  # seconds that the others give the first process to find the same
PATIENCE_WITH_ALL = 120.0  # to end, where it is known to be ending


def is_first() -> bool:
    """Whether this process is the only one of its run, or the one that speaks for all."""
    from scfm.train.processes import rank

    return rank() == 0


def processes_to_start(train: Any, overrides: Sequence[str], *, is_recorded: bool) -> int:
    """How many processes the ``train`` section of a run wants on this machine; 1: this one.

    ``overrides`` are the command's own; ``is_recorded``: the rest is of a run that goes on, and may
    have been begun on other machines. Raises ConfigError for more machines than one, which one
    command cannot start, and under torchrun for numbers that are not torchrun's.
    """
    from scfm.train.processes import is_one_of_several

    if is_one_of_several():
        _require_torchruns_numbers(train, overrides, is_recorded)
        return 1
    if train.num_nodes > 1:
        raise ConfigError(
            f"train.num_nodes={train.num_nodes}: one command starts processes on its own machine "
            "only. Start the run on every machine at once: launch/torchrun_nodes.sh, or on SLURM "
            "launch/slurm.sbatch (docs/clusters.md)."
        )
    if train.devices != "auto":
        return train.devices
    import torch

    return max(1, torch.cuda.device_count()) if train.accelerator != "cpu" else 1


def _require_torchruns_numbers(train: Any, overrides: Sequence[str], is_recorded: bool) -> None:
    from scfm.train.processes import local_world_size, world_size

    found = {
        "devices": (train.devices, local_world_size(), "processes on each machine"),
        "num_nodes": (train.num_nodes, world_size() // local_world_size(), "machines"),
    }
    for name, (wanted, started, what) in found.items():
        # every config file has a 1
        is_given = (wanted != 1 and not is_recorded) or any(
            override.startswith(f"train.{name}=") for override in overrides
        )
        if is_given and wanted not in ("auto", started):
            raise ConfigError(
                f"train.{name}={wanted}, but torchrun started {started} {what}. Leave "
                f"train.{name} out, or start as many."
            )


def launch(n_processes: int, arguments: Sequence[str]) -> int:
    """Run ``scfm ARGUMENTS`` in so many processes of this machine; returns their exit code."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    logging.disable(logging.ERROR)  # the agent's; the workers speak for themselves
    # The agent's own way with signals would kill workers that write a checkpoint for longer than
    # half a minute, and hide their exit codes. It gets one that nobody sends.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores_each(n_processes)))
    meeting = RendezvousParameters("c10d", "localhost:0", uuid4().hex, 1, 1)
    with tempfile.TemporaryDirectory(prefix="scfm_") as folder:
        spec = WorkerSpec(
            role="scfm",
            local_world_size=n_processes,
            entrypoint=sys.executable,
            args=("-u", "-m", "scfm.cli", *arguments),
            rdzv_handler=get_rendezvous_handler(meeting),
            max_restarts=0,
        )
        agent = LocalElasticAgent(spec, logs_specs=DefaultLogsSpecs(log_dir=folder))
        with _signals_to_workers(agent):
            result: Any = agent.run()
    return _exit_code(result.failures, n_processes) if result.is_failed() else 0


def _cores_each(n_processes: int) -> int:
    """Threads of a process's matrix products, as torchrun's 1 would leave cores idle."""
    return max(1, len(os.sched_getaffinity(0)) // n_processes)


@contextlib.contextmanager
def _signals_to_workers(agent: Any) -> Iterator[None]:
    def forward(number: int, _: object) -> None:
        pids = [worker.id for worker in agent.get_worker_group().workers]
        if None in pids:
            raise Interrupted("Stopped on request, before the run began.")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # nohup lets a run outlive its terminal by having this signal ignored: so it stays
    with _handled([n for n in FORWARDED if signal.getsignal(n) != signal.SIG_IGN], forward):
        yield


@contextlib.contextmanager
def _handled(numbers: Iterable[int], handler: Callable[..., object]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _exit_code(failures: dict[int, Any], n_processes: int) -> int:
    """The first failure's; the others follow from it."""
    number, first = min(failures.items(), key=lambda item: item[1].timestamp)
    if first.exitcode > 0:
        return first.exitcode
    name = signal.Signals(-first.exitcode).name
    hint = " That is how Linux ends a process when memory is full." if name == "SIGKILL" else ""
    options.say(
        f"scfm: process {number + 1} of {n_processes} was ended by {name}.{hint} "
        "Go on with the same command and --resume."
    )
    return 1


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """In each of several processes: what all find is said once, by the first.

    The others wait a while with an error, since most are errors of all; meanwhile the launcher
    ends them. Also before the first step SIGUSR1 stops a run, as SIGTERM does.
    """
    from scfm.train.processes import rank

    with _handled([signal.SIGUSR1], _stop), warnings.catch_warnings():
        if rank():
            warnings.simplefilter("ignore", ScfmWarning)
        try:
            yield
        except typer.Exit:
            raise
        except Exception as error:
            if rank():
                _leave_it_to_the_first(error)
            raise


def _stop(*_: object) -> None:
    raise Interrupted("Stopped on request, before the first step.")


def _leave_it_to_the_first(error: Exception) -> None:
    """Wait to be ended; raises typer.Exit then, or where the error is not for this one to say."""
    from scfm.train.processes import AnotherSaysWhy

    def leave(*_: object) -> None:
        raise typer.Exit(2)

    # Interrupted: by a signal of its own, whose sender may be waiting
    seconds = 1 if isinstance(error, Interrupted) else PATIENCE
    with _handled(FORWARDED, leave):
        time.sleep(PATIENCE_WITH_ALL if isinstance(error, AnotherSaysWhy) else seconds)
    if isinstance(error, Interrupted):
        raise typer.Exit(2) from error
