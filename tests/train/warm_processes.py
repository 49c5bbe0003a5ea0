"""The processes of a run, forked from one that has imported everything: seconds less for each.

in   how many, and the command's arguments
out  exit codes, and what was said

They find the environment that torchrun gives to its workers. What torchrun itself does is tested
where it is what is tested: tests/train/test_processes.py, tests/cli/test_launching.py.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 300  # a run may take
PRELOADED = ["scfm.cli.app", "scfm.tasks.pretrain", "deepspeed"]


@dataclass(frozen=True)
class Done:
    """What became of the processes: the first exit code that is not 0, and their stderr."""

    returncode: int
    stderr: str


def run_processes(n: int, arguments: Sequence[str]) -> Done:
    """``scfm ARGUMENTS`` in ``n`` processes of one run, one thread each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(n)]
        processes = [
            context.Process(target=_work, args=(_environment(rank, n, port), list(arguments), log))
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
            process.kill()
            process.join()
        codes = [process.exitcode or 0 for process in processes]
        said = "".join(log.read_text() for log in logs)
    return Done(next((code for code in codes if code), 0), said)


def _environment(rank: int, n: int, port: int) -> dict[str, str]:
    numbers = {
        **{"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "ROLE_RANK": rank},
        **{"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "GROUP_WORLD_SIZE": 1, "ROLE_WORLD_SIZE": n},
        **{"MASTER_PORT": port, "OMP_NUM_THREADS": 1},
    }
    words = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "tests"}
    return {**{name: str(number) for name, number in numbers.items()}, **words}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(environment: dict[str, str], arguments: list[str], log: Path) -> None:
    import torch

    from scfm.cli.app import main

    with log.open("w") as said:
        os.dup2(said.fileno(), sys.stdout.fileno())
        os.dup2(said.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    torch.set_num_threads(1)
    main(arguments)
