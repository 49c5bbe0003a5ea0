"""One process at a time in a folder; one that is just ending is waited for."""

import os
import subprocess
import sys
import threading

import pytest

from scfm.data.lock import LOCK, Occupied, release_lock, take_lock


def test_lock_of_a_process_that_is_ending_is_waited_for(tmp_path):
    held = take_lock(tmp_path / LOCK)
    ending = threading.Timer(0.3, release_lock, [held])
    ending.start()
    release_lock(take_lock(tmp_path / LOCK))
    ending.join()


def test_lock_of_a_killed_process_is_free(tmp_path):
    """Killed and at once asked again, as a shell's ``kill -9 PID; scfm pretrain --resume`` is."""
    hold = (
        "import sys, time; from pathlib import Path; from scfm.data.lock import take_lock;"
        "take_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        owner.kill()
        release_lock(take_lock(tmp_path / LOCK))


def test_held_lock_is_refused_with_its_owner(tmp_path, monkeypatch):
    monkeypatch.setattr("scfm.data.lock.GRACE_SECONDS", 0.1)
    held = take_lock(tmp_path / LOCK)
    with pytest.raises(Occupied, match=f"process {os.getpid()} on"):
        take_lock(tmp_path / LOCK)
    release_lock(held)
