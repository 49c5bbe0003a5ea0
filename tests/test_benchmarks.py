"""Benchmarks that need a machine which is not here still run, at a toy size, and claim nothing."""

import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_gpu_table_at_a_toy_size():
    done = run("--tiny", "--presets", "scfm-100m", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    found = json.loads(line)
    assert found["tiny"]
    (row,) = found["presets"]
    assert row["preset"] == "scfm-100m"
    assert row["ideal"] > 1.5
    assert row["tokens_per_s"][0] > 0
    assert any(text.startswith("scfm-100m") for text in table)
    if not torch.cuda.is_available():
        assert row["mfu"] is None
        assert "toy size" in table[0]


def test_without_a_gpu_nothing_is_claimed():
    if torch.cuda.is_available():
        return
    done = run()
    assert done.returncode != 0
    assert "There is no GPU here" in done.stderr
