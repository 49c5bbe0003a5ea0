"""scfm evaluate tfbinding: does a model know where TFs are bound, and better than plain means?

in   RegionExamples with labels, a model, how it was split; by choice motifs, the scFAN network,
     cells with types
out  BindingEvaluation: {seen, held-out cell} x {seen, held-out chromosome}, every method on the
     same regions, intervals over chromosomes; a BindingCalibration of the model

Beside the model: prevalence, accessibility alone, the best motif hit, both together, and what ChIP
found in other cells at the same region, which knows the place and is hard to beat; and that
together with the model, as one would use them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, Shaped
from scipy.special import expit, logit

from scfm.data.region_examples import RegionExamples
from scfm.data.region_split import VALIDATION, RegionSplit
from scfm.errors import ConfigError
from scfm.evaluate.motif_hits import best_hits, read_motifs
from scfm.evaluate.tf_cells import cell_scores
from scfm.evaluate.tfbinding_baselines import (
    Scored,
    Seen,
    by_accessibility,
    by_motifs,
    by_other_cells,
    by_prevalence,
    combined,
    look,
)
from scfm.evaluate.tfbinding_pairs import Judged, judged, side_facts
from scfm.evaluate.tfbinding_result import BindingEvaluation, CellScores
from scfm.evaluate.tfbinding_scoring import calibration_of, quadrants
from scfm.model.dna import BindingModel
from scfm.tasks.tf_calibration import BindingCalibration, fit_binding_calibration
from scfm.tasks.tfbinding import predict_logits

Progress = Callable[[str, int, int], None]
Representations = Mapping[str, tuple[str, str, Num[np.ndarray, "cell _"]]]
NAME, SCFAN = "scfm", "scfan"


@dataclass(frozen=True, kw_only=True)
class BindingEvaluationConfig:
    """How binding is judged."""

    max_regions: int = 50_000  # of training, of validation and of test chromosomes each, at most
    n_bootstrap: int = 1_000  # resamples of whole chromosomes
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_regions", "n_bootstrap", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class JudgedCells:
    """Cells with types, and what they are clustered by: (name, note, values) by key."""

    types: Shaped[np.ndarray, " cell"]
    representations: Representations = field(repr=False)


def evaluate_tfbinding(
    examples: RegionExamples,
    model: BindingModel,
    split: RegionSplit,
    *,
    others: Mapping[str, BindingModel] | None = None,
    motifs: str | Path | None = None,
    cells: JudgedCells | None = None,
    config: BindingEvaluationConfig | None = None,
    facts: Mapping[str, Any] | None = None,
    on_progress: Progress = lambda what, done, total: None,
) -> tuple[BindingEvaluation, BindingCalibration]:
    """Judge a model beside its baselines on the same regions.

    Parameters
    ----------
    others
        Networks that count as baselines, by key: the scFAN network under "scfan".
    motifs
        A MEME file; without one there are no motif baselines.

    Raises LabelError where nothing can be judged.
    """
    config = config or BindingEvaluationConfig()
    found = judged(examples, split, model.tasks, max_regions=config.max_regions, seed=config.seed)
    seen = look(examples, found, lambda done, total: on_progress("read", done, total))
    raw = model_scores(examples, found, model, NAME, "model", config, on_progress)
    calibration = _calibrated(found, raw, model)
    methods = [raw, *_networks(examples, found, others or {}, config, on_progress)]
    methods, notes = _with_baselines(methods, examples, found, seen, motifs, on_progress)
    results, told = quadrants(
        found,
        methods,
        n_bootstrap=config.n_bootstrap,
        seed=config.seed,
        on_progress=lambda done, total: on_progress("score", done, total),
    )
    scores: list[CellScores] = []
    if cells is not None:
        scores = cell_scores(cells.representations, cells.types, seed=config.seed)
    data = {
        **(facts or {}),
        "n_regions": examples.n_regions,
        "bases_of_a_window": examples.length,
        "tracks": list(examples.tracks),
        "groups": list(examples.groups),
        **side_facts(found),
    }
    settings = {**asdict(config), "split": asdict(split)}
    after = _by_pair(found, model.tasks, calibration)
    measured = calibration_of(found, expit(raw.score), expit(after(raw.score)))
    evaluation = BindingEvaluation(data, settings, results, measured, scores, told, notes)
    return evaluation, calibration


def model_scores(
    examples: RegionExamples,
    found: Judged,
    model: BindingModel,
    key: str,
    kind: Any,
    config: BindingEvaluationConfig,
    on_progress: Progress,
) -> Scored:
    """A network's logits at the judged regions; none for TFs that no seen group has labels of."""
    score = np.full(found.labels.shape, np.nan, dtype=np.float32)
    taught = taught_tasks(found)
    position = {task: i for i, task in enumerate(model.tasks) if task in taught}
    device = next(model.parameters()).device
    for number, group in enumerate(found.groups):
        same = np.full(len(found.region), group, dtype=np.int64)
        logits = predict_logits(
            model, examples, found.region, same, batch_size=config.batch_size, device=device
        )
        for i, pair in enumerate(found.pairs):
            if pair.group == group and pair.task in position:
                score[:, i] = logits[:, position[pair.task]]
        on_progress(f"predict {key}", number + 1, len(found.groups))
    name = {NAME: "scfm", SCFAN: "scFAN network"}.get(key, key)
    what = "DNA alone" if not model.config.n_tracks else "DNA and accessibility"
    return Scored(key, name, kind, f"{model.config.family}, {what}", score)


