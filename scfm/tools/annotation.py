"""scfm.tl.annotate, and the same for a file: cell types four ways under one call.

in   AnnData or a path; a reference, a model with a classifier or words for types, or marker genes
out  obs["scfm_cell_type"], ["scfm_confidence"], ["scfm_runner_up"]; settings in uns["scfm"]

"reference": scfm.tools.annotation_by_reference; "classifier": annotation_by_classifier; "words":
annotation_by_words; "markers": annotation_by_markers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from scfm.data.marker_table import Given, marker_table
from scfm.data.soma_address import is_address
from scfm.errors import ConfigError, MissingFileError
from scfm.model.base import CellModel
from scfm.tasks.neighbours import NeighbourConfig
from scfm.tasks.reference import Reference, checked_vote
from scfm.tasks.smoothing import SmoothingConfig
from scfm.tokens.inputs import InputConfig
from scfm.tools.annotation_by_classifier import (
    ClassifierAnnotation,
    ClassifierSummary,
    annotate_by_classifier,
    annotate_file_by_classifier,
)
from scfm.tools.annotation_by_markers import (
    MarkerAnnotation,
    MarkerSummary,
    annotate_by_markers,
    annotate_file_by_markers,
)
from scfm.tools.annotation_by_reference import (
    AnnotationSummary,
    ReferenceAnnotation,
    annotate_by_reference,
    annotate_file_by_reference,
)
from scfm.tools.annotation_by_words import (
    WordAnnotation,
    WordSummary,
    annotate_by_words,
    annotate_file_by_words,
)
from scfm.tools.earlier_labels import drop_stale, settings_of
from scfm.tools.embedding import checked_key
from scfm.tools.loading import as_model, input_config
from scfm.tools.ontology_labels import Mapped
from scfm.tools.reference import ReferenceConfig, as_reference, reference_of

if TYPE_CHECKING:
    from anndata import AnnData

Method = Literal["reference", "classifier", "words", "markers"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What is asked of ``annotate``; its parameters are told there."""

    method: str | None = None
    reference: "Reference | AnnData | str | Path | None" = None
    label_key: str | None = None
    donor_key: str | None = None
    markers: Given = None
    vote: str = "neighbours"
    key_added: str = "scfm"
    n_neighbours: int | None = None
    min_confidence: float | None = None
    smooth: bool = False
    ontology: "bool | Mapped" = False
    ontology_threshold: float | None = None
    pooling: str | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        checked_key(self.key_added)
        checked_vote(self.vote)
        if self.method not in (None, *METHODS):
            raise ConfigError(f"method is '{self.method}'; known are {', '.join(METHODS)}.")
        self._check_together()

    @property
    def way(self) -> Method | Literal["model"]:
        """The method asked for; else by a reference where one is given, by markers likewise.

        "model": as the model can, see `way_of`.
        """
        if self.method is not None:
            return self.method  # pyright: ignore[reportReturnType]
        if self.reference is not None:
            return "reference"
        return "model" if self.markers is None else "markers"

    def way_of(self, model: CellModel) -> Method:
        """The same with a model at hand: by its classifier where it was fine-tuned, else words."""
        way = self.way
        if way == "model":
            return "words" if model.classifier is None else "classifier"
        return way

    def _check_together(self) -> None:
        """ConfigError for arguments that do not go together."""
        if self.reference is None and self.label_key is not None:
            raise ConfigError(
                f"label_key is '{self.label_key}', a column of a reference, and there is no "
                "reference. Give reference= (--reference) too, or leave both out to annotate by "
                "the model's words."
            )
        if self.way == "reference" and self.reference is None:
            raise ConfigError(
                "Annotation by reference needs one: reference=... (--reference REF), a folder of "
                "scfm reference build, or labelled cells with label_key= (--label)."
            )
        if self.way in ("words", "classifier") and self.reference is not None:
            raise ConfigError(
                f"Annotation by {self.way} needs no reference; leave it out, or ask for "
                "method='reference' (--method reference)."
            )
        if self.way != "markers" and self.markers is not None:
            raise ConfigError(
                f"markers= (--markers) is for method='markers', and this is by {self.way}. Leave "
                "one of them out."
            )
        if self.way == "reference" and self.smooth:
            raise ConfigError(
                "smooth is for annotation by words; with a reference, neighbours vote already. "
                "Leave out smooth (--smooth), or the reference."
            )

    def needs_model(self) -> bool:
        """Markers need none."""
        return self.way != "markers"

    def by_classifier(self) -> ClassifierAnnotation:
        if self.smooth:
            raise ConfigError(
                "smooth is for annotation by words; this model was fine-tuned and says types by "
                "its classifier. Leave out smooth (--smooth)."
            )
        return ClassifierAnnotation(
            key_added=self.key_added,
            min_confidence=self.min_confidence,
            batch_size=self.batch_size,
            ontology=self.ontology,
            ontology_threshold=self.ontology_threshold,
        )

    def by_words(self) -> WordAnnotation:
        smoothing = None
        if self.smooth:
            share = self.min_confidence
            smoothing = SmoothingConfig(
                n_neighbours=self.n_neighbours or SmoothingConfig.n_neighbours,
                threshold=SmoothingConfig.threshold if share is None else float(share),
            )
        return WordAnnotation(
            key_added=self.key_added,
            min_confidence=self.min_confidence,
            smoothing=smoothing,
            pooling=self.pooling,
            batch_size=self.batch_size,
            ontology=self.ontology,
            ontology_threshold=self.ontology_threshold,
        )

    def by_markers(self) -> MarkerAnnotation:
        if isinstance(self.reference, Reference) or (
            self.reference is not None and self.label_key is None
        ):
            raise ConfigError(
                "Markers are calibrated on labelled cells with their counts: reference=CELLS "
                "(--reference) with label_key= (--label). A saved reference holds no counts."
            )
        return MarkerAnnotation(
            markers=marker_table(self.markers),
            key_added=self.key_added,
            labelled=self.reference,
            label_key=self.label_key,
            min_confidence=self.min_confidence,
            ontology=self.ontology,
            ontology_threshold=self.ontology_threshold,
        )

    def by_reference(self) -> ReferenceAnnotation:
        return ReferenceAnnotation(
            key_added=self.key_added,
            vote=checked_vote(self.vote),
            min_confidence=self.min_confidence,
            ontology=self.ontology,
            ontology_threshold=self.ontology_threshold,
            batch_size=self.batch_size,
        )


