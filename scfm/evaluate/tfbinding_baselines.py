"""Scores of bound regions that need no model: what a model of TF binding has to beat.

in   Judged regions and pairs, accessibility and DNA at them, labels of other cells
out  Scored: one score a region and pair; NaN columns where a method says nothing of a pair
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8

from scfm.data.nucleotides import UNKNOWN, codes_of_one_hot
from scfm.data.region_examples import RegionExamples
from scfm.data.region_split import TRAINING, VALIDATION
from scfm.evaluate.tfbinding_pairs import Judged
from scfm.tasks.tf_names import tf_of

Kind = Literal["model", "combination", "baseline"]
AT_ONCE = 2048  # windows read together
FEWEST = 10  # known labels of either kind that a combination is fitted on


@dataclass(frozen=True)
class Scored:
    """One method's scores, higher the likelier bound."""

    key: str
    name: str
    kind: Kind
    note: str
    score: Float[np.ndarray, "region pair"] = field(repr=False)

    @property
    def is_there(self) -> Bool[np.ndarray, " pair"]:
        """Pairs that the method says something of."""
        return np.asarray(~np.isnan(self.score).any(axis=0))


@dataclass(frozen=True)
class Seen:
    """What is at the judged regions: DNA as codes (4: unknown), accessibility by group."""

    codes: UInt8[np.ndarray, "region base"] = field(repr=False)
    accessibility: Mapping[int, Float[np.ndarray, " region"]] = field(repr=False)


