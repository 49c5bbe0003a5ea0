"""Annotation by a model that knows words for cell types; no reference is needed.

in   AnnData or a path, a model of family scmulan
out  obs["scfm_cell_type"], ["scfm_coarse_type"], ["scfm_confidence"], ["scfm_runner_up"]; by wish
     what each cell is in the Cell Ontology; obsm["X_scfm"], the state at the type word; settings in
     uns["scfm"]
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from scfm.data.genes import GeneReport
from scfm.data.write import SafeFile, put_obs, write_annotated
from scfm.errors import ConfigError
from scfm.evaluate.type_models import named_words
from scfm.model.base import CellModel
from scfm.tasks.calibration import Calibration
from scfm.tasks.embedding import EmbeddingConfig
from scfm.tasks.smoothing import SmoothingConfig, smooth
from scfm.tasks.type_calls import TypeCalls, call_types
from scfm.tasks.word_annotation import POOLINGS, TypeWords, WordedCells, annotate_cells
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
from scfm.tools.ontology_labels import Mapped, ontology_annotation, tidied, word_terms
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

UNKNOWN = "unknown"
EMBEDDING = "X_scfm"
READ_AGAIN = 4096  # cells of a written embedding at a time


@dataclass(frozen=True)
class WordSummary:
    """How many cells got which label, and by what."""

    n_cells: int
    cells: Mapping[str, int]  # by label, "unknown" among them
    types: tuple[str, ...]
    threshold: float
    is_calibrated: bool
    genes: GeneReport

    def __str__(self) -> str:
        how = "calibrated" if self.is_calibrated else "not calibrated: see scfm calibrate"
        lines = [
            f"{self.n_cells:,} cells labelled by the model's words of {' and '.join(self.types)}; "
            f"unknown below {self.threshold:.3g} ({how})"
        ]
        lines += label_lines(self.cells, self.n_cells)
        return "\n".join([*lines, str(self.genes)])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "genes": self.genes.to_dict()}


@dataclass(frozen=True, kw_only=True)
class WordAnnotation:
    """How words become labels.

    Attributes
    ----------
    key_added
        Prefix of the obs columns.
    min_confidence
        Below it a cell is unknown; None: the model's calibrated threshold, 0.5 where it has none.
        With ``smoothing`` the neighbours' threshold decides in its place.
    smoothing
        Take the label that a cell's neighbours agree on.
    pooling
        Which state goes to obsm: "type", at the first type word, or "prompt", at <PCT>.
    ontology, ontology_threshold
        As ``scfm.tools.ontology_labels.ontology_annotation`` takes them; words that bear ids of
        the ontology in the model's vocabulary are known by these.
    """

    key_added: str = "scfm"
    min_confidence: float | None = None
    smoothing: SmoothingConfig | None = None
    pooling: str | None = None
    batch_size: int = 64
    ontology: "bool | Mapped" = False
    ontology_threshold: float | None = None

    def __post_init__(self) -> None:
        checked_batch_size(self.batch_size)
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence must lie in [0, 1], got {self.min_confidence}.")
        if self.pooling not in (None, *POOLINGS):
            raise ConfigError(
                f"pooling is '{self.pooling}'; annotation by words keeps {' or '.join(POOLINGS)}. "
                "For another embedding take scfm.tl.embed (scfm embed)."
            )

    def embedding(self, model: CellModel) -> EmbeddingConfig:
        return EmbeddingConfig.of(model, self.pooling or "type", "source")


def annotate_by_words(
    adata: "AnnData", model: CellModel, how: WordAnnotation, reading: InputConfig
) -> None:
    """Label an AnnData's cells: obs, obsm["X_scfm"], uns["scfm"]."""
    labels = _Labels(model, how)  # before anything is read: not every model can
    member, report = open_input(adata, vocab_of(model), reading, model.token_config)
    parts = []
    for cells in annotate_cells(
        model, member, pooling=how.pooling or "type", batch_size=how.batch_size
    ):
        labels.add(cells)
        parts.append(cells.embedding)
    columns = labels.columns(lambda: iter(parts))
    columns.index = adata.obs_names
    adata.obsm[EMBEDDING] = np.concatenate(parts)
    for name in columns:
        adata.obs[name] = columns[name]
    made = embed_settings(model, member, report, how.embedding(model))
    adata.uns["scfm"] = {
        **scfm_uns(adata),
        EMBEDDING: made,
        how.key_added: labels.settings(),
    }


