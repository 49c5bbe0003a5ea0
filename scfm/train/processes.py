"""The processes of a run, as torchrun or a cluster script started them.

in   the environment: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
out  who this process is, and what the first process decided for all
"""

import functools
import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

from scfm.errors import Interrupted

POLL_SECONDS = 0.05
_decisions = itertools.count()


class AnotherSaysWhy(Interrupted):
    """This process ends since all do, or since another has; it is not the one to explain it."""


def is_one_of_several() -> bool:
    """Whether this process was started by torchrun or the like; it may still be the only one."""
    # Not WORLD_SIZE or RANK: some clusters set these for whole machines.
    return "LOCAL_RANK" in os.environ


def rank() -> int:
    """This process's number among all; 0 speaks, decides and writes."""
    return int(os.environ.get("RANK", "0")) if is_one_of_several() else 0


def world_size() -> int:
    """Processes of this run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1")) if is_one_of_several() else 1


def local_world_size() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if is_one_of_several() else 1


def decided_by_first(decide: Callable[[], Any]) -> Any:
    """What ``decide`` returns in the first process, in every process; a value that JSON holds.

    For what is read from a run's folder: while one process looks another may already write, and
    a network file system shows two machines two states. All processes must call it in the same
    order. Raises what ``decide`` raises in the first process, AnotherSaysWhy in the others.
    """
    if world_size() == 1:
        return decide()
    name = f"decision {next(_decisions)}"
    if rank() == 0:
        told: dict[str, Any] = {"refused": True}
        try:
            told = {"value": decide()}
        finally:
            _store().set(name, json.dumps(told))
    else:
        told = _told_by_first(name)
        if "refused" in told:
            raise AnotherSaysWhy("The first process stopped; it says why.")
    return told["value"]


def _told_by_first(name: str) -> dict[str, Any]:
    from torch.distributed import DistNetworkError

    try:
        # Asked again and again rather than waited for: a signal can end it.
        while not _store().check([name]):
            time.sleep(POLL_SECONDS)
        return json.loads(_store().get(name))
    except DistNetworkError as error:
        # Without torchrun the store is the first process's own, and ends with it.
        raise AnotherSaysWhy("The first process is gone.") from error


@functools.cache
def _store() -> Any:
    """The key-value store through which the processes find each other."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return dist.PrefixStore("scfm", store)  # pyright: ignore[reportPrivateImportUsage]