def taught_tasks(found: Judged) -> set[str]:
    """Those with labels in a group that is not held out: of others a network knows nothing."""
    return {pair.task for pair in found.pairs if not pair.is_held_out}


def _networks(
    examples: RegionExamples,
    found: Judged,
    others: Mapping[str, BindingModel],
    config: BindingEvaluationConfig,
    on_progress: Progress,
) -> list[Scored]:
    return [
        model_scores(examples, found, model, key, "baseline", config, on_progress)
        for key, model in others.items()
    ]


def _with_baselines(
    methods: list[Scored],
    examples: RegionExamples,
    found: Judged,
    seen: Seen,
    motifs: str | Path | None,
    on_progress: Progress,
) -> tuple[list[Scored], list[str]]:
    """All methods, and what has to be said of those that are missing."""
    notes, taught = [], taught_tasks(found)
    untaught = list(dict.fromkeys(p.task for p in found.pairs if p.task not in taught))
    if untaught:
        notes.append(
            f"No group of cells that is not held out has labels of {', '.join(untaught)}: networks "
            "say nothing of these."
        )
    model, others = methods[0], by_other_cells(examples, found)
    if others.is_there.any():
        methods = [*methods, others, combined(found, model, _as_log_odds(others))]
    else:
        notes.append("No TF has labels in another cell type, so there is no average of these.")
    if seen.accessibility:
        methods = [*methods, by_accessibility(found, seen)]
    else:
        notes.append("The data has no accessibility, so nothing is judged by it.")
    if motifs is None:
        notes.append("No motifs were given (--motifs), so none are judged.")
    else:
        tfs = list(dict.fromkeys(pair.tf for pair in found.pairs))
        known = read_motifs(motifs, tfs)
        notes.append(f"{known.sentence(tfs)} Motifs: " + _listed(known.names))
        hits = best_hits(
            known, seen.codes, lambda done, total: on_progress("scan motifs", done, total)
        )
        methods = [*methods, *by_motifs(found, hits, seen)] if hits else methods
    return [*methods, by_prevalence(found)], notes


def _listed(names: Mapping[str, str]) -> str:
    return "; ".join(f"{tf}: {name}" for tf, name in names.items()) + "."


def _as_log_odds(shares: Scored) -> Scored:
    """Shares of cells on the scale of logits, so that the two can be added."""
    score = logit(np.clip(shares.score, 0.02, 0.98)).astype(np.float32)
    return Scored(shares.key, shares.name, shares.kind, shares.note, score)


def _calibrated(found: Judged, raw: Scored, model: BindingModel) -> BindingCalibration:
    """Fitted on validation chromosomes, on all seen groups' labels of a task together."""
    rows = found.part == VALIDATION
    n, tasks = int(rows.sum()), model.tasks
    groups = [g for g in found.groups if _pairs_of(found, g)]
    logits = np.zeros((n * len(groups), len(tasks)), dtype=np.float32)
    labels = np.full(logits.shape, -1, dtype=np.int64)
    position = {task: i for i, task in enumerate(tasks)}
    for number, group in enumerate(groups):
        here = slice(number * n, (number + 1) * n)
        for i in _pairs_of(found, group):
            column = position[found.pairs[i].task]
            logits[here, column] = raw.score[rows, i]
            labels[here, column] = found.labels[rows, i]
    made = fit_binding_calibration(logits, labels, tasks)
    facts = {**made.facts, "validation_chromosomes": sorted(set(found.chrom[rows]))}
    sha = str(model.provenance.get("weights_sha256", ""))
    return BindingCalibration(
        tasks=tasks, scale=made.scale, offset=made.offset, weights_sha256=sha, facts=facts
    )


def _pairs_of(found: Judged, group: int) -> list[int]:
    """Pairs of a group that is not held out."""
    return [i for i, p in enumerate(found.pairs) if p.group == group and not p.is_held_out]


def _by_pair(
    found: Judged, tasks: Sequence[str], calibration: BindingCalibration
) -> Callable[[Float[np.ndarray, "region pair"]], Float[np.ndarray, "region pair"]]:
    """The calibration of each pair's task."""
    column: Int[np.ndarray, " pair"] = np.array([list(tasks).index(p.task) for p in found.pairs])
    scale, offset = (
        np.asarray(x, dtype=np.float32)[column] for x in (calibration.scale, calibration.offset)
    )
    return lambda logits: logits * scale + offset