def annotate(
    adata: "AnnData",
    model: CellModel | str | Path | None = None,
    *,
    method: str | None = None,
    reference: "Reference | AnnData | str | Path | None" = None,
    label_key: str | None = None,
    donor_key: str | None = None,
    markers: Given = None,
    vote: str = "neighbours",
    key_added: str = "scfm",
    n_neighbours: int | None = None,
    min_confidence: float | None = None,
    smooth: bool = False,
    ontology: "bool | Mapped" = False,
    ontology_threshold: float | None = None,
    pooling: str | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """Label every cell: by a reference, a fine-tuned model, a model's words, or marker genes.

    By reference: both sets are embedded with the model (``layer`` says where the query's counts
    are; the reference's are found). What sequencing depth does to the embedding within a label is
    taken out; cosine neighbours vote, weighted by distance, or each label's mean direction is
    asked. The confidence is a probability, calibrated on the reference's own cells; a cell is
    "unknown" below the threshold that was fitted with it, or where it is less like the reference
    than 99 % of the reference's own cells are.

    By classifier: a fine-tuned model (`scfm.tl.finetune_celltype`) says each cell's type,
    calibrated on cells that were held out.

    By words: a model of family scmulan says each cell's type, coarse then fine if it was trained
    so; the confidence is the probability of what it says, tempered by its calibration
    (`scfm.tl.calibrate`), below whose threshold a cell is "unknown".

    By markers: a gene-set score of each type (UCell's), without a model. With labelled cells as
    ``reference`` the confidence is calibrated on them; without it is not, which is said.

    Parameters
    ----------
    model
        From :func:`scfm.load`, or a path or hub id; not needed by markers.
    method
        "reference", "classifier", "words" or "markers"; None: by what is given, a reference before
        all; with neither reference nor markers as the model can.
    reference
        What `scfm.tl.build_reference` returned or saved; or labelled cells with raw counts, of any
        readable format, of which a reference is made now.
    label_key
        Column of the labelled cells' obs. Cells without a label do not vote.
    donor_key
        Column of their donors, by which calibration is then fitted.
    markers
        A CSV of cell_type and gene, YAML, or a mapping of type to genes; None: the shipped table
        of human immune cells.
    vote
        Of a reference: its "neighbours", or its labels' "prototypes", which is lighter.
    key_added
        Prefix of the obs columns.
    n_neighbours
        Reference cells that vote (None: 15, or as the reference was built); of ``smooth`` the size
        of a neighbourhood.
    min_confidence
        Below it a cell is unknown. None: as calibrated.
    smooth
        By words only: take the label that most of the weight (inverse distance) of a cell's
        neighbours in the embedding has, and its share as confidence. What was said of the cell
        alone stays in ``obs[f"{key_added}_own_cell_type"]``.
    ontology
        Also say each cell's type as the deepest term of the Cell Ontology whose probability
        reaches ``ontology_threshold`` (None: 0.8): True, or what labels mean where their names do
        not say it.
    pooling
        The embedding neighbours are found in and that is kept; by words "type" or "prompt".

    Returns
    -------
    The copy if ``copy``, else None: ``adata`` gains ``obs[f"{key_added}_cell_type"]``
    (categorical), ``obs[f"{key_added}_confidence"]`` (0 to 1), ``obs[f"{key_added}_runner_up"]``
    and ``uns["scfm"][key_added]``; but for markers ``obsm["X_scfm"]``. By neighbours also
    ``obsm[f"{key_added}_neighbours"]`` and ``obsm[f"{key_added}_similarity"]``, which
    `scfm.tl.support` puts in words; by markers ``obsm[f"{key_added}_marker_scores"]``; by coarse
    and fine words ``obs[f"{key_added}_coarse_type"]``; with ``ontology``
    ``obs[f"{key_added}_ontology_term"]``, ``_ontology_name`` and ``_ontology_confidence``.

    Raises LabelError where the reference has no such column or no labels, ModelError for a
    reference of another model, ConfigError for what does not go together, or a model that neither
    was fine-tuned nor knows words for cell types and is given no reference.
    """
    asked = Annotation(
        method=method,
        reference=reference,
        label_key=label_key,
        donor_key=donor_key,
        markers=markers,
        vote=vote,
        key_added=key_added,
        n_neighbours=n_neighbours,
        min_confidence=min_confidence,
        smooth=smooth,
        ontology=ontology,
        ontology_threshold=ontology_threshold,
        pooling=pooling,
        batch_size=batch_size,
    )
    adata = adata.copy() if copy else adata
    reading = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    before = settings_of(adata, key_added)
    if asked.way == "markers":
        annotate_by_markers(adata, asked.by_markers(), reading)
        drop_stale(adata, before, key_added)
        return adata if copy else None
    used = _model(model, asked)
    way = asked.way_of(used)
    if way == "classifier":
        annotate_by_classifier(adata, used, asked.by_classifier(), reading)
    elif way == "words":
        annotate_by_words(adata, used, asked.by_words(), reading)
    else:
        reference = ready_reference(asked, used, reading)
        annotate_by_reference(adata, used, reference, asked.by_reference(), reading)
    drop_stale(adata, before, key_added)
    return adata if copy else None


def annotate_file(
    path: str | Path,
    model: CellModel | str | Path | None,
    out: str | Path,
    *,
    config: InputConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> AnnotationSummary | ClassifierSummary | WordSummary | MarkerSummary:
    """Label a file's cells in a new h5ad that holds everything an old h5ad did.

    The file is read in chunks; what grows with it are the labels and a few numbers a cell.
    ``settings`` are those of `Annotation`, ``config`` is how the file is read.
    """
    asked, reading = Annotation(**settings), config or InputConfig()
    if asked.way == "markers":
        return annotate_file_by_markers(path, out, asked.by_markers(), reading, on_progress)
    used = _model(model, asked)
    way = asked.way_of(used)
    if way == "classifier":
        how = asked.by_classifier()
        return annotate_file_by_classifier(path, used, out, how, reading, on_progress)
    if way == "words":
        return annotate_file_by_words(path, used, out, asked.by_words(), reading, on_progress)
    reference = ready_reference(asked, used, reading)
    return annotate_file_by_reference(
        path, used, out, reference, asked.by_reference(), reading, on_progress
    )


def ready_reference(asked: Annotation, model: CellModel, reading: InputConfig) -> Reference:
    """The reference asked for: as it is, loaded, or made of labelled cells.

    ``reading`` says how the query is read; what of it can hold for two data sets holds here too,
    so not the layer, and not a species that was named: the reference may be of the other.
    """
    assert asked.reference is not None
    place = asked.reference
    if isinstance(place, str | Path) and not is_address(place) and not Path(place).exists():
        raise MissingFileError(f"{place}: no such reference (looked in {Path(place).absolute()}).")
    ready = as_reference(asked.reference)
    if ready is not None:
        _require_as_built(ready, asked)
        return ready
    if asked.label_key is None:
        raise ConfigError(
            "A reference of labelled cells needs label_key= (--label): their obs column of cell "
            "types. A folder that 'scfm reference build' wrote needs none."
        )
    how = ReferenceConfig(
        label_key=asked.label_key,
        donor_key=asked.donor_key,
        n_neighbours=asked.n_neighbours or NeighbourConfig.n_neighbours,
        pooling=asked.pooling,
        batch_size=asked.batch_size,
    )
    assert not isinstance(asked.reference, Reference)
    own = replace(reading, layer=None, species="auto")
    return reference_of(asked.reference, model, how, own)


def _require_as_built(reference: Reference, asked: Annotation) -> None:
    """ConfigError for settings that a reference was not built with."""
    built = {
        "label_key": reference.facts["label_key"],
        "donor_key": reference.facts["donor_key"] or None,
        "n_neighbours": reference.voters.config.n_neighbours,
        "pooling": reference.facts["pooling"],
    }
    for name, own in built.items():
        wanted = getattr(asked, name)
        if wanted is not None and wanted != own:
            raise ConfigError(
                f"{name} is {wanted!r}, and the reference {reference.name} was built and "
                f"calibrated with {own!r}. Leave it out, or build another: scfm reference build."
            )


def _model(model: CellModel | str | Path | None, asked: Annotation) -> CellModel:
    if model is None:
        raise ConfigError(
            f"Annotation by {'words' if asked.way == 'model' else asked.way} needs a model: "
            "model=... (--model). Without one there are "
            "markers: method='markers' (--method markers)."
        )
    return as_model(model)
