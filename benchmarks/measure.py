"""What every benchmark needs: seeded synthetic cells, and how a result is written down."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scfm.data.counts import CountRows

N_GENES = 20_000


def synthetic_batches(
    rng: np.random.Generator, n_cells: int, batch: int, *, depth: int = 5000
) -> list[CountRows]:
    """Cells like 10x ones: log-normal gene abundances and depths; 5,000 UMI, about 1,850 genes."""
    abundance = np.sort(rng.lognormal(0, 2.27, N_GENES))[::-1]
    abundance = rng.permutation(abundance / abundance.sum())
    batches = []
    for first in range(0, n_cells, batch):
        size = min(batch, n_cells - first)
        total = depth * rng.lognormal(-0.08, 0.4, (size, 1))
        dense = rng.poisson(total * abundance * rng.gamma(2.0, 0.5, (size, N_GENES)))
        cell, column = np.nonzero(dense)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=size))])
        batches.append(
            CountRows(
                indptr,
                column.astype(np.int32),
                dense[cell, column].astype(np.int32),
                np.arange(first, first + size),
            )
        )
    return batches


def spread(rates: Sequence[float]) -> list[int]:
    """Median, least, most."""
    return [round(float(x)) for x in (np.median(rates), min(rates), max(rates))]


def report(found: dict[str, Any]) -> None:
    """One JSON line: what was found, on which machine, at which commit."""
    print(json.dumps({**found, "machine": machine(), "commit": commit()}), flush=True)


def machine() -> str:
    """Model of the processor and number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores"


def commit() -> str | None:
    """The checkout's commit, None outside a repository or before the first."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip()[:12] if asked.returncode == 0 else None
