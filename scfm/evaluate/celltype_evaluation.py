"""scfm evaluate celltype: files and models in, a judged comparison out.

in   labelled cells (one set that is split, or a reference and a query), models
out  CelltypeResult: every method on the same cells and folds

All methods see the same cells; model-free ones the genes that both sets share, models the genes
of their own vocabulary in each file.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scfm.errors import ConfigError, LabelError, ScfmWarning
from scfm.evaluate.celltype_protocol import ProtocolConfig, TypingData, run_methods
from scfm.evaluate.celltype_result import CelltypeResult
from scfm.evaluate.celltype_scoring import score_runs
from scfm.evaluate.contamination import Contamination, find_contamination, pretraining_data
from scfm.evaluate.labelled_cells import (
    LabelledCells,
    on_shared_genes,
    read_labelled,
    require_classes,
)
from scfm.evaluate.log_counts import log1p_cp10k
from scfm.evaluate.splits import (
    SplitPlan,
    from_reference,
    hold_out_cells,
    hold_out_groups,
    unlearnable,
)
from scfm.evaluate.type_methods import BASELINES, Cells, Embedded, Method
from scfm.evaluate.type_models import UNTRAINED_NOTE, ByNeighbours, embed_all, untrained
from scfm.metrics import macro_f1
from scfm.model.base import CellModel
from scfm.tokens.inputs import InputConfig, open_input

if TYPE_CHECKING:
    from anndata import AnnData

NO_GROUP = "no value in '{}'"


@dataclass(frozen=True, kw_only=True)
class CelltypeData:
    """Which cells are judged, and what they are learned from.

    Attributes
    ----------
    query
        Labelled cells: those that are split, or, with a reference, those that are judged.
    label_key, reference_label_key
        obs columns of the labels; the reference's, where it differs.
    mapping
        ``[data set][label] -> common label`` (`scfm.evaluate.celltype.read_label_mapping`); data
        sets go by their file's name without ending.
    split_by
        obs column whose groups (donors, data sets) are held out whole. None: cells at random,
        which is optimistic. Not with a reference.
    donor_key
        obs column that intervals are over and calibration is split by; None: ``split_by``.
    """

    query: "str | Path | AnnData"
    label_key: str
    reference: "str | Path | AnnData | None" = None
    reference_label_key: str | None = None
    mapping: Mapping[str, Mapping[str, str]] | None = None
    split_by: str | None = None
    donor_key: str | None = None

    def __post_init__(self) -> None:
        if self.reference is not None and self.split_by is not None:
            raise ConfigError(
                f"With a reference nothing is split, so split_by ('{self.split_by}') has no "
                "meaning. Name the donors that intervals are over with donor_key (--donor)."
            )


@dataclass(frozen=True)
class _Opened:
    """The labelled cells in one table: the reference's first, then the query's."""

    sets: tuple[LabelledCells, ...]
    sources: tuple[Any, ...] = field(repr=False)
    log_counts: sp.csr_matrix = field(repr=False)
    labels: np.ndarray = field(repr=False)
    groups: np.ndarray | None = field(repr=False)
    n_genes: int = 0


def evaluate_celltype(
    data: CelltypeData,
    models: Mapping[str, CellModel],
    *,
    config: ProtocolConfig | None = None,
    reading: InputConfig | None = None,
    pooling: str | None = None,
    batch_size: int = 64,
    baselines: Sequence[Method] = BASELINES,
    more: Sequence[Method] = (),
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> CelltypeResult:
    """Judge models beside the baselines on the same cells.

    Parameters
    ----------
    models
        By name or folder; a folder's record of pretraining is searched for the judged cells.
    more
        Further methods, such as one of your own (`scfm.evaluate.type_methods.Method`).
    on_progress
        Called with what is done ("embed ...", "evaluate"), how much of it, and how much there is.

    Raises LabelError, GeneCoverageError and ConfigError for data that cannot be judged on.
    """
    config, reading = config or ProtocolConfig(), reading or InputConfig()
    opened = open_cells(data, reading)
    plan = plan_of(data, opened, config, config.seeds[0])
    if plan.is_optimistic:
        warnings.warn(
            "The split is random over cells, so scores are optimistic about new donors. Name the "
            "donors: split_by (--split-by donor_id).",
            category=ScfmWarning,
            stacklevel=2,
        )
    embedded, methods, notes = {}, [], []
    for name, model in models.items():
        short = _short(name, models)
        for key, kind, network in (
            (short, "model", model),
            (f"{short}_untrained", "untrained", untrained(model, config.seeds[0])),
        ):
            embedded[key] = _embed(
                network, opened, reading, pooling, batch_size, f"embed {key}", on_progress
            )
            title = f"{short}, nearest neighbours" + ("" if kind == "model" else ", untrained")
            note = UNTRAINED_NOTE if kind == "untrained" else "zero-shot: no weight learned a label"
            methods.append(ByNeighbours(key, title, note, key, kind))  # pyright: ignore
    cells = TypingData(Cells(opened.log_counts, embedded), opened.labels, opened.groups)
    methods += [*more, *baselines]
    runs = run_methods(
        *(cells, plan, methods, config),
        seed=config.seeds[0],
        on_progress=lambda done, total: on_progress("evaluate", done, total),
    )
    per_seed = {
        run.method.key: [macro_f1(opened.labels[plan.judged], run.probabilities.label)]
        for run in runs
    }
    for seed in config.seeds[1:]:
        _again(cells, data, opened, methods, config, seed, per_seed)
    judged = plan.judged
    return score_runs(
        *(runs, opened.labels[judged]),
        None if opened.groups is None else opened.groups[judged],
        *(plan, config),
        reference=described(opened, 0, data),
        query=described(opened, -1, data),
        over=data.donor_key or data.split_by or "cells",
        per_seed=per_seed,
        contamination=contamination_of(models, opened, reading),
        notes=[*notes, *_notes(opened)],
    )


def open_cells(data: CelltypeData, reading: InputConfig) -> _Opened:
    """Read, label and line up the sets."""
    wanted = [(data.query, data.label_key)]
    if data.reference is not None:
        wanted.insert(0, (data.reference, data.reference_label_key or data.label_key))
    sets = []
    for number, (source, key) in enumerate(wanted):
        is_query = number == len(wanted) - 1
        cells = read_labelled(
            source,
            key,
            mapping=_mapping_of(data.mapping, source),
            layer=reading.layer if is_query else None,
            species=reading.species,
        )
        column = data.split_by or data.donor_key
        if data.reference is None and column is not None:
            cells = cells.part(cells.groups(column) != "", NO_GROUP.format(column))
        sets.append(require_classes(cells, key) if number == 0 else cells)
    if len(sets) == 1:
        everything = np.arange(len(sets[0].genes))
        matrices = [log1p_cp10k(sets[0].counts, everything)]
    else:
        columns = on_shared_genes(*sets)
        matrices = [log1p_cp10k(s.counts, c) for s, c in zip(sets, columns, strict=True)]
    log_counts = sp.csr_matrix(sp.vstack(matrices, format="csr"))
    return _Opened(
        tuple(sets),
        tuple(source for source, _ in wanted),
        log_counts,
        np.concatenate([s.labels for s in sets]),
        _groups_of(data, sets),
        log_counts.shape[1],  # pyright: ignore[reportOptionalSubscript]
    )


def _groups_of(data: CelltypeData, sets: Sequence[LabelledCells]) -> np.ndarray | None:
    """Donors of all cells, "" in a set that has no such column; LabelError where none has it."""
    column = data.donor_key or data.split_by
    if column is None:
        return None
    if not any(column in cells.obs for cells in sets):
        sets[-1].groups(column)
    return np.concatenate(
        [
            cells.groups(column) if column in cells.obs else np.full(cells.n_cells, "", object)
            for cells in sets
        ]
    )


def plan_of(data: CelltypeData, opened: _Opened, config: ProtocolConfig, seed: int) -> SplitPlan:
    """The folds of one seed."""
    if data.reference is not None:
        reference, query = opened.sets
        plan = from_reference(reference.n_cells, query.n_cells)
        if not set(query.labels) & set(reference.labels):
            raise LabelError(
                f"The query's labels ({', '.join(sorted(set(query.labels))[:5])} ...) and the "
                f"reference's ({', '.join(sorted(set(reference.labels))[:5])} ...) have none in "
                "common. Map both to common labels: --mapping CSV (dataset, label, common)."
            )
        return replace(plan, notes=tuple(unlearnable(plan.folds, opened.labels)))
    how = {"n_folds": config.n_folds, "seed": seed}
    if data.split_by is None:
        return hold_out_cells(opened.labels, **how)
    groups = opened.sets[0].groups(data.split_by)
    return hold_out_groups(groups, opened.labels, by=data.split_by, **how)


def _embed(
    model: CellModel,
    opened: _Opened,
    reading: InputConfig,
    pooling: str | None,
    batch_size: int,
    what: str,
    on_progress: Callable[[str, int, int], None],
) -> Embedded:
    """The labelled cells of all sets, in the table's order."""
    assert model.vocab is not None, "models are loaded or built with a vocabulary"
    parts = []
    for number, (cells, source) in enumerate(zip(opened.sets, opened.sources, strict=True)):
        own = reading if number == len(opened.sets) - 1 else replace(reading, layer=None)
        member, _ = open_input(source, model.vocab, own, model.token_config)
        found = embed_all(
            model,
            member,
            pooling=pooling,
            batch_size=batch_size,
            on_progress=lambda done, total: on_progress(what, done, total),
        )
        parts.append(found.part(cells.rows))
    return Embedded(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.depth for part in parts]),
    )


