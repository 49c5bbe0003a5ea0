"""scfm evaluate integration: are batches mixed and cell types kept apart, and by whose embedding?

in   cells with a type and a batch, models
out  IntegrationResult: scores of every embedding with their spread, one plain sentence

Beside the models: principal components as they are, and Harmony on these (Korsunsky et al. 2019,
doi:10.1038/s41592-019-0619-0). Harmony is told the batches; a model that never saw them is not.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Shaped

from scfm.errors import ConfigError, LabelError, ScfmWarning
from scfm.evaluate.contamination import learned_labels_of
from scfm.evaluate.integration_scores import BATCH, BIOLOGICAL, HEADINGS, integration_scores
from scfm.evaluate.labelled_cells import LabelledCells, read_labelled, require_classes
from scfm.evaluate.log_counts import log1p_cp10k, variable_genes
from scfm.evaluate.results import Interval
from scfm.evaluate.type_methods import N_VARIABLE_GENES, components
from scfm.evaluate.type_models import embed_all, untrained
from scfm.model.base import CellModel
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember

if TYPE_CHECKING:
    from anndata import AnnData

SHARE_DRAWN = 0.8  # of the cells, for the spread of a score
NEEDED = ("harmonypy", "igraph")
Kind = Literal["model", "untrained", "baseline"]


@dataclass(frozen=True, kw_only=True)
class IntegrationConfig:
    """How embeddings are judged."""

    n_cells: int = 5_000  # judged, at most, drawn from all alike
    n_draws: int = 5  # of 80 % of these, for the spread of each score
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_cells < 50 or self.n_draws < 2:
            raise ConfigError(
                f"n_cells is {self.n_cells}, n_draws {self.n_draws}; wanted 50 and 2 at least."
            )


@dataclass(frozen=True)
class EmbeddingResult:
    """One embedding's scores; an interval spans the draws of 80 % of the cells."""

    key: str
    name: str
    kind: Kind
    note: str
    scores: Mapping[str, Interval]


