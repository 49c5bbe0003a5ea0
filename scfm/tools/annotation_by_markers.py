"""Annotation by marker genes: no model, no embedding, a score that can be checked by eye.

in   AnnData or a path, a MarkerTable; labelled cells to calibrate on, where there are some
out  obs["scfm_cell_type"], ["scfm_confidence"], ["scfm_runner_up"]; obsm["scfm_marker_scores"];
     settings in uns["scfm"], with the markers that the data do not measure
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.data.cell_labels import terms_of_labels
from scfm.data.cell_ontology import CellOntology
from scfm.data.counts import CellSource, CountRows
from scfm.data.marker_table import MarkerTable
from scfm.data.read import open_counts
from scfm.data.store import Store, is_store
from scfm.data.write import SafeFile, put_obs, write_annotated
from scfm.errors import ConfigError, GeneCoverageError, ScfmWarning
from scfm.evaluate.labelled_cells import gene_keys
from scfm.tasks.marker_scores import MarkerScorer
from scfm.tasks.probability_calibration import (
    LEAST_THRESHOLD,
    ProbabilityCalibration,
    fit_probability_calibration,
)
from scfm.tokens.inputs import InputConfig
from scfm.tools.annotation_by_reference import label_columns
from scfm.tools.earlier_labels import drop_stale_in
from scfm.tools.embedding import new_embedding, scfm_uns, write_settings
from scfm.tools.label_table import label_lines
from scfm.tools.ontology_labels import Mapped, ontology_annotation, tidied
from scfm.tools.reference import reference_labels
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

CHUNK_CELLS = 2048
NAMES_SHOWN = 8


@dataclass(frozen=True)
class MarkerSummary:
    """How many cells got which label, by which markers."""

    n_cells: int
    cells: Mapping[str, int]  # by label, "unknown" among them
    markers: str
    missing: Mapping[str, tuple[str, ...]]  # genes that the data do not measure, by type
    threshold: float
    calibration: Mapping[str, Any]  # empty: not calibrated

    def __str__(self) -> str:
        how = "calibrated" if self.calibration else "NOT calibrated: no labelled cells were given"
        lines = [
            f"{self.n_cells:,} cells labelled by {self.markers}; unknown below "
            f"{self.threshold:.3g} ({how})"
        ]
        lines += label_lines(self.cells, self.n_cells)
        lines += [f"  not measured, of {t}: {', '.join(g)}" for t, g in self.missing.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        missing = {label: list(genes) for label, genes in self.missing.items()}
        return {**vars(self), "missing": missing, "calibration": dict(self.calibration)}


@dataclass(frozen=True, kw_only=True)
class MarkerAnnotation:
    """How markers become labels.

    Attributes
    ----------
    markers
        The table.
    labelled, label_key
        Cells whose types are known, to calibrate on, and their obs column; None: the confidence is
        not calibrated, which is said.
    min_confidence
        Below it a cell is unknown; None: as calibrated, else 0.5.
    ontology, ontology_threshold
        As ``scfm.tools.ontology_labels.ontology_annotation`` takes them.
    """

    markers: MarkerTable
    key_added: str = "scfm"
    labelled: "AnnData | str | Path | None" = None
    label_key: str | None = None
    min_confidence: float | None = None
    ontology: "bool | Mapped" = False
    ontology_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence must lie in [0, 1], got {self.min_confidence}.")


def annotate_by_markers(adata: "AnnData", how: MarkerAnnotation, reading: InputConfig) -> None:
    """Label an AnnData's cells: obs, obsm, uns."""
    source = open_cells(adata, reading)
    labels = _Labels(how, reading, source)
    scores = np.concatenate([labels.add(rows) for rows in source.chunks(CHUNK_CELLS)])
    columns = labels.columns()
    columns.index = adata.obs_names
    adata.obsm[labels.score_key] = scores
    for name in columns:
        adata.obs[name] = columns[name]
    adata.uns["scfm"] = {**scfm_uns(adata), how.key_added: labels.settings()}