def look(
    examples: RegionExamples,
    found: Judged,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Seen:
    """Read every judged window once a group; mean of the first track over the window."""
    n, groups = len(found.region), found.groups
    codes = np.full((n, examples.length), UNKNOWN, dtype=np.uint8)
    accessibility = {group: np.zeros(n, dtype=np.float32) for group in groups}
    read = groups if examples.tracks else groups[:1]
    for number, group in enumerate(read):
        for start in range(0, n, AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            region = found.region[rows]
            batch = examples.batch(region, np.full(len(region), group, dtype=np.int64))
            if number == 0:
                codes[rows] = codes_of_one_hot(batch.sequence, "windows")
            if examples.tracks:
                accessibility[group][rows] = batch.signal[:, 0].mean(axis=-1)
            on_progress(number * n + start + len(region), len(read) * n)
    return Seen(codes, accessibility if examples.tracks else {})


def window_codes(examples: RegionExamples) -> UInt8[np.ndarray, "region base"]:
    """DNA of all windows."""
    group = 0 if examples.groups else -1
    codes = np.full((examples.n_regions, examples.length), UNKNOWN, dtype=np.uint8)
    for start in range(0, examples.n_regions, AT_ONCE):
        region = np.arange(start, min(start + AT_ONCE, examples.n_regions))
        batch = examples.batch(region, np.full(len(region), group, dtype=np.int64))
        codes[region] = codes_of_one_hot(batch.sequence, "windows")
    return codes


def by_prevalence(found: Judged) -> Scored:
    """The share of bound regions among training chromosomes, the same for every region."""
    rows = found.part == TRAINING
    labels = np.where(found.labels[rows] < 0, np.nan, found.labels[rows])
    share = np.array([_mean(labels[:, i]) for i in range(labels.shape[1])], dtype=np.float32)
    score = np.broadcast_to(share, found.labels.shape)
    note = "how often the TF is bound on training chromosomes"
    return Scored("prevalence", "Prevalence", "baseline", note, score)


def by_accessibility(found: Judged, seen: Seen) -> Scored:
    """How accessible the region is in the group, for every TF alike."""
    columns = [seen.accessibility[pair.group] for pair in found.pairs]
    note = "how open the region is in these cells, no DNA and no TF"
    return Scored(
        "accessibility", "Accessibility alone", "baseline", note, np.stack(columns, axis=1)
    )


def by_motifs(
    found: Judged, hits: Mapping[str, Float[np.ndarray, " region"]], seen: Seen
) -> list[Scored]:
    """Best hit of the TF's motif, and the same times accessibility where that is known."""
    none = np.full(len(found.region), np.nan, dtype=np.float32)
    best = np.stack([hits.get(pair.tf, none) for pair in found.pairs], axis=1)
    methods = [
        Scored(
            "motif",
            "Best motif hit",
            "baseline",
            "log-odds of the best hit of the TF's motif, no cells",
            best,
        )
    ]
    if seen.accessibility:
        open_ = by_accessibility(found, seen).score
        note = "positive log-odds of the best hit, times log accessibility"
        both = np.asarray(np.maximum(best, 0) * open_, dtype=np.float32)
        methods.append(
            Scored("motif_accessibility", "Motif x accessibility", "baseline", note, both)
        )
    return methods


def by_other_cells(examples: RegionExamples, found: Judged, fewest: int = 1) -> Scored:
    """The share of other cell types in which ChIP found the TF bound at this very region.

    No model: it knows the place. Groups with the very same labels of a TF are one cell type, or a
    group would be judged by its own. A region that no other cell type knows counts as the TF's
    mean. Pairs of a TF with less than ``fewest`` other cell types are left out.
    """
    by_tf: dict[str, dict[bytes, Int8[np.ndarray, " region"]]] = {}
    for group in list(range(len(examples.groups))) or [-1]:
        same = np.full(len(found.region), group, dtype=np.int64)
        labels = examples.labels(found.region, same)
        for column, task in enumerate(examples.tasks):
            if (labels[:, column] >= 0).any():
                own = np.ascontiguousarray(labels[:, column])
                by_tf.setdefault(tf_of(task), {})[own.tobytes()] = own
    score = np.full(found.labels.shape, np.nan, dtype=np.float32)
    for i, pair in enumerate(found.pairs):
        own = np.ascontiguousarray(found.labels[:, i]).tobytes()
        others = [labels for key, labels in by_tf[pair.tf].items() if key != own]
        if len(others) >= fewest:
            score[:, i] = _shares(np.stack(others))
    note = "in how many other cell types ChIP found the TF bound at this region; no model"
    return Scored("other_cells", "Other cells' ChIP", "baseline", note, score)


def combined(found: Judged, model: Scored, other: Scored) -> Scored:
    """The model's logit and a baseline's score together, by logistic regression.

    Fitted on validation chromosomes: on the pair's own labels where its cells are seen, else on
    those of all pairs of seen cells.
    """
    from sklearn.linear_model import LogisticRegression

    score = np.full(found.labels.shape, np.nan, dtype=np.float32)
    both = [i for i in range(len(found.pairs)) if model.is_there[i] and other.is_there[i]]
    rows = found.part == VALIDATION
    known = {i: rows & (found.labels[:, i] >= 0) for i in both}
    features = {i: np.stack([model.score[:, i], other.score[:, i]], axis=1) for i in both}
    seen = [i for i in both if not found.pairs[i].is_held_out and known[i].any()]
    everywhere = None
    for i in both:
        own = found.labels[known[i], i]
        if i in seen and min((own == 1).sum(), (own == 0).sum()) >= FEWEST:
            fitted = LogisticRegression().fit(features[i][known[i]], own)
        elif seen:
            if everywhere is None:
                x = np.concatenate([features[j][known[j]] for j in seen])
                y = np.concatenate([found.labels[known[j], j] for j in seen])
                everywhere = LogisticRegression().fit(x, y) if 0 < y.mean() < 1 else None
            fitted = everywhere
        else:
            fitted = None
        if fitted is not None:
            score[:, i] = fitted.decision_function(features[i])
    note = "logistic regression of both, fitted on validation chromosomes"
    name = f"{model.name} + {other.name[:1].lower()}{other.name[1:]}"
    return Scored(f"{model.key}_{other.key}", name, "combination", note, score)


def _shares(others: Int8[np.ndarray, "cell region"]) -> Float[np.ndarray, " region"]:
    """Share bound among the known; the mean of these where none is known."""
    is_known = others >= 0
    n = is_known.sum(0)
    share = (others == 1).sum(0) / np.maximum(n, 1)
    return np.where(n > 0, share, share[n > 0].mean()).astype(np.float32)


def _mean(values: Float[np.ndarray, " region"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
