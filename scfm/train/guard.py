"""Losses that are not numbers, and losses that jump: found, said, and kept from doing harm.

in   a trainer's events
out  DivergedError with the cells named in a file; a line in the log
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a step goes wrong."""

    on_nonfinite: Literal["stop", "skip"] = "stop"  # a step whose loss or gradient is not finite
    max_skipped: int = 10  # steps; more stop the run
    spike_sigmas: float = 6.0  # a loss so far above the running mean is logged as a spike

    def __post_init__(self) -> None:
        if self.max_skipped < 0:
            raise ValueError(f"guard.max_skipped must be at least 0, got {self.max_skipped}")
        if not self.spike_sigmas > 0:
            raise ValueError(f"guard.spike_sigmas must be positive, got {self.spike_sigmas}")