def _again(
    cells: TypingData,
    data: CelltypeData,
    opened: _Opened,
    methods: Sequence[Method],
    config: ProtocolConfig,
    seed: int,
    per_seed: Mapping[str, list[float]],
) -> None:
    """Macro-F1 with another seed, for how far it moves; adds to ``per_seed``."""
    plan = plan_of(data, opened, config, seed)
    for run in run_methods(cells, plan, methods, replace(config, unknown=()), seed=seed):
        found = macro_f1(opened.labels[plan.judged], run.probabilities.label)
        per_seed[run.method.key].append(found)


def contamination_of(
    models: Mapping[str, CellModel], opened: _Opened, reading: InputConfig
) -> dict[str, Contamination]:
    """By model and data set; models without a folder have no record to search."""
    found = {}
    for model in models:
        if not Path(model).is_dir():
            continue
        pretraining = pretraining_data(model)
        for cells, source in zip(opened.sets, opened.sources, strict=True):
            found[f"{_short(model, models)}: {cells.name}"] = find_contamination(
                pretraining, source, name=cells.name, species=reading.species
            )
    return found


def described(opened: _Opened, number: int, data: CelltypeData) -> dict[str, Any]:
    """A data set in the report's terms."""
    cells = opened.sets[number]
    return {
        "name": cells.name,
        "n_cells": cells.n_cells,
        "n_genes": len(cells.genes),
        "n_shared_genes": opened.n_genes,
        "label_key": data.label_key if number == -1 else data.reference_label_key or data.label_key,
        "labels": sorted(set(cells.labels)),
        "left_out": dict(cells.left_out),
    }


def _notes(opened: _Opened) -> list[str]:
    return [
        f"{cells.name}: {n:,} cells left out ({why})."
        for cells in opened.sets
        for why, n in cells.left_out.items()
    ]


def _mapping_of(
    mapping: Mapping[str, Mapping[str, str]] | None, source: Any
) -> Mapping[str, str] | None:
    if mapping is None:
        return None
    stem = Path(source).name.partition(".")[0] if isinstance(source, str | Path) else "AnnData"
    if stem not in mapping:
        raise LabelError(
            f"The mapping has no rows for the data set '{stem}'; it has "
            f"{', '.join(sorted(mapping))}. Name the data set as its file, without the ending."
        )
    return mapping[stem]


def _short(name: str, models: Mapping[str, CellModel]) -> str:
    """The folder's last name that tells the models apart; "scfm" for a single one."""
    if len(models) == 1:
        return "scfm"
    parts = [part for part in Path(name).parts if part != "model"]
    short = parts[-1] if parts else name
    others = sum(
        [part for part in Path(m).parts if part != "model"][-1:] == [short] for m in models
    )
    return short if others == 1 else name