@dataclass(frozen=True)
class IntegrationResult:
    """All embeddings on the same cells, in the order asked for."""

    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    methods: Sequence[EmbeddingResult]
    versus: Mapping[str, Interval]  # total of the best model minus that of each other method
    notes: Sequence[str] = ()

    @property
    def judged(self) -> EmbeddingResult:
        """The model of highest total."""
        models = [method for method in self.methods if method.kind == "model"]
        return max(models, key=lambda method: method.scores["total"].value)

    @property
    def verdict(self) -> str:
        """One sentence: the model against the baseline of highest total, and how sure."""
        baselines = [method for method in self.methods if method.kind == "baseline"]
        best = max(baselines, key=lambda method: method.scores["total"].value)
        gap, model = self.versus[best.key], self.judged
        ours, theirs = (f"{m.scores['total'].value:.3f}" for m in (model, best))
        spread = f"difference {gap.value:+.3f}, {gap.low:+.3f} to {gap.high:+.3f} over the draws"
        if gap.low > 0:
            return (
                f"{model.name} wins: total {ours} against {theirs} of the strongest baseline, "
                f"{best.name} ({spread})."
            )
        if gap.high < 0:
            return (
                f"The strongest baseline, {best.name}, wins: total {theirs} against {model.name}'s "
                f"{ours} ({spread})."
            )
        return (
            f"No clear winner: total {ours} of {model.name} and {theirs} of the strongest "
            f"baseline, {best.name} ({spread})."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "verdict": self.verdict,
            "data": dict(self.data),
            "settings": dict(self.settings),
            "methods": [asdict(method) for method in self.methods],
            "model_minus_method_total": {k: asdict(v) for k, v in self.versus.items()},
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """All embeddings, best total first, for a terminal."""
        ranked = sorted(self.methods, key=lambda m: -m.scores["total"].value)
        width = max(len(method.name) for method in ranked)
        names = ("total", "biological", "batch")
        lines = [f"{'':<{width}}  " + "  ".join(f"{HEADINGS[name]:>13}" for name in names)]
        lines += [
            f"{m.name:<{width}}  " + "  ".join(f"{m.scores[n].value:>13.3f}" for n in names)
            for m in ranked
        ]
        return "\n".join([self.verdict, *lines])


@dataclass(frozen=True)
class _Embedded:
    key: str
    name: str
    kind: Kind
    note: str
    vectors: Float[np.ndarray, "cell d"] = field(repr=False)


def evaluate_integration(
    data: "str | Path | AnnData",
    models: Mapping[str, CellModel],
    *,
    label_key: str,
    batch_key: str,
    config: IntegrationConfig | None = None,
    reading: InputConfig | None = None,
    pooling: str | None = None,
    batch_size: int = 64,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> IntegrationResult:
    """Judge models' embeddings beside principal components and Harmony on the same cells.

    Cells without a type or a batch are left out. Raises LabelError for fewer than two types or
    batches, or where no type has cells of two batches; ConfigError where harmonypy or igraph is
    not installed.
    """
    config, reading = config or IntegrationConfig(), reading or InputConfig()
    require_packages()
    cells, batches, chosen = judged_cells(data, label_key, batch_key, config, reading)
    labels = cells.labels
    found, notes = model_free(cells, batches), list[str]()
    for name, model in models.items():
        short = "scfm" if len(models) == 1 else name
        assert model.vocab is not None, "models are loaded or built with a vocabulary"
        member, _ = open_input(data, model.vocab, reading, model.token_config)
        if sentence := learned_labels_of(model, data, short):
            warnings.warn(sentence, category=ScfmWarning, stacklevel=2)
            notes.append(sentence)

        def vectors(network: CellModel, key: str, member: PoolMember = member) -> np.ndarray:
            progress = partial(on_progress, f"embed {key}")
            how = {"pooling": pooling, "batch_size": batch_size, "on_progress": progress}
            return embed_all(network, member, **how).vectors[chosen]

        fresh = f"{short}_untrained"
        found += [
            _Embedded(short, short, "model", told_of(model), vectors(model, short)),
            _Embedded(
                *(fresh, f"{short}, untrained", "untrained", "random weights"),
                vectors(untrained(model, config.seed), fresh),
            ),
        ]
    result = _scored(found, cells, labels, batches, config, batch_key, label_key, on_progress)
    return replace(result, notes=notes)


def told_of(model: CellModel) -> str:
    """What a model was told of batches and types, for a table."""
    made = model.provenance.get("finetuned", {})
    if made.get("settings", {}).get("integrate", "none") != "none":
        return "was fine-tuned on types and batches elsewhere: see its README.md"
    learned = "was not told the batches"
    return learned if model.classifier is None else f"{learned}; was fine-tuned on types elsewhere"


def require_packages() -> None:
    """ConfigError where the extra "integration" is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"scfm evaluate integration needs {' and '.join(missing)}, not installed here: "
            "pip install 'scfm[integration]'."
        )


def judged_cells(
    data: "str | Path | AnnData",
    label_key: str,
    batch_key: str,
    config: IntegrationConfig,
    reading: InputConfig,
) -> tuple[LabelledCells, Shaped[np.ndarray, " cell"], Int[np.ndarray, " cell"]]:
    """Cells with a type and a batch, a bounded number of them; their batches; their rows."""
    cells = read_labelled(data, label_key, layer=reading.layer, species=reading.species)
    cells = require_classes(
        cells.part(cells.groups(batch_key) != "", f"no '{batch_key}'"), label_key
    )
    if cells.n_cells > config.n_cells:
        kept = np.zeros(cells.n_cells, dtype=bool)
        rng = np.random.default_rng(config.seed)
        kept[rng.choice(cells.n_cells, config.n_cells, replace=False)] = True
        cells = require_classes(cells.part(kept, "not drawn"), label_key)
    batches = cells.groups(batch_key)
    names = sorted(set(batches))
    if len(names) < 2:
        raise LabelError(
            f"obs['{batch_key}'] of {cells.name} holds only {names}; wanted two batches or more, "
            "or there is nothing to integrate. Name another column with --batch."
        )
    if all(len(set(batches[cells.labels == label])) < 2 for label in set(cells.labels)):
        raise LabelError(
            f"No type of obs['{label_key}'] has cells of two batches of '{batch_key}': types and "
            "batches cannot be told apart, so no score would mean anything. Take other cells."
        )
    return cells, batches, cells.rows


def model_free(cells: LabelledCells, batches: Shaped[np.ndarray, " cell"]) -> list[_Embedded]:
    """Principal components of the 2,000 most variable genes, and Harmony on them."""
    log_counts = log1p_cp10k(cells.counts, np.arange(len(cells.genes)))
    chosen = sp.csr_matrix(log_counts[:, variable_genes(log_counts, N_VARIABLE_GENES)])
    principal = np.asarray(components(chosen).transform(chosen), dtype=np.float64)
    note = "50 components of 2,000 variable genes"
    return [
        _Embedded("pca", "PCA, unintegrated", "baseline", note, principal),
        _Embedded(
            *("harmony", "Harmony", "baseline", "on these components; is told the batches"),
            harmony(principal, batches),
        ),
    ]


def harmony(
    principal: Float[np.ndarray, "cell d"], batches: Shaped[np.ndarray, " cell"]
) -> Float[np.ndarray, "cell d"]:
    """Harmony at its defaults, seeded, on one thread."""
    import harmonypy
    import pandas as pd

    table = pd.DataFrame({"batch": batches.astype(str)})
    found = harmonypy.run_harmony(
        principal, table, ["batch"], verbose=False, random_state=0, ncores=1
    )
    corrected = np.asarray(found.Z_corr, dtype=np.float64)
    return corrected if corrected.shape == principal.shape else corrected.T


def _scored(
    found: Sequence[_Embedded],
    cells: LabelledCells,
    labels: Shaped[np.ndarray, " cell"],
    batches: Shaped[np.ndarray, " cell"],
    config: IntegrationConfig,
    batch_key: str,
    label_key: str,
    on_progress: Callable[[str, int, int], None],
) -> IntegrationResult:
    drawn = draws_of(labels, batches, config)
    whole, parts = {}, {}
    for number, one in enumerate(found):
        whole[one.key] = integration_scores(one.vectors, labels, batches, seed=config.seed)
        parts[one.key] = [
            integration_scores(one.vectors[rows], labels[rows], batches[rows], seed=config.seed)
            for rows in drawn
        ]
        on_progress("evaluate", number + 1, len(found))
    names = ("total", "biological", "batch", *BIOLOGICAL, *BATCH)
    methods = [
        EmbeddingResult(
            *(one.key, one.name, one.kind, one.note),
            {
                name: spanning(whole[one.key][name], [part[name] for part in parts[one.key]])
                for name in names
            },
        )
        for one in found
    ]
    models = [method for method in methods if method.kind == "model"]
    if not models:
        raise ConfigError("No model is among the embeddings; an evaluation judges at least one.")
    best = max(models, key=lambda method: method.scores["total"].value).key
    versus = {
        key: spanning(
            whole[best]["total"] - whole[key]["total"],
            [a["total"] - b["total"] for a, b in zip(parts[best], parts[key], strict=True)],
        )
        for key in whole
        if key != best
    }
    facts = {
        "name": cells.name,
        "n_cells": cells.n_cells,
        "label_key": label_key,
        "batch_key": batch_key,
        "types": sorted(set(labels)),
        "batches": sorted(set(batches)),
        "left_out": dict(cells.left_out),
    }
    return IntegrationResult(facts, asdict(config), methods, versus)


def spanning(value: float, draws: Sequence[float]) -> Interval:
    """The value and the lowest and highest draw; the value itself may lie outside of them."""
    return Interval(value, float(np.min(draws)), float(np.max(draws)))


def draws_of(
    labels: Shaped[np.ndarray, " cell"],
    batches: Shaped[np.ndarray, " cell"],
    config: IntegrationConfig,
) -> list[Int[np.ndarray, " drawn"]]:
    """Rows of 80 % of the cells, drawn anew each time, the same for every embedding."""
    rng = np.random.default_rng([config.seed, 1])
    n = round(SHARE_DRAWN * len(labels))
    found = [np.sort(rng.choice(len(labels), n, replace=False)) for _ in range(config.n_draws)]
    if any(len(set(v[rows])) < 2 for rows in found for v in (labels, batches)):
        raise LabelError(
            "Types or batches have too few cells: a draw of 80 % of them holds but one. Take more "
            "cells."
        )
    return found
