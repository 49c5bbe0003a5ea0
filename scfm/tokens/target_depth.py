"""How deep a cell the model is asked for: "t4", "f2", "a1" or a number -> T of every cell.

in   what a user wrote, log10 of the cells' own total counts (S)
out  TargetDepth: T of each cell; its text, for settings; a warning where T is below S

Source of the letters: get_embedding.py of biomap-research/scFoundation (its ``--tgthighres``).
"""

import math
import re
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from scfm.errors import ConfigError, ScfmWarning

DEEPEST = 9.0  # log10 of a total count; a bulk sample of a billion reads
_SLACK = 1e-4  # of log10: "f1" is S itself but for rounding


@dataclass(frozen=True)
class TargetDepth:
    """The depth asked of the model (T), fixed or relative to each cell's own (S).

    Attributes
    ----------
    kind
        "source": T is S. "t": T is ``amount``. "f": T is log10(``amount`` x total count). "a": T
        is S + ``amount``.
    amount
        As ``kind`` says; not used for "source".
    """

    kind: Literal["source", "t", "f", "a"] = "source"
    amount: float = 0.0

    def __post_init__(self) -> None:
        is_right = {
            "source": self.amount == 0,
            "t": 0 <= self.amount <= DEEPEST,
            "f": 0 < self.amount <= 10**DEEPEST,
            "a": abs(self.amount) <= DEEPEST,
        }[self.kind]
        if not is_right:  # also where the amount is NaN
            raise ConfigError(f"target_depth is '{self}'. {_WANTED}")

    def __str__(self) -> str:
        """As a user would write it; "source" for the cell's own depth."""
        return self.kind if self.kind == "source" else f"{self.kind}{self.amount:.6g}"

    def of(self, source_depth: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
        """T of cells whose own depths (S, log10 of total counts) are given.

        Raises ConfigError where it would be the log10 of less than one molecule.
        """
        if self.kind == "source":
            return source_depth.copy()
        if self.kind == "t":
            return np.full_like(source_depth, self.amount)
        added = math.log10(self.amount) if self.kind == "f" else self.amount
        target_depth = source_depth + np.asarray(added, dtype=source_depth.dtype)
        if (target_depth < 0).any():  # how many is not said: these may be a few of the cells
            raise ConfigError(
                f"target_depth is '{self}', which asks cells for less than one count. {_WANTED}"
            )
        return target_depth

    def is_below(self, source_depth: Float[np.ndarray, " cell"]) -> Bool[np.ndarray, " cell"]:
        """True for cells that are deeper themselves than they are asked for: T < S."""
        return self.of(source_depth) < source_depth - _SLACK


# Stricter than float(), which takes "4_0", " 4", "nan" and other scripts' digits.
_WRITTEN = re.compile(r"([tfa]?)([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)")
_KINDS: dict[str, Literal["t", "f", "a"]] = {"": "t", "t": "t", "f": "f", "a": "a"}
_WANTED = (
    f"Wanted: 't' and log10 of a total count from 0 to {DEEPEST:g} ('t4' for 10,000 counts; a "
    "number alone means the same), 'f' and a factor above 0 on each cell's own total ('f2' for "
    "twice as many counts), 'a' and what to add to its log10 ('a1' for ten times as many), or "
    "'source' for the cell's own depth."
)


def parse_target_depth(text: float | str | None) -> TargetDepth:
    """The depth a user asked for.

    Parameters
    ----------
    text
        "t4": log10 of the total count is 4; the number 4 means the same. "f2": twice the cell's
        own total count. "a1": 1 more than the log10 of the cell's own. "source": its own; None is
        the same here, where a model's or a tool's default has been put in its place already.

    Raises
    ------
    ConfigError
        Anything else.
    """
    if text is None or text == "source":
        return TargetDepth()
    written = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
    if written:
        return TargetDepth(_KINDS[written[1]], float(written[2]))
    if isinstance(text, str | bool) or not isinstance(text, Real):
        raise ConfigError(f"target_depth is {text!r}. {_WANTED}")
    return TargetDepth("t", float(text))


def warn_if_below(n_below: int, n_cells: int, target_depth: TargetDepth) -> None:
    """ScfmWarning where cells were asked for at a lower depth (T) than their own (S).

    Training keeps a depth or raises it (T >= S): what a model makes of a lower T, nothing has
    taught it. ``n_below`` of ``n_cells`` are so; see `TargetDepth.is_below`.
    """
    if n_below:
        warnings.warn(
            f"{n_below:,} of {n_cells:,} cells have more counts than the target depth "
            f"'{target_depth}' asks for (T below S). The model was trained to keep or to raise a "
            "cell's depth, never to lower it: ask for more, or for 'f1', each cell's own depth.",
            ScfmWarning,
            stacklevel=3,
        )
