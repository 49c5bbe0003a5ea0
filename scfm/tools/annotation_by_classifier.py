"""Annotation by a model that was fine-tuned to say cell types; no reference is needed.

in   AnnData or a path, a model with a classifier (scfm finetune celltype)
out  obs["scfm_cell_type"], ["scfm_confidence"], ["scfm_runner_up"]; obsm["X_scfm"], the vector that
     the classifier reads; settings in uns["scfm"]
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.data.genes import GeneReport
from scfm.data.write import SafeFile, put_obs, write_annotated
from scfm.errors import ConfigError
from scfm.model.base import CellModel
from scfm.tasks.calibration import Calibration
from scfm.tasks.classification import (
    ClassifiedCells,
    as_probabilities,
    classifier_embedding,
    classify_cells,
)
from scfm.tasks.probability_calibration import ProbabilityCalibration
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.inputs import InputConfig, open_input
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
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

UNKNOWN = "unknown"
EMBEDDING = "X_scfm"


@dataclass(frozen=True)
class ClassifierSummary:
    """How many cells got which label, and by what."""

    n_cells: int
    cells: Mapping[str, int]  # by label, "unknown" among them
    labels: tuple[str, ...]
    threshold: float
    is_calibrated: bool
    genes: GeneReport

    def __str__(self) -> str:
        how = "calibrated" if self.is_calibrated else "not calibrated"
        lines = [
            f"{self.n_cells:,} cells labelled by the model's classifier of {len(self.labels)} "
            f"types; unknown below {self.threshold:.3g} ({how})"
        ]
        lines += label_lines(self.cells, self.n_cells)
        return "\n".join([*lines, str(self.genes)])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "genes": self.genes.to_dict()}


@dataclass(frozen=True, kw_only=True)
class ClassifierAnnotation:
    """How scores become labels.

    Attributes
    ----------
    key_added
        Prefix of the obs columns.
    min_confidence
        Below it a cell is unknown; None: the calibrated threshold, 0.5 where there is none.
    ontology, ontology_threshold
        As ``scfm.tools.ontology_labels.ontology_annotation`` takes them; labels whose term the
        model's folder names are known by it.
    """

    key_added: str = "scfm"
    min_confidence: float | None = None
    batch_size: int = 64
    ontology: "bool | Mapped" = False
    ontology_threshold: float | None = None

    def __post_init__(self) -> None:
        checked_batch_size(self.batch_size)
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence must lie in [0, 1], got {self.min_confidence}.")


def annotate_by_classifier(
    adata: "AnnData", model: CellModel, how: ClassifierAnnotation, reading: InputConfig
) -> None:
    """Label an AnnData's cells: obs, obsm["X_scfm"], uns["scfm"]."""
    labels, seen = _Labels(model, how), classifier_embedding(model)
    member, report = open_input(adata, vocab_of(model), reading, model.token_config)
    parts = []
    for cells in classify_cells(model, member, batch_size=how.batch_size):
        labels.add(cells)
        parts.append(cells.embedding)
    columns = labels.columns()
    columns.index = adata.obs_names
    adata.obsm[EMBEDDING] = np.concatenate(parts)
    for name in columns:
        adata.obs[name] = columns[name]
    made = embed_settings(model, member, report, seen)
    adata.uns["scfm"] = {**scfm_uns(adata), EMBEDDING: made, how.key_added: labels.settings()}


def annotate_file_by_classifier(
    path: str | Path,
    model: CellModel,
    out: str | Path,
    how: ClassifierAnnotation,
    reading: InputConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClassifierSummary:
    """Label a file's cells in a new h5ad that holds everything an old h5ad did.

    The file is read in chunks; what grows with it are a few numbers a cell.
    """
    labels, seen = _Labels(model, how), classifier_embedding(model)
    member, report = open_input(path, vocab_of(model), reading, model.token_config, backed=True)
    source = member.source

    def write(file: SafeFile) -> None:
        target = new_embedding(file, EMBEDDING, source.n_cells, model.width(seen.pooling))
        for cells in classify_cells(model, member, batch_size=how.batch_size):
            index = cells.cell_index
            target[index[0] : index[-1] + 1] = cells.embedding
            file.check()
            labels.add(cells)
            on_progress(int(index[-1]) + 1, source.n_cells)
        put_obs(file, labels.columns())
        write_settings(file, EMBEDDING, embed_settings(model, member, report, seen))
        drop_stale_in(file, labels.settings(), how.key_added)
        write_settings(file, how.key_added, labels.settings())

    write_annotated(source, out, write)
    return labels.summary(report)


@dataclass
class _Labels:
    """The labels of cells that stream by."""

    model: CellModel
    how: ClassifierAnnotation
    parts: list[pd.DataFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        classifier_embedding(self.model)  # says what to do where there is no classifier
        assert self.model.classifier is not None
        self.spec, self.calibration = self.model.classifier.spec, Calibration.of(self.model)
        self.ontology = ontology_annotation(
            self.how.ontology,
            sorted(self.spec.labels),
            threshold=self.how.ontology_threshold,
            known=dict(self.spec.terms),
        )

    @property
    def threshold(self) -> float:
        given = self.how.min_confidence
        return self.calibration.threshold if given is None else given

    def add(self, cells: ClassifiedCells) -> None:
        """A chunk's labels. A cell without a gene the model knows is unknown, of no confidence."""
        tempering = ProbabilityCalibration(temperature=self.calibration.temperature)
        found = tempering.apply(as_probabilities(cells.scores, self.spec.labels))
        has_genes = cells.n_genes > 0
        found = TypeProbabilities(
            found.classes, np.where(has_genes[:, None], found.probabilities, 0.0), found.is_outlier
        )
        key, classes = self.how.key_added, list(self.spec.labels)
        known = [*classes, *[UNKNOWN][: UNKNOWN not in classes]]
        label = found.labels(self.threshold, UNKNOWN)
        second = [name or None for name in found.runner_up]
        columns = {
            f"{key}_cell_type": pd.Categorical(label, categories=known),
            f"{key}_confidence": found.confidence.astype(np.float32),
            f"{key}_runner_up": pd.Categorical(second, categories=classes),
        }
        said = pd.DataFrame(columns)
        if self.ontology is not None:
            said = pd.concat([said, self.ontology.columns(found, key)], axis=1)
        self.parts.append(said)

    def columns(self) -> pd.DataFrame:
        """What is said of each cell, as obs columns."""
        return tidied(pd.concat(self.parts, ignore_index=True))

    def settings(self) -> dict[str, Any]:
        """How the labels came about, for uns."""
        found = {
            "by": "classifier",
            "classes": list(self.spec.labels),
            "terms": dict(self.spec.terms),
            "temperature": self.calibration.temperature,
            "threshold": self.threshold,
            "is_calibrated": self.calibration.is_fitted,
            "weights_sha256": model_id(self.model),
            "scfm_version": __version__,
        }
        if self.ontology is not None:
            found |= self.ontology.settings()
        return found

    def summary(self, report: GeneReport) -> ClassifierSummary:
        counts = self.columns()[f"{self.how.key_added}_cell_type"].value_counts()
        return ClassifierSummary(
            n_cells=int(counts.sum()),
            cells={str(label): int(n) for label, n in counts.items() if n},
            labels=self.spec.labels,
            threshold=self.threshold,
            is_calibrated=self.calibration.is_fitted,
            genes=report,
        )
