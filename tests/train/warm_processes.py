"""The processes of a run, forked from one that has imported everything: seconds less for each.

in   how many, and the command's arguments
out  exit codes, and what was said

They find the environment that torchrun gives to its workers. What torchrun itself does is tested
where it is what is tested: tests/train/test_processes.py, tests/cli/test_launching.py.
"""

import os
import socket
import time
from collections.abc import Sequence

from tests.forked import Done, Forked

PRELOADED = ["scfm.cli.app", "scfm.tasks.pretrain", "deepspeed"]


def run_processes(n: int, arguments: Sequence[str]) -> Done:
    """``scfm ARGUMENTS`` in ``n`` processes of one run, one thread each.

    Of the processes together: the first exit code that is not 0, and all that was said.
    """
    port = _free_port()
    processes = [
        Forked(PRELOADED, _work, _environment(rank, n, port), list(arguments)) for rank in range(n)
    ]
    while not any(codes := [process.code for process in processes]) and None in codes:
        time.sleep(0.02)
    if any(codes):  # one failed: torchrun ends the others
        for process in processes:
            process.terminate()
    ends = [process.wait() for process in processes]
    said = ("".join(getattr(end, stream) for end in ends) for stream in ("stdout", "stderr"))
    return Done(next((end.returncode for end in ends if end.returncode), 0), *said)


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


def _work(environment: dict[str, str], arguments: list[str]) -> None:
    import torch

    from scfm.cli.app import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    main(arguments)
