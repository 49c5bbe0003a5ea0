"""A function in a process of its own, forked from one that has imported what it needs.

in   a function of a module, its arguments, the modules to import beforehand
out  the process, and once it has ended its exit code and what it said

A fresh interpreter takes seconds to import what a forked one has.
"""

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 300  # a process may take


@dataclass(frozen=True)
class Done:
    """What became of a process; the exit code is minus the signal's number where one ended it."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A running process. ``preload`` counts where it is the first of the test session."""

    def __init__(self, preload: Sequence[str], function: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        self.folder = tempfile.TemporaryDirectory()
        said = (str(Path(self.folder.name) / name) for name in ("stdout", "stderr"))
        self.process = context.Process(target=_call, args=(*said, function, arguments))
        self.process.start()

    def kill(self) -> None:
        self.process.kill()

    def signal_after(self, line: str, number: int) -> None:
        """Send a signal once the process has said a line on stderr that begins so, or has ended."""
        path = Path(self.folder.name) / "stderr"
        while self.process.is_alive():
            said = path.read_text().splitlines() if path.exists() else []
            if any(one.startswith(line) for one in said):
                assert self.process.pid is not None
                os.kill(self.process.pid, number)
                return
            time.sleep(0.01)

    def wait(self) -> Done:
        """Its end; one that takes too long is killed."""
        self.process.join(SECONDS)
        self.process.kill()
        self.process.join()
        with self.folder as folder:
            said = [Path(folder) / name for name in ("stdout", "stderr")]
            out, err = (path.read_text() if path.exists() else "" for path in said)
        assert self.process.exitcode is not None
        return Done(self.process.exitcode, out, err)


def start_scfm(*arguments: Any, most_bytes: int | None = None) -> Forked:
    """``scfm ARGUMENTS`` in a process of its own, whose files may not grow beyond a size."""
    preload = ["scfm.cli.app", "scfm.tasks.pretrain", "scfm.tools.embedding"]
    return Forked(preload, _scfm, [str(argument) for argument in arguments], most_bytes)


def _scfm(arguments: list[str], most_bytes: int | None) -> None:
    from scfm.cli.app import main

    limit_files(most_bytes)
    main(arguments)


def limit_files(most_bytes: int | None) -> None:
    """A full disk, for this process: writes beyond a size fail."""
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


def _call(stdout: str, stderr: str, function: Callable[..., Any], arguments: Any) -> None:
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        with Path(path).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    try:
        function(*arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
