"""Every method learns and answers on the same folds: predictions of all judged cells, calibrated.

in   Cells, their labels, a SplitPlan, Methods
out  MethodRun a method: probabilities of each judged cell, before and after calibration

Calibration is fitted inside the cells learned from: they are split again (by donor where donors
are named), each part is answered by a method that learned from the others, and the temperature and
the threshold of "unknown" come from these answers. No judged cell has a part in it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Shaped
from threadpoolctl import threadpool_limits

from scfm.errors import ConfigError
from scfm.evaluate.splits import Fold, SplitPlan, hold_out_cells, hold_out_groups
from scfm.evaluate.type_methods import Cells, Method, Reference
from scfm.tasks.probability_calibration import ProbabilityCalibration, fit_probability_calibration
from scfm.tasks.type_probabilities import TypeProbabilities

Labels = Shaped[np.ndarray, " cell"]


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How methods are run.

    Attributes
    ----------
    n_folds
        Rounds of the split, where cells or groups are held out.
    n_inner_folds
        Parts of the cells learned from that calibration is fitted on, one after the other.
    unknown
        Labels that are left out of what is learned, one at a time, to see whether their cells are
        found to be unlike all that was; None: every label. Empty: none.
    n_bootstrap
        Resamples of an interval.
    seeds
        Of splits and of methods that draw. The first one's results are reported; the others' say
        how far macro-F1 moves with the seed.
    """

    n_folds: int = 5
    n_inner_folds: int = 3
    unknown: tuple[str, ...] | None = None
    n_bootstrap: int = 1_000
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.n_folds < 2 or self.n_inner_folds < 2:
            raise ConfigError(
                f"n_folds is {self.n_folds}, n_inner_folds {self.n_inner_folds}; at least 2 each."
            )
        if self.n_bootstrap < 1:
            raise ConfigError(f"n_bootstrap must be at least 1, got {self.n_bootstrap}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be one or more different numbers, got {self.seeds}.")


@dataclass(frozen=True)
class TypingData:
    """All cells of an evaluation: those learned from and those judged.

    ``groups`` are donors (or data sets), "" where none is named; None without a column.
    """

    cells: Cells
    labels: Labels = field(repr=False)
    groups: Labels | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MethodRun:
    """One method's answers for the judged cells, in the order of ``SplitPlan.judged``.

    Attributes
    ----------
    probabilities, raw
        After and before calibration. Classes are those of all folds.
    is_named
        Whether the calibrated threshold lets the cell have a name.
    calibrations
        One a fold.
    novelty
        Per label left out of what was learned: how little each judged cell belongs to any class.
        Empty for a method that learned elsewhere.
    """

    method: Method
    probabilities: TypeProbabilities = field(repr=False)
    raw: TypeProbabilities = field(repr=False)
    is_named: Shaped[np.ndarray, " judged"] = field(repr=False)
    calibrations: tuple[ProbabilityCalibration, ...]
    novelty: dict[str, Float[np.ndarray, " judged"]] = field(repr=False)


