"""Annotation by a reference: its nearest cells, or its labels' prototypes, in a model's embedding.

in   AnnData or a path, a model, a Reference of that model
out  obs["scfm_cell_type"], ["scfm_confidence"], ["scfm_runner_up"]; obsm["X_scfm"]; the supporting
     cells in obsm["scfm_neighbours"], obsm["scfm_similarity"]; settings in uns["scfm"]
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scfm.data.genes import GeneReport
from scfm.data.write import SafeFile, put_obs, write_annotated
from scfm.errors import ConfigError, ScfmWarning
from scfm.model.base import CellModel
from scfm.tasks.embedding import EmbeddedCells, EmbeddingConfig, embed_cells
from scfm.tasks.neighbours import Support
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.reference import Reference, Vote
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember
from scfm.tools.annotation_by_words import EMBEDDING, UNKNOWN
from scfm.tools.earlier_labels import drop_stale_in
from scfm.tools.embedding import (
    checked_batch_size,
    embed_settings,
    model_id,
    new_embedding,
    scfm_uns,
    vocab_of,
    write_settings,
)
from scfm.tools.label_table import label_lines
from scfm.tools.ontology_labels import Mapped, ontology_annotation, tidied
from scfm.tools.reference import measured_symbols, rebuild_command
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

FEW_SHARED = 0.5  # of the genes of either side, below which a warning is given


@dataclass(frozen=True)
class AnnotationSummary:
    """How many cells got which label, and what stands behind it."""

    n_cells: int
    cells: Mapping[str, int]  # by label, "unknown" among them
    n_reference: int
    left_out: Mapping[str, int]  # reference cells, by reason
    vote: Vote
    calibration: ProbabilityCalibration
    seconds: Mapping[str, float]  # "all", and of these "search"
    genes: GeneReport

    def __str__(self) -> str:
        by = "" if self.vote == "neighbours" else ", one prototype a label"
        lines = [
            f"{self.n_cells:,} cells labelled by {self.n_reference:,} reference cells{by}",
            f"unknown below {self.calibration.threshold:.3g} {_trust(self.calibration)}",
        ]
        lines += label_lines(self.cells, self.n_cells)
        lines += [
            f"  reference cells left out ({why}): {n:,}" for why, n in self.left_out.items() if n
        ]
        return "\n".join([*lines, str(self.genes)])

    def to_dict(self) -> dict[str, Any]:
        return {
            "n_cells": self.n_cells,
            "cells": dict(self.cells),
            "n_reference": self.n_reference,
            "left_out": dict(self.left_out),
            "vote": self.vote,
            "temperature": self.calibration.temperature,
            "threshold": self.calibration.threshold,
            "calibration": dict(self.calibration.facts),
            "seconds": dict(self.seconds),
            "genes": self.genes.to_dict(),
        }


def _trust(calibration: ProbabilityCalibration) -> str:
    if not calibration.facts:
        return "(not calibrated: the reference is too small)"
    facts = calibration.facts
    return (
        f"(calibrated on the reference's own cells, by {facts['held_out']} held out: error "
        f"{facts['calibration_error']:.3f}; {facts['precision']:.1%} of the named are right)"
    )


@dataclass(frozen=True, kw_only=True)
class ReferenceAnnotation:
    """How a reference's answers become labels.

    Attributes
    ----------
    key_added
        Prefix of the obs columns.
    vote
        "neighbours", or "prototypes".
    min_confidence
        Calibrated probability below which a cell is unknown; None: the reference's threshold.
    ontology, ontology_threshold
        As ``scfm.tools.ontology_labels.ontology_annotation`` takes them.
    """

    key_added: str = "scfm"
    vote: Vote = "neighbours"
    min_confidence: float | None = None
    ontology: "bool | Mapped" = False
    ontology_threshold: float | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        checked_batch_size(self.batch_size)
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence must lie in [0, 1], got {self.min_confidence}.")


def annotate_by_reference(
    adata: "AnnData",
    model: CellModel,
    reference: Reference,
    how: ReferenceAnnotation,
    reading: InputConfig,
) -> None:
    """Label an AnnData's cells: obs, obsm, uns."""
    labels = _Labels(model, reference, how, reading)
    member, report = open_input(adata, vocab_of(model), reading, model.token_config)
    labels.look_at(member, report)
    parts = [
        (found.embedding, labels.add(found))
        for found in embed_cells(model, member, labels.embedding, batch_size=how.batch_size)
    ]
    columns = labels.columns()
    columns.index = adata.obs_names
    adata.obsm[EMBEDDING] = np.concatenate([embedding for embedding, _ in parts])
    if how.vote == "neighbours":
        for at, name in enumerate(labels.support_keys):
            adata.obsm[name] = np.concatenate([support[at] for _, support in parts])
    for name in columns:
        adata.obs[name] = columns[name]
    adata.uns["scfm"] = {
        **scfm_uns(adata),
        EMBEDDING: embed_settings(model, member, report, labels.embedding),
        how.key_added: labels.settings(),
    }


