"""scfm.tl.annotate, and the same for a file: labels from a reference, by neighbours in embedding,
or without one from a model that was fine-tuned (scfm.tools.annotation_by_classifier) or that knows
words for cell types (scfm.tools.annotation_by_words).

in   query and labelled reference (AnnData or paths), a model
out  obs["scfm_cell_type"], obs["scfm_confidence"], obs["scfm_runner_up"]; settings in uns["scfm"]
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.data.genes import GeneReport
from scfm.data.write import SafeFile, put_obs, write_annotated
from scfm.errors import ConfigError, LabelError
from scfm.model.base import CellModel
from scfm.tasks.embedding import EmbeddingConfig, embed_cells
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig, NeighbourPrediction
from scfm.tasks.smoothing import SmoothingConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tools.annotation_by_classifier import (
    ClassifierAnnotation,
    ClassifierSummary,
    annotate_by_classifier,
    annotate_file_by_classifier,
)
from scfm.tools.annotation_by_words import (
    EMBEDDING,
    UNKNOWN,
    WordAnnotation,
    WordSummary,
    annotate_by_words,
    annotate_file_by_words,
)
from scfm.tools.embedding import (
    checked_batch_size,
    checked_key,
    embed_settings,
    embed_source,
    model_id,
    new_embedding,
    scfm_uns,
    vocab_of,
    write_settings,
)
from scfm.tools.loading import as_model, input_config

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class AnnotationSummary:
    """How many cells got which label, and what stands behind it."""

    n_cells: int
    cells: Mapping[str, int]  # by label, "unknown" among them
    n_reference: int
    left_out: Mapping[str, int]  # reference cells, by reason
    genes: GeneReport

    def __str__(self) -> str:
        width = max(map(len, self.cells), default=0)
        lines = [f"{self.n_cells:,} cells labelled by {self.n_reference:,} reference cells"]
        for label, n in sorted(self.cells.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"  {label:<{width}}  {n:>8,}  {n / self.n_cells:>6.1%}")
        lines += [f"  reference cells left out ({why}): {n:,}" for why, n in self.left_out.items()]
        return "\n".join([*lines, str(self.genes)])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "genes": self.genes.to_dict()}


def annotate(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    reference: "AnnData | str | Path | None" = None,
    label_key: str | None = None,
    key_added: str = "scfm",
    n_neighbours: int = 15,
    min_confidence: float | None = None,
    smooth: bool = False,
    pooling: str | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """Label every cell by its nearest neighbours in a labelled reference, or by a model's words.

    With a ``reference``: both are embedded with the model (``layer`` says where the query's counts
    are; the reference's are found). What sequencing depth does to the embedding within a label is
    taken out; cosine neighbours vote, weighted by distance. A cell is "unknown" where the vote is
    split below ``min_confidence``, or where it is less like the reference than 99 % of the
    reference's own cells are.

    Without one: a fine-tuned model (`scfm.tl.finetune_celltype`) says each cell's type by its
    classifier, calibrated on cells that were held out. A model of family scmulan says it by words,
    coarse then fine if it was trained so; the confidence is the probability of what it says,
    tempered by its calibration (`scfm.tl.calibrate`), below whose threshold a cell is "unknown".

    Parameters
    ----------
    reference
        Labelled cells with raw counts; a path may be of any readable format.
    label_key
        Column of the reference's obs. Cells without a label do not vote.
    key_added
        Prefix of the obs columns.
    n_neighbours
        Reference cells that vote; of ``smooth`` the size of a neighbourhood.
    min_confidence
        Below it a cell is unknown. None: 0.5; by words the model's calibrated threshold.
    smooth
        By words only: take the label that most of the weight (inverse distance) of a cell's
        neighbours in the embedding has, and its share as confidence. What was said of the cell
        alone stays in ``obs[f"{key_added}_own_cell_type"]``.
    pooling
        The embedding neighbours are found in and that is kept; by words "type" or "prompt".

    Returns
    -------
    The copy if ``copy``, else None: ``adata`` gains ``obs[f"{key_added}_cell_type"]``
    (categorical), ``obs[f"{key_added}_confidence"]`` (0 to 1), ``obs[f"{key_added}_runner_up"]``,
    ``obsm["X_scfm"]`` and ``uns["scfm"][key_added]``; by coarse and fine words also
    ``obs[f"{key_added}_coarse_type"]``.

    Raises LabelError where the reference has no such column or no labels, ConfigError without a
    reference for a model that neither was fine-tuned nor knows words for cell types.
    """
    _check_asked(reference, label_key, smooth)
    adata = adata.copy() if copy else adata
    model, key_added = as_model(model), checked_key(key_added)
    config = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    if reference is None and model.classifier is not None:
        annotate_by_classifier(
            adata, model, _by_classifier(key_added, min_confidence, smooth, batch_size), config
        )
        return adata if copy else None
    if reference is None or label_key is None:
        how = _by_words(key_added, n_neighbours, min_confidence, smooth, pooling, batch_size)
        annotate_by_words(adata, model, how, config)
        return adata if copy else None
    voters = fit_reference(
        model,
        reference,
        label_key,
        _neighbours(n_neighbours, min_confidence),
        reading=config,
        pooling=pooling,
        batch_size=batch_size,
    )
    settings = annotate_settings(voters, reference, label_key, model)
    annotate_with(adata, model, voters, config, key_added, settings, pooling, batch_size)
    return adata if copy else None


def annotate_with(
    adata: "AnnData",
    model: CellModel,
    voters: NeighbourClassifier,
    config: InputConfig,
    key_added: str,
    settings: dict[str, Any],
    pooling: str | None = None,
    batch_size: int = 64,
) -> None:
    """Embed an AnnData and let a fitted reference label it; ``settings`` are kept in uns."""
    member, report = open_input(adata, vocab_of(model), config, model.token_config)
    how = EmbeddingConfig.of(model, pooling)
    found = embed_source(model, member, how, batch_size)
    columns = obs_columns(voters.predict(found.embedding, found.depth), key_added, voters.classes)
    columns.index = adata.obs_names
    adata.obsm[EMBEDDING] = found.embedding
    for name in columns:
        adata.obs[name] = columns[name]
    made = embed_settings(model, member, report, how)
    adata.uns["scfm"] = {**scfm_uns(adata), EMBEDDING: made, key_added: settings}


def annotate_file(
    path: str | Path,
    model: CellModel | str | Path,
    out: str | Path,
    *,
    reference: "AnnData | str | Path | None" = None,
    label_key: str | None = None,
    key_added: str = "scfm",
    n_neighbours: int = 15,
    min_confidence: float | None = None,
    smooth: bool = False,
    pooling: str | None = None,
    batch_size: int = 64,
    config: InputConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnnotationSummary | WordSummary | ClassifierSummary:
    """Label a file's cells in a new h5ad that holds everything an old h5ad did.

    The file is read in chunks; what grows with it are the label and two numbers a cell.
    """
    _check_asked(reference, label_key, smooth)
    model, key_added = as_model(model), checked_key(key_added)
    if reference is None and model.classifier is not None:
        how = _by_classifier(key_added, min_confidence, smooth, batch_size)
        reading = config or InputConfig()
        return annotate_file_by_classifier(path, model, out, how, reading, on_progress)
    if reference is None or label_key is None:
        how = _by_words(key_added, n_neighbours, min_confidence, smooth, pooling, batch_size)
        reading = config or InputConfig()
        return annotate_file_by_words(path, model, out, how, reading, on_progress)
    voters = fit_reference(
        model,
        reference,
        label_key,
        _neighbours(n_neighbours, min_confidence),
        reading=config,
        pooling=pooling,
        batch_size=batch_size,
    )
    how, reading = EmbeddingConfig.of(model, pooling), config or InputConfig()
    member, report = open_input(path, vocab_of(model), reading, model.token_config, backed=True)
    source, parts = member.source, []

    def write(file: SafeFile) -> None:
        width = model.width(how.pooling)
        target = new_embedding(file, EMBEDDING, source.n_cells, width)
        for found in embed_cells(model, member, how, batch_size=checked_batch_size(batch_size)):
            cells, labels = found.cell_index, voters.predict(found.embedding, found.depth)
            target[cells[0] : cells[-1] + 1] = found.embedding
            file.check()
            parts.append(obs_columns(labels, key_added, voters.classes))
            on_progress(int(cells[-1]) + 1, source.n_cells)
        put_obs(file, pd.concat(parts, ignore_index=True))
        write_settings(file, EMBEDDING, embed_settings(model, member, report, how))
        write_settings(file, key_added, annotate_settings(voters, reference, label_key, model))

    write_annotated(source, out, write)
    found = Counter(label for part in parts for label in part[f"{key_added}_cell_type"])
    return AnnotationSummary(
        n_cells=source.n_cells,
        cells=dict(found),
        n_reference=len(voters.codes),
        left_out=dict(voters.dropped),
        genes=report,
    )


def _check_asked(reference: object, label_key: str | None, smooth: bool) -> None:
    """ConfigError for arguments that do not go together."""
    if reference is None and label_key is not None:
        raise ConfigError(
            f"label_key is '{label_key}', a column of a reference, and there is no reference. Give "
            "reference= (--reference) too, or leave both out to annotate by the model's words."
        )
    if reference is not None and label_key is None:
        raise ConfigError("A reference needs label_key= (--label): its obs column of cell types.")
    if reference is not None and smooth:
        raise ConfigError(
            "smooth is for annotation by words; with a reference, neighbours vote already. Leave "
            "out smooth (--smooth), or the reference."
        )


def _neighbours(n_neighbours: int, min_confidence: float | None) -> NeighbourConfig:
    sure = NeighbourConfig.min_confidence if min_confidence is None else min_confidence
    return NeighbourConfig(n_neighbours=n_neighbours, min_confidence=sure)


def _by_classifier(
    key_added: str, min_confidence: float | None, smooth: bool, batch_size: int
) -> ClassifierAnnotation:
    if smooth:
        raise ConfigError(
            "smooth is for annotation by words; this model was fine-tuned and says types by its "
            "classifier. Leave out smooth (--smooth)."
        )
    return ClassifierAnnotation(
        key_added=key_added, min_confidence=min_confidence, batch_size=batch_size
    )


def _by_words(
    key_added: str,
    n_neighbours: int,
    min_confidence: float | None,
    smooth: bool,
    pooling: str | None,
    batch_size: int,
) -> WordAnnotation:
    share = SmoothingConfig.threshold if min_confidence is None else float(min_confidence)
    smoothing = SmoothingConfig(n_neighbours=n_neighbours, threshold=share) if smooth else None
    return WordAnnotation(
        key_added=key_added,
        min_confidence=min_confidence,
        smoothing=smoothing,
        pooling=pooling,
        batch_size=batch_size,
    )


def fit_reference(
    model: CellModel,
    reference: "AnnData | str | Path",
    label_key: str,
    config: NeighbourConfig,
    *,
    reading: InputConfig | None = None,
    pooling: str | None = None,
    batch_size: int = 64,
) -> NeighbourClassifier:
    """Embed the reference and let its labelled cells vote.

    ``reading`` says how the query is read; what of it can hold for two data sets holds here too,
    so not the layer, and not a species that was named: the reference may be of the other.
    """
    own = replace(reading or InputConfig(), layer=None, species="auto")
    member, _ = open_input(reference, vocab_of(model), own, model.token_config)
    labels = reference_labels(member.source.obs, member.source.name, label_key)
    found = embed_source(model, member, EmbeddingConfig.of(model, pooling), batch_size)
    return NeighbourClassifier.fit(found.embedding, labels, config, depth=found.depth)


def reference_labels(obs: Any, name: str, label_key: str) -> np.ndarray:
    """The reference's labels, one a cell. Raises LabelError where there are none."""
    if label_key not in obs:
        known = ", ".join(map(str, obs.columns)) or "no columns at all"
        raise LabelError(
            f"The reference {name} has no obs column '{label_key}'; it has {known}. "
            "Name one that holds cell types: label_key=... or --label."
        )
    labels: pd.Series = obs[label_key]
    if bool(labels.isna().all()):
        raise LabelError(
            f"Column '{label_key}' of the reference {name} labels none of its "
            f"{len(obs):,} cells. Give a reference with labels, or another --label."
        )
    return labels.astype(object).to_numpy()


def obs_columns(
    found: NeighbourPrediction, key_added: str, classes: tuple[str, ...]
) -> pd.DataFrame:
    """What is said of each cell, as obs columns."""
    return pd.DataFrame(
        {
            f"{key_added}_cell_type": pd.Categorical(
                found.labels(UNKNOWN), categories=[*classes, *[UNKNOWN][: UNKNOWN not in classes]]
            ),
            f"{key_added}_confidence": found.confidence.astype(np.float32),
            f"{key_added}_runner_up": pd.Categorical(
                [name or None for name in found.runner_up], categories=list(classes)
            ),
        }
    )


def annotate_settings(
    voters: NeighbourClassifier, reference: Any, label_key: str, model: CellModel
) -> dict[str, Any]:
    """How the labels came about, for uns."""
    name = str(reference) if isinstance(reference, (str, Path)) else "AnnData"
    return {
        "reference": name,
        "label_key": label_key,
        "n_reference": len(voters.codes),
        "classes": list(voters.classes),
        "min_similarity": float(voters.min_similarity),
        "weights_sha256": model_id(model),
        **asdict(voters.config),
    }
