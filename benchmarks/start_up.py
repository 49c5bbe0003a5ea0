"""Seconds that ``scfm --help`` takes, beside an empty Python.

One JSON line on stdout; fresh processes, interleaved, wall clock.

    python benchmarks/start_up.py [--rounds 15]
"""

import argparse
import subprocess
import sys
import time

import numpy as np
from measure import report


def main() -> None:
    """Time both commands and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    commands = {
        "scfm --help": [sys.executable, "-m", "scfm.cli.app", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(asked.rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    report(
        {
            "what": "start-up of scfm --help",
            "unit": "seconds (median, min, max)",
            **{
                name: [round(float(f(taken[1:])), 3) for f in (np.median, min, max)]
                for name, taken in seconds.items()
            },
            "rounds": asked.rounds,
        }
    )


if __name__ == "__main__":
    main()