def annotate_file_by_markers(
    path: str | Path,
    out: str | Path,
    how: MarkerAnnotation,
    reading: InputConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> MarkerSummary:
    """Label a file's cells in a new h5ad that holds everything an old h5ad did; read in chunks."""
    source = open_cells(path, reading, backed=True)
    labels = _Labels(how, reading, source)

    def write(file: SafeFile) -> None:
        n_types = len(labels.scorer.classes)
        target = new_embedding(file, labels.score_key, source.n_cells, n_types)
        for rows in source.chunks(CHUNK_CELLS):
            at = slice(int(rows.cell_index[0]), int(rows.cell_index[-1]) + 1)
            target[at] = labels.add(rows)
            file.check()
            on_progress(at.stop, source.n_cells)
        put_obs(file, labels.columns())
        drop_stale_in(file, labels.settings(), how.key_added)
        write_settings(file, how.key_added, labels.settings())

    write_annotated(source, out, write)
    return labels.summary()


def open_cells(
    data: "AnnData | str | Path", reading: InputConfig, backed: bool | None = None
) -> CellSource:
    """Cells with raw counts; their genes are not held to any model's."""
    if isinstance(data, (str, Path)) and is_store(data):
        return Store(data)  # pyright: ignore[reportReturnType]
    return open_counts(
        data, layer=reading.layer, expected_counts=reading.expected_counts, backed=backed
    )


@dataclass(frozen=True)
class MatchedMarkers:
    """A table's types over the columns of one data set; ``missing`` genes by type."""

    scorer: MarkerScorer
    missing: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, table: MarkerTable, source: CellSource, species: str) -> "MatchedMarkers":
        """By today's Ensembl ids where names are known, so that old symbols and ids meet.

        Raises GeneCoverageError where fewer than two types have a gene in the data; warns of the
        types that have none.
        """
        keys, kind = gene_keys(source.var, species)
        names, own = table.genes, "human" if kind == "unknown" else kind
        named = dict(
            zip(names, gene_keys(pd.DataFrame(index=pd.Index(names)), own)[0], strict=True)
        )
        # a second column of one gene is KEY#2: its counts belong to KEY
        columns, genes = pd.factorize(pd.Series([key.partition("#")[0] for key in keys]))
        place = {gene: at for at, gene in enumerate(genes)}
        number = {name: place.get(named[name].partition("#")[0]) for name in names}
        kept, missing = [], {}
        for label, markers in table.types.items():
            both = (*markers.positive, *markers.negative)
            if absent := tuple(gene for gene in both if number[gene] is None):
                missing[label] = absent
            if any(number[gene] is not None for gene in markers.positive):
                kept.append(label)
        _require_types(kept, table, source.name, kind)
        sides = [
            [
                [at for gene in side(table.types[label]) if (at := number[gene]) is not None]
                for label in kept
            ]
            for side in (lambda m: m.positive, lambda m: m.negative)
        ]
        return cls(MarkerScorer.of(kept, columns.astype(np.int64), *sides), missing)


def _require_types(kept: list[str], table: MarkerTable, name: str, kind: str) -> None:
    if len(kept) < 2:
        genes = table.genes
        raise GeneCoverageError(
            f"{name} ({kind} genes) measures markers of {len(kept)} of the {len(table.types)} "
            f"types of {table.name}; wanted two or more. The table's genes begin "
            f"{', '.join(genes[:3])}: are they of this species, and symbols or Ensembl ids? Give "
            "a table that fits: --markers TABLE.csv."
        )
    if lost := sorted(set(table.types) - set(kept)):
        warnings.warn(
            f"{name} measures no marker of {', '.join(lost[:NAMES_SHOWN])}"
            f"{' ...' if len(lost) > NAMES_SHOWN else ''}: no cell will be called so.",
            ScfmWarning,
            stacklevel=3,
        )


