"""Values -> the words and digits a reader is shown. Three decimals for scores, everywhere.

in   numbers, intervals, any value a provenance record may hold
out  text, not yet escaped for HTML
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scfm.evaluate.results import Interval

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def words(key: str) -> str:
    """``counts_covered`` as a reader is shown it."""
    return key.removeprefix("n_").replace("_", " ")


def sentence(key: str) -> str:
    """The same with a capital, for what stands alone."""
    text = words(key)
    return text[:1].upper() + text[1:]


def score(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else DASH


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS) if math.isfinite(value) else DASH


def span(interval: Interval, *, sign: bool = False) -> str:
    """The interval's ends: 0.81-0.86, or -0.02 to +0.01 where they carry a sign."""
    if sign:
        return f"{signed(interval.low)} to {signed(interval.high)}"
    return f"{score(interval.low)}{DASH}{score(interval.high)}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def shown(key: str, value: Any) -> str:
    """A value whose key says how it reads: seeds without separators, seconds as a duration."""
    if "seed" in key and isinstance(value, int | np.integer):
        return str(value)
    if key == "seconds" and isinstance(value, float | int):
        return duration(value)
    return plain(value)


def plain(value: Any) -> str:
    """Any single value or list of them as a reader is shown it."""
    if value is None:
        return DASH
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(k))} {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return ", ".join(plain(v) for v in value)
    return str(value)
