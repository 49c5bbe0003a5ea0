"""The SLURM script, run here by stand-ins for sbatch, srun and scontrol."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load_file

from scfm.cli.app import main

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm.sbatch"
SETTINGS = [
    *("--set", "train.steps=20", "--set", "model.d_model=16", "--set", "loader.batch_size=8"),
    *("--set", "train.validate_every=5", "--set", "logging.every_n_steps=1"),
    *("--set", "train.accelerator=cpu"),
]
JOB = 4242

# Runs the job in the foreground and in its own place: signals to it are signals to the batch shell.
SBATCH = """#!/usr/bin/env bash
exec bash "$@"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
    show) echo localhost ;;
    requeue) echo "$2" >> "$REQUEUED" ;;
esac
"""
# Passes signals on, and ends all tasks when one fails. That is done without mercy here.
SRUN = """#!{python}
import os, signal, subprocess, sys, time
command = sys.argv[1:]
assert "--kill-on-bad-exit=1" in command
while command[0].startswith("-"):
    command.pop(0)
tasks = []
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda n, _: [task.send_signal(n) for task in tasks])
for task in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task), "SLURM_NODEID": "0"}}
    tasks.append(subprocess.Popen(command, env={{**os.environ, **own}}))
while any(task.poll() is None for task in tasks):
    time.sleep(0.05)
    if any(task.returncode for task in tasks):
        for task in tasks:
            task.kill()
sys.exit(max(t.returncode if t.returncode >= 0 else 128 - t.returncode for t in tasks))
"""


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The environment of a job of two tasks on one machine."""
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text.format(python=sys.executable) if name == "srun" else text)
        (tmp_path / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(JOB),
        "SLURM_JOB_NAME": "scfm",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }


def submit(cluster: dict[str, str], run: Path, cells: Path, *, stop: bool = False) -> str:
    """Submit the job, warn it after some steps that its time is up; what it said."""
    command = ["sbatch", SCRIPT, run, "scfm-tiny", cells, "--", *SETTINGS]
    # what SLURM does with --signal=B:USR1@300
    with subprocess.Popen(command, env=cluster, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        said = []
        for line in job.stderr:
            said.append(line)
            if stop and line.startswith("step 3/"):
                job.send_signal(signal.SIGUSR1)
    assert job.returncode == 0, "".join(said)
    return "".join(said)


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.multiprocess
@pytest.mark.slow
def test_job_out_of_time_is_queued_anew_and_loses_nothing(cluster, demo_cells, tmp_path):
    """The oracle is the plain command in this process, never stopped."""
    cells = tmp_path / "cells.h5ad"
    ad.read_h5ad(demo_cells / "pbmc3k.h5ad")[::20].copy().write_h5ad(cells)
    requeued, stopped, straight = (tmp_path / n for n in ("requeued", "stopped", "straight"))

    said = submit(cluster, stopped, cells, stop=True)
    assert said.count("scfm: Stopped at step") == 1, said
    assert "Traceback" not in said
    (checkpoint,) = (stopped / "checkpoints").iterdir()
    assert requeued.read_text() == f"{JOB}\n"
    assert not (stopped / "model").exists()

    said = submit(cluster, stopped, cells)
    step = int(checkpoint.stem.partition("=")[2])
    assert f"step {step + 1}/20 " in said
    assert f"step {step}/20 " not in said
    assert requeued.read_text() == f"{JOB}\n"  # a run that ends is not

    arguments = ["--config", "scfm-tiny", "--data", cells, "--out", straight, *SETTINGS]
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", *map(str, arguments)])
    for name in ("step", "loss", "val_loss"):
        np.testing.assert_allclose(column(stopped, name), column(straight, name), rtol=1e-4)
    theirs = load_file(straight / "model" / "model.safetensors")
    for name, ours in load_file(stopped / "model" / "model.safetensors").items():
        np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-4, err_msg=name)


def test_failure_is_not_queued_anew(cluster, tmp_path):
    """By a task that fails at once, as bad input would; its exit code is the job's."""
    (tmp_path / "python").write_text("#!/usr/bin/env bash\nexit 2\n")
    (tmp_path / "python").chmod(0o755)
    command = ["sbatch", SCRIPT, tmp_path / "run", "scfm-tiny", "cells.h5ad"]
    assert subprocess.run(command, env=cluster).returncode == 2
    assert not (tmp_path / "requeued").exists()