def run_methods(
    data: TypingData,
    plan: SplitPlan,
    methods: Sequence[Method],
    config: ProtocolConfig,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[MethodRun]:
    """Let every method learn and answer on every fold. Progress counts rounds of one method."""
    twice = [key for key, n in Counter(method.key for method in methods).items() if n > 1]
    if twice:
        raise ConfigError(
            f"Two methods go by '{twice[0]}', so their answers could not be told apart. Name each "
            "model and each way of fine-tuning once, and no model as a baseline."
        )
    unknown = labels_left_out(data, plan, config)
    total, done = len(methods) * len(plan.folds), 0
    parts: dict[str, list[_FoldRun]] = {method.key: [] for method in methods}
    # At these sizes threads wait for each other: one is several times cheaper and no slower.
    with threadpool_limits(1):
        for fold in plan.folds:
            prepared = _Prepared.of(data, fold, unknown, config, seed)
            for method in methods:
                parts[method.key].append(_run_fold(method, prepared))
                done += 1
                on_progress(done, total)
    return [_joined(method, parts[method.key], unknown) for method in methods]


def labels_left_out(data: TypingData, plan: SplitPlan, config: ProtocolConfig) -> tuple[str, ...]:
    """Labels whose cells are to be found unknown: judged, and leaving two others to learn."""
    labels = np.asarray(data.labels).astype(str)
    judged = {str(label) for label in labels[plan.judged]}
    learned = {str(label) for fold in plan.folds for label in labels[fold.train]}
    both = judged & learned
    if config.unknown is None:
        return tuple(sorted(both)) if len(learned) > 2 else ()
    strange = sorted(set(config.unknown) - both)
    if strange or (config.unknown and len(learned) < 3):
        raise ConfigError(
            f"{', '.join(map(repr, strange)) or 'A label'} cannot be left out to test 'unknown': "
            f"wanted labels that are both learned and judged ({', '.join(sorted(both))}), with two "
            "others to learn."
        )
    return config.unknown


@dataclass(frozen=True)
class _Prepared:
    """The cells of one fold, cut once for all methods, so that they share what they fit alike."""

    reference: Reference
    test: Cells
    inner: tuple[tuple[Reference, Cells, Shaped[np.ndarray, " _"]], ...]
    without: dict[str, Reference]

    @classmethod
    def of(
        cls,
        data: TypingData,
        fold: Fold,
        unknown: Sequence[str],
        config: ProtocolConfig,
        seed: int,
    ) -> "_Prepared":
        labels = data.labels.astype(str)[fold.train]
        reference = Reference(data.cells.part(fold.train), labels, seed)
        groups = None if data.groups is None else data.groups[fold.train]
        inner = [
            (reference.part(part.train), reference.cells.part(part.test), labels[part.test])
            for part in inner_folds(labels, groups, config.n_inner_folds, seed)
            if len(set(labels[part.train].tolist())) > 1
        ]
        without = {label: reference.part(np.flatnonzero(labels != label)) for label in unknown}
        return cls(reference, data.cells.part(fold.test), tuple(inner), without)


def inner_folds(labels: Labels, groups: Labels | None, n_folds: int, seed: int) -> tuple[Fold, ...]:
    """How the cells learned from are split again: by group where at least two are named."""
    if groups is not None and len(set(groups.tolist())) > 1:
        return hold_out_groups(groups, labels, n_folds=n_folds, seed=seed, by="groups").folds
    return hold_out_cells(labels, n_folds=n_folds, seed=seed).folds


@dataclass(frozen=True)
class _FoldRun:
    raw: TypeProbabilities
    calibrated: TypeProbabilities
    is_named: Shaped[np.ndarray, " judged"]
    calibration: ProbabilityCalibration
    novelty: dict[str, Float[np.ndarray, " judged"]]

    @classmethod
    def of(
        cls,
        raw: TypeProbabilities,
        calibrated: TypeProbabilities,
        calibration: ProbabilityCalibration,
        novelty: dict[str, Float[np.ndarray, " judged"]],
    ) -> "_FoldRun":
        is_named = calibrated.labels(calibration.threshold, unknown="") != ""
        return cls(raw, calibrated, is_named, calibration, novelty)


def _run_fold(method: Method, prepared: _Prepared) -> _FoldRun:
    raw = method.fit(prepared.reference).predict(prepared.test)
    if method.own_calibration is not None:  # it learned elsewhere: nothing here can be left out
        return _FoldRun.of(raw, raw, method.own_calibration, {})
    calibration = _calibrated(method, prepared)
    novelty = {
        label: method.fit(others).predict(prepared.test).unknown_score
        for label, others in prepared.without.items()
    }
    return _FoldRun.of(raw, calibration.apply(raw), calibration, novelty)


def _calibrated(method: Method, prepared: _Prepared) -> ProbabilityCalibration:
    """Temperature and threshold from cells of known type that had no vote on themselves."""
    if not prepared.inner:
        return ProbabilityCalibration()
    answers = [method.fit(reference).predict(cells) for reference, cells, _ in prepared.inner]
    truth = np.concatenate([labels for _, _, labels in prepared.inner])
    return fit_probability_calibration(on_classes(answers), truth)


def on_classes(parts: Sequence[TypeProbabilities]) -> TypeProbabilities:
    """Answers of several fits as one: a class that a fit did not know has probability 0 there."""
    classes = sorted({name for part in parts for name in part.classes})
    place = {name: at for at, name in enumerate(classes)}
    widened = []
    for part in parts:
        wide = np.zeros((len(part.probabilities), len(classes)))
        wide[:, [place[name] for name in part.classes]] = part.probabilities
        widened.append(TypeProbabilities(tuple(classes), wide, part.is_outlier, part.novelty))
    return TypeProbabilities.joined(widened)


def _joined(method: Method, parts: Sequence[_FoldRun], unknown: Sequence[str]) -> MethodRun:
    return MethodRun(
        method,
        on_classes([part.calibrated for part in parts]),
        on_classes([part.raw for part in parts]),
        np.concatenate([part.is_named for part in parts]),
        tuple(part.calibration for part in parts),
        {
            label: np.concatenate([part.novelty[label] for part in parts])
            for label in unknown
            if label in parts[0].novelty
        },
    )