@dataclass
class _Labels:
    """The labels of cells that stream by."""

    how: MarkerAnnotation
    reading: InputConfig
    source: CellSource
    parts: list[pd.DataFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        matched = MatchedMarkers.of(self.how.markers, self.source, self.reading.species)
        self.scorer, self.missing = matched.scorer, matched.missing
        self.calibration = calibration_of(self.how, self.reading)
        asked = self.how.min_confidence
        self.threshold = self.calibration.threshold if asked is None else asked
        self.ontology = ontology_annotation(
            self.how.ontology,
            self.scorer.classes,
            threshold=self.how.ontology_threshold,
            known=self.how.markers.terms,
        )
        self.score_key = f"{self.how.key_added}_marker_scores"

    def add(self, rows: CountRows) -> np.ndarray:
        """Label some cells; their scores."""
        scores = self.scorer.scores(rows)
        found = self.calibration.apply(self.scorer.probabilities(scores))
        columns = label_columns(found, self.threshold, self.how.key_added)
        if self.ontology is not None:
            more = self.ontology.columns(found, self.how.key_added)
            columns = pd.concat([columns, more], axis=1)
        self.parts.append(columns)
        return scores.astype(np.float32)

    def columns(self) -> pd.DataFrame:
        return tidied(pd.concat(self.parts, ignore_index=True))

    def settings(self) -> dict[str, Any]:
        """How the labels came about, for uns."""
        found = {
            "by": "markers",
            "markers": self.how.markers.name,
            "classes": list(self.scorer.classes),
            "genes_missing": [
                f"{t}: {gene}" for t, genes in self.missing.items() for gene in genes
            ],
            "temperature": self.calibration.temperature,
            "threshold": self.threshold,
            "is_calibrated": bool(self.calibration.facts),
            "scfm_version": __version__,
        }
        if self.ontology is not None:
            found |= self.ontology.settings()
        return found

    def summary(self) -> MarkerSummary:
        key = f"{self.how.key_added}_cell_type"
        found = Counter(label for part in self.parts for label in part[key])
        return MarkerSummary(
            n_cells=sum(found.values()),
            cells=dict(found),
            markers=self.how.markers.name,
            missing=self.missing,
            threshold=self.threshold,
            calibration=self.calibration.facts,
        )


def calibration_of(how: MarkerAnnotation, reading: InputConfig) -> ProbabilityCalibration:
    """Temperature and threshold from labelled cells; the plain one where none are given.

    A label is a type of the table by name, or by its term in the Cell Ontology. Other labels say
    nothing. Raises ConfigError where none is a type of the table.
    """
    if how.labelled is None or how.label_key is None:
        return ProbabilityCalibration()
    source = open_cells(how.labelled, InputConfig(expected_counts=reading.expected_counts))
    labels = reference_labels(source.obs, source.name, how.label_key)
    type_of = types_of_labels(sorted({str(x) for x in labels if x is not None}), how.markers)
    truth = np.array([type_of.get(str(label), "") for label in labels], dtype=object)
    scorer = MatchedMarkers.of(how.markers, source, "auto").scorer
    if not any(type_of.get(str(label)) for label in labels):
        raise ConfigError(
            f"No label of '{how.label_key}' in {source.name} is a type of {how.markers.name} "
            f"({', '.join(list(how.markers.types)[:5])} ...), so nothing can be calibrated. "
            "Rename the labels as the table has them, or leave out --reference."
        )
    scores = np.concatenate([scorer.scores(rows) for rows in source.chunks(CHUNK_CELLS)])
    is_known = truth != ""
    found = scorer.probabilities(scores)
    fitted = fit_probability_calibration(found.part(np.flatnonzero(is_known)), truth[is_known])
    return replace(fitted, threshold=max(fitted.threshold, LEAST_THRESHOLD))


def types_of_labels(labels: list[str], table: MarkerTable) -> dict[str, str]:
    """The table's type of each label that is one, by name or by term."""
    ontology = CellOntology.load()
    terms = terms_of_labels(dict.fromkeys(table.types, 0), ontology, table.terms).terms
    by_term = {term: label for label, term in terms.items()}
    own = terms_of_labels(dict.fromkeys(labels, 0), ontology).terms
    found = {label: by_term[term] for label, term in own.items() if term in by_term}
    return found | {label: label for label in labels if label in table.types}
