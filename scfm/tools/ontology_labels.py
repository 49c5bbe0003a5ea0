"""scfm.tl.map_labels, and annotation in terms of the Cell Ontology.

in   an obs column of cell types; or TypeProbabilities of cells that are being annotated
out  obs["cell_type_ontology_term"], ["cell_type_ontology_name"]; of annotated cells also
     ["scfm_ontology_confidence"]; settings in uns["scfm"]
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.data.cell_labels import (
    LabelTerms,
    given_mapping,
    refuse_none_found,
    terms_of_labels,
    told_of,
)
from scfm.data.cell_ontology import CellOntology
from scfm.data.formats import open_container
from scfm.data.split import group_codes
from scfm.data.store import Store, is_store
from scfm.errors import ScfmWarning
from scfm.tasks.back_off import THRESHOLD, BackedOff, Backing
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.words import Words

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.tokens.vocab import GeneVocab

UNKNOWN = "unknown"
NAMES_SHOWN = 5
Mapped = str | Path | Mapping[str, str] | None


def map_labels(
    adata: "AnnData", key: str, *, mapping: Mapped = None, key_added: str | None = None
) -> LabelTerms:
    """Say each cell's type in terms of the Cell Ontology.

    Parameters
    ----------
    adata
        Cells; counts are not looked at.
    key
        obs column of labels: names, synonyms, common short forms ("CD14+ Mono") or ids.
    mapping
        What labels mean, before all else: label to term id or name, or a CSV with columns label
        and term, such as ``report.write("mapping.csv")`` writes.
    key_added
        Prefix of the obs columns; default ``key``.

    Returns
    -------
    The report: how each label was found, those that were not with the nearest terms. ``adata``
    gains ``obs[f"{key_added}_ontology_term"]`` (ids, missing where there is none),
    ``obs[f"{key_added}_ontology_name"]`` and ``uns["scfm"][f"{key_added}_ontology"]``.

    Raises LabelError where there is no such column, no label has a term (numbers have none), or
    the mapping names what is no term.
    """
    from scfm.tools.embedding import checked_key, scfm_uns  # needs torch; the report does not

    prefix = checked_key(key if key_added is None else key_added)
    labels = label_terms(_table(adata), key, "AnnData", mapping)
    refuse_none_found(labels, f"'{key}' in AnnData")
    texts = adata.obs[key].astype(object)
    terms = texts.map(lambda text: labels.terms.get(str(text)), na_action="ignore")
    name = labels.ontology.name
    adata.obs[f"{prefix}_ontology_term"] = pd.Categorical(terms)
    adata.obs[f"{prefix}_ontology_name"] = pd.Categorical(terms.map(name, na_action="ignore"))
    made = {
        "label_key": key,
        "ontology_version": labels.ontology.version,
        "labels": [found.text for found in labels.found],
        "terms": [found.term for found in labels.found],
        "how": [found.how for found in labels.found],
    }
    adata.uns["scfm"] = {**scfm_uns(adata), f"{prefix}_ontology": made}
    return labels


def label_terms(obs: pd.DataFrame, key: str, name: str, mapping: Mapped = None) -> LabelTerms:
    """What an obs column's labels mean. Raises LabelError for an absent column."""
    ontology = CellOntology.load()
    codes, labels = group_codes(obs, key, name)
    counts = np.bincount(codes[codes >= 0], minlength=len(labels))
    n_cells = {label: int(n) for label, n in zip(labels, counts, strict=True)}
    given = given_mapping(mapping, ontology)
    return terms_of_labels(n_cells, ontology, given, n_without=int((codes < 0).sum()))


def _table(adata: "AnnData") -> pd.DataFrame:
    assert isinstance(adata.obs, pd.DataFrame), "obs is read when an AnnData is opened"
    return adata.obs


def file_label_terms(path: str | Path, key: str, mapping: Mapped = None) -> LabelTerms:
    """The same of a file or a store; only its table of cells is read."""
    if is_store(path):
        return label_terms(Store(path).obs, key, str(path), mapping)
    container = open_container(path)
    try:
        return label_terms(container.read_obs(), key, str(path), mapping)
    finally:
        container.close()