def annotate_file_by_words(
    path: str | Path,
    model: CellModel,
    out: str | Path,
    how: WordAnnotation,
    reading: InputConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> WordSummary:
    """Label a file's cells in a new h5ad that holds everything an old h5ad did.

    The file is read in chunks; what grows with it are a few numbers a cell, with smoothing ten
    more (the embedding is read again from ``out``).
    """
    labels = _Labels(model, how)
    member, report = open_input(path, vocab_of(model), reading, model.token_config, backed=True)
    source, settings = member.source, how.embedding(model)

    def write(file: SafeFile) -> None:
        target = new_embedding(file, EMBEDDING, source.n_cells, model.width(settings.pooling))
        for cells in annotate_cells(
            model, member, pooling=settings.pooling, batch_size=how.batch_size
        ):
            index = cells.cell_index
            target[index[0] : index[-1] + 1] = cells.embedding
            file.check()
            labels.add(cells)
            on_progress(int(index[-1]) + 1, source.n_cells)
        put_obs(file, labels.columns(lambda: _chunks_of(target)))
        write_settings(file, EMBEDDING, embed_settings(model, member, report, settings))
        drop_stale_in(file, labels.settings(), how.key_added)
        write_settings(file, how.key_added, labels.settings())

    write_annotated(source, out, write)
    return labels.summary(report)


def _chunks_of(array: Any) -> Iterator[np.ndarray]:
    return (array[first : first + READ_AGAIN] for first in range(0, len(array), READ_AGAIN))


@dataclass
class _Labels:
    """The labels of cells that stream by."""

    model: CellModel
    how: WordAnnotation
    parts: list[tuple[TypeCalls, Bool[np.ndarray, " cell"]]] = field(default_factory=list)
    terms: list[pd.DataFrame] = field(default_factory=list)
    frame: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        self.types, self.calibration = TypeWords.of(self.model), Calibration.of(self.model)
        self.levels = [level.names for level in self.types.levels]
        self.ontology = ontology_annotation(
            self.how.ontology,
            sorted({word for names in self.levels for word in names}),
            threshold=self.how.ontology_threshold,
            known=word_terms(vocab_of(self.model)),
        )

    @property
    def threshold(self) -> float:
        """Of the model's own confidence."""
        given = self.how.min_confidence
        is_own = given is not None and self.how.smoothing is None
        return given if is_own else self.calibration.threshold  # pyright: ignore

    def add(self, cells: WordedCells) -> None:
        """A chunk's calls, and which of its cells name any gene."""
        calls = call_types(cells.logits, self.calibration.temperature)
        self.parts.append((calls, cells.n_genes > 0))
        if self.ontology is not None:
            found = named_words(cells.logits, self.levels, {}, self.calibration.temperature)
            found = replace(found, is_outlier=cells.n_genes == 0)
            self.terms.append(self.ontology.columns(found, self.how.key_added))

    def columns(self, embedding: Callable[[], Iterator[np.ndarray]]) -> pd.DataFrame:
        """What is said of each cell, as obs columns; ``embedding`` in chunks, for smoothing."""
        calls, has_genes = self._joined()
        codes, sure = self._named(-1, calls.fine, has_genes), calls.confidence * has_genes
        label = np.where(sure >= self.threshold, codes, -1)
        columns, key = {}, self.how.key_added
        if self.how.smoothing is not None:
            columns[f"{key}_own_cell_type"] = self._labels_of(-1, label)
            label, sure = smooth(embedding, codes, self.how.smoothing)
            label = np.where(sure >= self.how.smoothing.share, label, -1)
        columns = {f"{key}_cell_type": self._labels_of(-1, label), **columns}
        if len(self.types) > 1:
            is_sure = calls.coarse_confidence >= self.threshold
            coarse = np.where(is_sure, self._named(0, calls.coarse, has_genes), -1)
            columns[f"{key}_coarse_type"] = self._labels_of(0, coarse)
        columns[f"{key}_confidence"] = sure.astype(np.float32)
        columns[f"{key}_runner_up"] = self._runners_up(calls, has_genes)
        self.frame = pd.DataFrame(columns)
        if self.terms:
            more = tidied(pd.concat(self.terms, ignore_index=True))
            self.frame = pd.concat([self.frame, more], axis=1)
        return self.frame

    def settings(self) -> dict[str, Any]:
        """How the labels came about, for uns."""
        found = {
            "by": "words",
            "types": list(self.model.config.types or ()),
            "temperature": self.calibration.temperature,
            "threshold": self.threshold,
            "is_calibrated": self.calibration.is_fitted,
            "weights_sha256": model_id(self.model),
            "scfm_version": __version__,
        }
        if self.how.smoothing is not None:
            found["smoothing"] = asdict(self.how.smoothing)
        if self.ontology is not None:
            found |= self.ontology.settings()
        return found

    def summary(self, report: GeneReport) -> WordSummary:
        assert self.frame is not None, "columns come first"
        counts = self.frame[f"{self.how.key_added}_cell_type"].value_counts()
        smoothing = self.how.smoothing
        return WordSummary(
            n_cells=len(self.frame),
            cells={str(label): int(n) for label, n in counts.items() if n},
            types=tuple(self.model.config.types or ()),
            threshold=self.threshold if smoothing is None else smoothing.share,
            is_calibrated=self.calibration.is_fitted,
            genes=report,
        )

    def _joined(self) -> tuple[TypeCalls, Bool[np.ndarray, " cell"]]:
        calls = {
            name: np.concatenate([vars(part)[name] for part, _ in self.parts])
            for name in vars(self.parts[0][0])
        }
        return TypeCalls(**calls), np.concatenate([has_genes for _, has_genes in self.parts])

    def _named(
        self, level: int, words: Int[np.ndarray, " cell"], has_genes: Bool[np.ndarray, " cell"]
    ) -> Int[np.ndarray, " cell"]:
        """-1 for a word that names no type ("Unclassified"), and for cells without a gene."""
        return np.where(self.types.names_type(level)[words] & has_genes, words, -1)

    def _labels_of(self, level: int, words: Int[np.ndarray, " cell"]) -> pd.Categorical:
        """Names; the categories are those that occur, in the vocabulary's order, then unknown."""
        names, used = self.types.levels[level].names, np.unique(words)
        known = [names[word] for word in used if word >= 0]
        codes = np.where(words >= 0, np.searchsorted(used[used >= 0], words), len(known))
        return pd.Categorical.from_codes(
            codes, categories=[*known, UNKNOWN] if (used < 0).any() else known
        )

    def _runners_up(self, calls: TypeCalls, has_genes: Bool[np.ndarray, " cell"]) -> pd.Categorical:
        found = np.full(len(has_genes), None, dtype=object)
        for number, level in enumerate(self.types.levels):
            here = has_genes & (calls.runner_up_level == number)
            found[here] = np.array(level.names, dtype=object)[calls.runner_up[here]]
        return pd.Categorical(found)
