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
    allow_none: bool = False,
) -> tuple[Int8[np.ndarray, "window tf"], tuple[str, ...]]:
    """Labels and the TFs they are of, in the order of ``peaks``.

    ``relaxed`` are the lenient calls of some of the TFs; they are expected to hold the conservative
    ones. Under "half" a window is positive where more than ``share`` of it is covered. Peaks on
    chromosomes the windows do not have play no part.

    Raises InputError where a TF makes no window positive, unless ``allow_none`` (the windows are
    part of a genome: refuse_unlabelled then judges the whole); ConfigError for relaxed peaks of a
    TF without conservative ones.
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
        if tf in relaxed:
            table[_under(windows, relaxed[tf].renamed(names), rule, share), column] = -1
        table[_under(windows, strict.renamed(names), rule, share), column] = 1
    if not allow_none:
        refuse_unlabelled(table, windows, peaks, rule, share)
    return table, tuple(peaks)


def refuse_unlabelled(
    table: Int8[np.ndarray, "window tf"],
    windows: Intervals,
    peaks: Mapping[str, Intervals],
    rule: Rule,
    share: float,
) -> None:
    """Refuse labels in which a TF has no positive window (InputError), with the likely reason."""
    names = np.unique(windows.chrom).tolist()
    for column, (tf, called) in enumerate(peaks.items()):
        if not (table[:, column] == 1).any():
            raise InputError(_nothing_bound(tf, windows, called, names, rule, share))


def _under(
    windows: Intervals, peaks: Intervals, rule: Rule, share: float
) -> Bool[np.ndarray, " window"]:
    if rule == "centre":
        return holds_position(windows, peaks)
    return covered_bases(windows, peaks) > share * (windows.end - windows.start)


def _nothing_bound(
    tf: str, windows: Intervals, called: Intervals, names: list[str], rule: Rule, share: float
) -> str:
    peaks = called.renamed(names)
    if not len(peaks):
        theirs = ", ".join(np.unique(called.chrom)[:3].tolist()) or "none at all"
        return (
            f"{tf}: none of its {len(called):,} peaks is on a chromosome of the windows. The peaks "
            f"have {theirs}, the windows {', '.join(names[:3])}. Name peaks of this genome."
        )
    if rule == "centre":
        return f"{tf}: no window holds the middle of any of its {len(peaks):,} peaks."
    width, length = np.median(peaks.end - peaks.start), np.median(windows.end - windows.start)
    return (
        f"{tf}: no window lies more than {share:.0%} under its {len(peaks):,} peaks: they have "
        f"{width:,.0f} bases (median), the windows {length:,.0f}. Take shorter windows, or label "
        "by the peaks' middles: --overlap centre."
    )