@dataclass(frozen=True)
class OntologyAnnotation:
    """How predicted classes become terms of the ontology, for one set of classes.

    ``backing`` says which terms there are; ``labels`` how each class's was found.
    """

    backing: Backing
    labels: LabelTerms

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        *,
        threshold: float | None = None,
        mapping: Mapped = None,
        known: Mapping[str, str] | None = None,
    ) -> "OntologyAnnotation":
        """For a method's classes; ``known`` are ids that came with them (a model's vocabulary).

        ``mapping`` is the user's and goes before these. Warns of classes without a term: what they
        have speaks for no term. Raises LabelError where no class has one, ConfigError for a
        threshold outside (0, 1].
        """
        ontology = CellOntology.load()
        sound = {name: ontology.resolve(term) for name, term in (known or {}).items()}
        given = {name: term for name, term in sound.items() if term}
        given |= given_mapping(mapping, ontology)
        labels = terms_of_labels(dict.fromkeys(classes, 0), ontology, given)
        refuse_none_found(labels, "the classes")
        terms = tuple(labels.terms.get(name, "") for name in classes)
        _warn_of_missing(labels)
        chosen = THRESHOLD if threshold is None else threshold
        return cls(Backing(tuple(classes), terms, ontology, chosen), labels)

    def columns(self, found: TypeProbabilities, key_added: str) -> pd.DataFrame:
        """obs columns of some cells; the categories are the same for any cells."""
        backed = self.backing.back_off(found)
        return pd.DataFrame(
            {
                f"{key_added}_ontology_term": pd.Categorical.from_codes(
                    backed.codes, categories=list(backed.terms)
                ),
                f"{key_added}_ontology_name": _names(backed),
                f"{key_added}_ontology_confidence": backed.confidence.astype(np.float32),
            }
        )

    def settings(self) -> dict[str, Any]:
        """How the terms came about, for uns; the terms in the classes' order, "" for none."""
        return {
            "ontology_version": self.backing.ontology.version,
            "ontology_threshold": self.backing.threshold,
            "ontology_classes": list(self.backing.classes),
            "ontology_terms": list(self.backing.class_terms),
        }


def ontology_annotation(
    asked: "bool | Mapped",
    classes: Sequence[str],
    *,
    threshold: float | None = None,
    known: Mapping[str, str] | None = None,
) -> OntologyAnnotation | None:
    """What annotate's ``ontology=`` asks for: True, a mapping or its CSV; None where nothing is."""
    if asked is None or asked is False:
        return None
    mapping = None if asked is True else asked
    return OntologyAnnotation.of(classes, threshold=threshold, mapping=mapping, known=known)


def tidied(columns: pd.DataFrame) -> pd.DataFrame:
    """The ontology's columns with the categories that occur, in their order: what legends list.

    For the whole table, when all its chunks are joined. Other columns are left as they are.
    """
    kept = columns.copy()
    for name in columns.select_dtypes("category"):
        if str(name).endswith(("_ontology_term", "_ontology_name")):
            kept[name] = columns[name].cat.remove_unused_categories()
    return kept


def word_terms(vocab: "GeneVocab") -> dict[str, str]:
    """Text of each type word of a model's vocabulary that bears an ontology id, and the id."""
    words = Words(vocab)
    ids = {word_id for column in words.columns.values() for word_id in column}
    pairs = {words.text_of(word_id): words.ontology_id_of(word_id) for word_id in sorted(ids)}
    return {text: term for text, term in pairs.items() if term.startswith("CL:")}


def _names(backed: BackedOff) -> pd.Categorical:
    codes = np.where(backed.codes < 0, len(backed.names), backed.codes)
    return pd.Categorical.from_codes(codes, categories=[*backed.names, UNKNOWN])


def _warn_of_missing(labels: LabelTerms) -> None:
    if not labels.missing:
        return
    told = "; ".join(told_of(found, labels.ontology) for found in labels.missing[:NAMES_SHOWN])
    n = len(labels.missing)
    more = f" and {n - NAMES_SHOWN:,} more" if n > NAMES_SHOWN else ""
    warnings.warn(
        f"{n:,} of {len(labels.found):,} classes have no term in the Cell Ontology: {told}{more}. "
        "Their probability speaks for no term. Say what they mean with ontology={'label': 'CL:...'}"
        " or a CSV (--ontology-mapping; scfm ontology map writes one to edit).",
        ScfmWarning,
        stacklevel=3,
    )
