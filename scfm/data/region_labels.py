"""Peaks of a TF -> labels of windows in three states.

in   windows; peaks called conservatively and, where there are any, called leniently
out  1 bound, 0 not bound, -1 called leniently only: it may be either and is no example

Which window a peak makes positive is a rule: "half", more than half of the window's bases lie under
a peak, as scFAN and FactorNet have it; "centre", the peak's summit or middle lies in the window,
for peaks that are points (ChIP-exo) or much shorter than the window.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int8

from scfm.data.intervals import Intervals, covered_bases, holds_position
from scfm.errors import ConfigError, InputError

Rule = Literal["half", "centre"]


def label_windows(
    windows: Intervals,
    peaks: Mapping[str, Intervals],
    relaxed: Mapping[str, Intervals] | None = None,
    *,
    rule: Rule = "half",
    share: float = 0.5,
) -> tuple[Int8[np.ndarray, "window tf"], tuple[str, ...]]:
    """Labels and the TFs they are of, in the order of ``peaks``.

    ``relaxed`` are the lenient calls of some of the TFs; they are expected to hold the conservative
    ones. Under "half" a window is positive where more than ``share`` of it is covered. Peaks on
    chromosomes the windows do not have play no part.

    Raises InputError where a TF has no peak on any of the windows' chromosomes or makes no window
    positive, ConfigError for relaxed peaks of a TF without conservative ones.
    """
    relaxed = relaxed or {}
    strangers = sorted(set(relaxed) - set(peaks))
    if strangers:
        raise ConfigError(
            f"Relaxed peaks of {', '.join(strangers)} without conservative ones. Name both files: "
            f"peaks {strangers[0]}=strict.bed, relaxed {strangers[0]}=lenient.bed."
        )
    names = np.unique(windows.chrom).tolist()
    table = np.zeros((len(windows), len(peaks)), dtype=np.int8)
    for column, (tf, strict) in enumerate(peaks.items()):
        is_bound = _under(windows, _on(strict, names, tf), rule, share)
        if not is_bound.any():
            raise InputError(_nothing_bound(tf, windows, strict.renamed(names), rule, share))
        if tf in relaxed:
            maybe = _under(windows, _on(relaxed[tf], names, f"{tf} (relaxed)"), rule, share)
            table[maybe, column] = -1
        table[is_bound, column] = 1
    return table, tuple(peaks)


def _under(
    windows: Intervals, peaks: Intervals, rule: Rule, share: float
) -> Bool[np.ndarray, " window"]:
    if rule == "centre":
        return holds_position(windows, peaks)
    return covered_bases(windows, peaks) > share * (windows.end - windows.start)


def _on(peaks: Intervals, names: list[str], tf: str) -> Intervals:
    kept = peaks.renamed(names)
    if not len(kept):
        theirs = ", ".join(np.unique(peaks.chrom)[:3].tolist()) or "none at all"
        raise InputError(
            f"{tf}: none of its {len(peaks):,} peaks is on a chromosome of the windows. The peaks "
            f"have {theirs}, the windows {', '.join(names[:3])}. Name peaks of this genome."
        )
    return kept


def _nothing_bound(tf: str, windows: Intervals, peaks: Intervals, rule: Rule, share: float) -> str:
    if rule == "centre":
        return f"{tf}: no window holds the middle of any of its {len(peaks):,} peaks."
    width, length = np.median(peaks.end - peaks.start), np.median(windows.end - windows.start)
    return (
        f"{tf}: no window lies more than {share:.0%} under its {len(peaks):,} peaks: they have "
        f"{width:,.0f} bases (median), the windows {length:,.0f}. Take shorter windows, or label "
        "by the peaks' middles: --overlap centre."
    )