def annotate_file_by_reference(
    path: str | Path,
    model: CellModel,
    out: str | Path,
    reference: Reference,
    how: ReferenceAnnotation,
    reading: InputConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnnotationSummary:
    """Label a file's cells in a new h5ad that holds everything an old h5ad did.

    The file is read in chunks; what grows with it are the labels and a few numbers a cell.
    """
    begun, labels = perf_counter(), _Labels(model, reference, how, reading)
    member, report = open_input(path, vocab_of(model), reading, model.token_config, backed=True)
    labels.look_at(member, report)
    source, n_cells = member.source, member.source.n_cells

    def write(file: SafeFile) -> None:
        width = model.width(labels.embedding.pooling)
        targets = [new_embedding(file, EMBEDDING, n_cells, width)]
        if how.vote == "neighbours":
            k = labels.n_neighbours
            targets += [
                new_embedding(file, key, n_cells, k, dtype)
                for key, dtype in zip(labels.support_keys, (np.int32, np.float32), strict=True)
            ]
        for found in embed_cells(model, member, labels.embedding, batch_size=how.batch_size):
            rows = slice(int(found.cell_index[0]), int(found.cell_index[-1]) + 1)
            for target, values in zip(targets, (found.embedding, *labels.add(found)), strict=False):
                target[rows] = values
            file.check()
            on_progress(rows.stop, n_cells)
        put_obs(file, labels.columns())
        made = embed_settings(model, member, report, labels.embedding)
        write_settings(file, EMBEDDING, made)
        drop_stale_in(file, labels.settings(), how.key_added)
        write_settings(file, how.key_added, labels.settings())

    write_annotated(source, out, write)
    seconds = {"all": perf_counter() - begun, "search": labels.seconds}
    return labels.summary(report, seconds)


@dataclass
class _Labels:
    """The labels of cells that stream by. Refuses a reference that is not for them."""

    model: CellModel
    reference: Reference
    how: ReferenceAnnotation
    reading: InputConfig
    parts: list[pd.DataFrame] = field(default_factory=list)
    seconds: float = 0.0  # spent on answering, embedding apart

    def __post_init__(self) -> None:
        self.reference.require_model(
            model_id(self.model), rebuild_command(self.reference, self.model)
        )
        facts = self.reference.facts
        self.embedding = EmbeddingConfig.of(self.model, facts["pooling"], facts["target_depth"])
        fitted, asked = self.reference.calibrations[self.how.vote], self.how.min_confidence
        self.calibration = fitted
        self.threshold = fitted.threshold if asked is None else asked
        self.n_neighbours = min(self.reference.voters.config.n_neighbours, self.reference.n_cells)
        self.ontology = ontology_annotation(
            self.how.ontology,
            self.reference.classes,
            threshold=self.how.ontology_threshold,
            known=self.reference.terms,
        )
        key = self.how.key_added
        self.support_keys = (f"{key}_neighbours", f"{key}_similarity")

    def look_at(self, member: PoolMember, report: GeneReport) -> None:
        """Species and genes of the query against the reference's. GeneCoverageError."""
        name = member.source.name
        self.reference.require_species(report.species, self.reading.orthologs, name)
        shared = self.reference.require_genes(measured_symbols(member), name)
        if shared < FEW_SHARED:
            warnings.warn(
                f"{name} and the reference {self.reference.name} share {shared:.0%} of the genes "
                "of the side that measures fewer. The embeddings of the two differ for that alone: "
                "look at obsm['scfm_similarity'] before the labels are believed.",
                ScfmWarning,
                stacklevel=2,
            )

    def add(self, found: EmbeddedCells) -> tuple[np.ndarray, ...]:
        """Label some cells; their neighbours' numbers and similarities, where neighbours vote."""
        begun = perf_counter()
        answer = self.reference.answer(found.embedding, found.depth, self.how.vote)
        columns = label_columns(answer.probabilities, self.threshold, self.how.key_added)
        if self.ontology is not None:
            more = self.ontology.columns(answer.probabilities, self.how.key_added)
            columns = pd.concat([columns, more], axis=1)
        self.parts.append(columns)
        self.seconds += perf_counter() - begun
        return () if answer.support is None else _stored(answer.support)

    def columns(self) -> pd.DataFrame:
        """What is said of each cell, as obs columns."""
        return tidied(pd.concat(self.parts, ignore_index=True))

    def settings(self) -> dict[str, Any]:
        """How the labels came about, for uns."""
        facts, config = self.reference.facts, self.reference.voters.config
        found = {
            "by": "reference",
            "vote": self.how.vote,
            "reference": self.reference.name,
            "label_key": facts["label_key"],
            "n_reference": self.reference.n_cells,
            "classes": list(self.reference.classes),
            "temperature": self.calibration.temperature,
            "threshold": self.threshold,
            "is_calibrated": bool(self.calibration.facts),
            "weights_sha256": model_id(self.model),
            "scfm_version": __version__,
        }
        if self.how.vote == "neighbours":
            found["n_neighbours"] = config.n_neighbours
            found["search"] = config.search
            found["min_similarity"] = float(self.reference.voters.min_similarity)
            found["reference_cells"] = self.reference.cells["cell"].to_numpy(dtype=object)
            found["reference_codes"] = self.reference.voters.codes.astype(np.int32)
        if self.ontology is not None:
            found |= self.ontology.settings()
        return found

    def summary(self, report: GeneReport, seconds: Mapping[str, float]) -> AnnotationSummary:
        key = f"{self.how.key_added}_cell_type"
        found = Counter(label for part in self.parts for label in part[key])
        return AnnotationSummary(
            n_cells=sum(found.values()),
            cells=dict(found),
            n_reference=self.reference.n_cells,
            left_out=dict(self.reference.voters.dropped),
            vote=self.how.vote,
            calibration=self.calibration,
            seconds=seconds,
            genes=report,
        )


def label_columns(found: TypeProbabilities, threshold: float, key_added: str) -> pd.DataFrame:
    """What is said of each cell, as obs columns; the categories are the same for any cells."""
    classes = list(found.classes)
    named = [*classes, *[UNKNOWN][: UNKNOWN not in classes]]
    return pd.DataFrame(
        {
            f"{key_added}_cell_type": pd.Categorical(
                found.labels(threshold, UNKNOWN), categories=named
            ),
            f"{key_added}_confidence": found.confidence.astype(np.float32),
            f"{key_added}_runner_up": pd.Categorical(
                [name or None for name in found.runner_up], categories=classes
            ),
        }
    )


def _stored(
    support: Support,
) -> tuple[Int[np.ndarray, "cell k"], Float[np.ndarray, "cell k"]]:
    """As obsm keeps it; a cell without direction has neighbour -1 of similarity 0."""
    nobody = support.is_zero[:, None]
    neighbour = np.where(nobody, -1, support.neighbour).astype(np.int32)
    return neighbour, np.where(nobody, 0.0, support.cosine).astype(np.float32)
