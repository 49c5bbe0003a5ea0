"""Which cells an evaluation of cell typing is of: read, labelled, lined up and split.

in   CelltypeData: files and the names of their columns
out  OpenedCells: one table of all cells, the reference's first; a SplitPlan
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scfm.errors import ConfigError, LabelError
from scfm.evaluate.celltype_protocol import ProtocolConfig
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
from scfm.tokens.inputs import InputConfig

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
class OpenedCells:
    """The labelled cells in one table: the reference's first, then the query's."""

    sets: tuple[LabelledCells, ...]
    sources: tuple[Any, ...] = field(repr=False)
    log_counts: sp.csr_matrix = field(repr=False)
    labels: np.ndarray = field(repr=False)
    groups: np.ndarray | None = field(repr=False)
    columns: tuple[np.ndarray, ...] = field(default=(), repr=False)
    n_genes: int = 0

    @property
    def counts(self) -> sp.csr_matrix:
        """Raw counts of the same cells on the genes shared, for a method that wants them."""
        parts = [cells.counts[:, at] for cells, at in zip(self.sets, self.columns, strict=True)]
        return sp.csr_matrix(sp.vstack(parts, format="csr"))


def open_cells(data: CelltypeData, reading: InputConfig) -> OpenedCells:
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
    columns = (np.arange(len(sets[0].genes)),) if len(sets) == 1 else tuple(on_shared_genes(*sets))
    matrices = [log1p_cp10k(s.counts, c) for s, c in zip(sets, columns, strict=True)]
    log_counts = sp.csr_matrix(sp.vstack(matrices, format="csr"))
    return OpenedCells(
        tuple(sets),
        tuple(source for source, _ in wanted),
        log_counts,
        np.concatenate([s.labels for s in sets]),
        _groups_of(data, sets),
        columns,
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


def plan_of(
    data: CelltypeData, opened: OpenedCells, config: ProtocolConfig, seed: int
) -> SplitPlan:
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


def described(opened: OpenedCells, number: int, data: CelltypeData) -> dict[str, Any]:
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


def notes_on(opened: OpenedCells) -> list[str]:
    """How many cells were left out, and why."""
    return [
        f"{cells.name}: {n:,} cells left out ({why})."
        for cells in opened.sets
        for why, n in cells.left_out.items()
    ]
