"""scfm.tl.build_reference: labelled cells -> a Reference, to save and use again.

in   labelled cells (AnnData or a path), a model
out  Reference; by wish its folder (scfm.tasks.reference_folder)
"""

import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from scfm.data.cell_labels import NO_LABEL, given_mapping, terms_of_labels
from scfm.data.cell_ontology import CellOntology
from scfm.data.fingerprint import sha256
from scfm.data.split import group_codes
from scfm.data.write import check_new_folder
from scfm.errors import ConfigError, LabelError, ModelError, ScfmWarning
from scfm.evaluate.labelled_cells import text_labels
from scfm.model.base import CellModel
from scfm.tasks.embedding import EmbeddedCells, EmbeddingConfig, embed_cells
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig
from scfm.tasks.prototypes import PrototypeClassifier
from scfm.tasks.reference import Reference
from scfm.tasks.reference_folder import load_reference, save_reference
from scfm.tasks.reference_index import TENSORS, is_reference
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember
from scfm.tools.embedding import checked_batch_size, model_id, vocab_of
from scfm.tools.loading import as_model, input_config
from scfm.tools.reference_calibration import calibrate_votes
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["as_reference", "build_reference", "load_reference", "reference_of"]

NAMES_SHOWN = 5
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """How a reference is made.

    Attributes
    ----------
    label_key
        obs column of cell types.
    donor_key
        obs column of donors: calibration then is by donors held out, which is what the next donor
        will see. None: by cells, which is optimistic.
    mapping
        What labels mean in the Cell Ontology, where their names do not say it.
    n_neighbours
        Cells that vote.
    pooling
        Which vector of a cell; None: the model's first.
    precision
        Share of the named cells that must be right; it sets the threshold of "unknown".
    seed
        Of the folds that calibration is fitted on.
    """

    label_key: str
    donor_key: str | None = None
    mapping: "str | Path | Mapping[str, str] | None" = None
    n_neighbours: int = NeighbourConfig.n_neighbours
    pooling: str | None = None
    precision: float = 0.9
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        checked_batch_size(self.batch_size)
        if self.n_neighbours < 1:
            raise ConfigError(f"n_neighbours must be at least 1, got {self.n_neighbours}.")
        if not 0 < self.precision <= 1:
            raise ConfigError(f"precision is {self.precision}; wanted a share in (0, 1].")


def build_reference(
    adata: "AnnData | str | Path",
    model: CellModel | str | Path,
    *,
    label_key: str,
    out: str | Path | None = None,
    donor_key: str | None = None,
    mapping: "str | Path | Mapping[str, str] | None" = None,
    n_neighbours: int = 15,
    pooling: str | None = None,
    precision: float = 0.9,
    seed: int = 0,
    batch_size: int = 64,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
) -> Reference:
    """Embed labelled cells once, to label others with.

    Parameters
    ----------
    adata
        Labelled cells with raw counts; a path may be of any readable format.
    label_key
        Column of obs with names of cell types. Cells without one ("NA", "unknown") have no vote.
    out
        Folder to save it in; an earlier reference there is replaced. None: it is only returned.
    donor_key
        Column of donors, by which calibration is cross-validated; None: by cells, which is
        optimistic about another donor's.
    mapping
        What labels mean in the Cell Ontology, where their names do not say it: label to id or
        name, or a CSV (scfm ontology map).
    precision
        Share of the named cells that must be right: sets the threshold of "unknown".

    Returns
    -------
    The reference, as ``scfm.tl.annotate(adata, model, reference=...)`` takes it.

    Raises LabelError for a column that is absent, empty, numbers or of one label only.
    """
    reading = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    how = ReferenceConfig(
        label_key=label_key,
        donor_key=donor_key,
        mapping=mapping,
        n_neighbours=n_neighbours,
        pooling=pooling,
        precision=precision,
        seed=seed,
        batch_size=batch_size,
    )
    return reference_of(adata, as_model(model), how, reading, out)


def reference_of(
    data: "AnnData | str | Path",
    model: CellModel,
    how: ReferenceConfig,
    reading: InputConfig,
    out: str | Path | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Reference:
    """The same, read as ``reading`` says."""
    if out is not None:
        _require_place(model, out)
    member, _ = open_input(data, vocab_of(model), reading, model.token_config)
    labels = reference_labels(member.source.obs, member.source.name, how.label_key)
    donors = _donors(member, how.donor_key)
    embedding = EmbeddingConfig.of(model, how.pooling)
    found = _embedded(model, member, embedding, how.batch_size, on_progress)
    config = NeighbourConfig(n_neighbours=how.n_neighbours)
    voters = NeighbourClassifier.fit(found.embedding, labels, config, depth=found.depth)
    require_classes(voters, labels, member.source.name, how.label_key)
    rows = voters.rows
    own_labels = np.array(voters.classes, dtype=object)[voters.codes]
    cells = {"cell": member.source.obs.index[rows].astype(str), "row": rows}
    if donors is not None:
        cells["donor"] = donors[rows]
    reference = Reference(
        voters=voters,
        prototypes=PrototypeClassifier.of(voters),
        embedding=found.embedding[rows],
        depth=found.depth[rows],
        cells=pd.DataFrame(cells),
        calibrations=calibrate_votes(
            *(found.embedding[rows], own_labels, found.depth[rows]),
            None if donors is None else donors[rows],
            config,
            precision=how.precision,
            seed=how.seed,
        ),
        terms=_terms(voters.classes, how.mapping),
        genes=measured_symbols(member),
        facts=_facts(model, member, how, reading, embedding),
    )
    if out is not None:
        save_reference(reference, out)
        reference = replace(reference, folder=Path(out))
    return reference


def as_reference(source: "Reference | AnnData | str | Path") -> Reference | None:
    """A reference as it is, or loaded from its folder; None for labelled cells yet to embed."""
    if isinstance(source, Reference):
        return source
    if isinstance(source, (str, Path)) and (
        is_reference(source) or (Path(source) / TENSORS).is_file()
    ):
        return load_reference(source)
    return None


def rebuild_command(reference: Reference, model: CellModel) -> str:
    """What to type to have the same reference for this model."""
    facts = reference.facts
    data = facts["data"] if facts["data_sha256"] else "CELLS"
    words = ["scfm", "reference", "build", data, "--model", model.name_or_path or "MODEL"]
    words += ["--label", facts["label_key"]]
    if facts["donor_key"]:
        words += ["--donor", facts["donor_key"]]
    words += ["--layer", facts["layer"]] if facts["layer"] else []
    words += ["--orthologs"] if facts["orthologs"] else []
    return shlex.join([*words, "--out", str(reference.folder or "REF")])


def reference_labels(obs: Any, name: str, label_key: str) -> Shaped[np.ndarray, " cell"]:
    """The reference's labels as text, None where there is none, one a cell.

    Raises LabelError where there are none at all; warns of codes.
    """
    if label_key not in obs:
        known = ", ".join(map(str, obs.columns)) or "no columns at all"
        raise LabelError(
            f"The reference {name} has no obs column '{label_key}'; it has {known}. "
            "Name one that holds cell types: label_key=... or --label."
        )
    labels = text_labels(obs[label_key], label_key, name)
    is_said = [label is not None and label.strip().casefold() not in NO_LABEL for label in labels]
    labels[~np.array(is_said, dtype=bool)] = None
    if not any(is_said):
        raise LabelError(
            f"Column '{label_key}' of the reference {name} labels none of its "
            f"{len(obs):,} cells. Give a reference with labels, or another --label."
        )
    return labels


def require_classes(
    voters: NeighbourClassifier, labels: Shaped[np.ndarray, " cell"], name: str, label_key: str
) -> None:
    """LabelError for a single label; a warning of labels with too few cells to vote."""
    least = voters.config.min_cells
    if len(voters.classes) < 2:
        raise LabelError(
            f"Column '{label_key}' of the reference {name} has one label with at least {least} "
            f"cells, '{''.join(voters.classes)}': whatever was asked, it would be the answer. "
            "Wanted two or more; name another column: --label."
        )
    rare = sorted({str(label) for label in labels if label is not None} - set(voters.classes))
    if rare:
        more = f" and {len(rare) - NAMES_SHOWN:,} more" if len(rare) > NAMES_SHOWN else ""
        warnings.warn(
            f"{len(rare):,} labels of the reference {name} have fewer than {least} cells and are "
            f"left out: {', '.join(rare[:NAMES_SHOWN])}{more}. No cell will be called by them.",
            ScfmWarning,
            stacklevel=2,
        )


def measured_symbols(member: PoolMember) -> tuple[str, ...]:
    """The model's genes that some column of the data measures, by symbol."""
    vocab, slots = member.tokenizer.vocab, np.unique(member.tokenizer.tables.slots)
    return tuple(vocab.symbols[i] for i in slots[(slots >= 0) & (slots < vocab.n_genes)])


def _require_place(model: CellModel, out: str | Path) -> None:
    """Refuse before the long work what could not be kept after it."""
    if not model_id(model):
        raise ModelError(
            "This model was never saved, so a saved reference could not say whose it is. Save the "
            "model first: model.save_pretrained(FOLDER), then scfm.load(FOLDER)."
        )
    if not is_reference(out) and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        check_new_folder(out)


def _donors(member: PoolMember, donor_key: str | None) -> Shaped[np.ndarray, " cell"] | None:
    """Donor of each cell, "" where none is named. Warns where there is but one."""
    if donor_key is None:
        return None
    codes, names = group_codes(member.source.obs, donor_key, member.source.name)
    if len(names) < 2:
        found = f"one donor, '{names[0]}'" if names else "no donor"
        warnings.warn(
            f"Column '{donor_key}' of {member.source.name} names {found}: calibration is by cells "
            "held out, which is optimistic about another donor's.",
            ScfmWarning,
            stacklevel=2,
        )
    return np.array([*names, ""], dtype=object)[codes]


def _embedded(
    model: CellModel,
    member: PoolMember,
    how: EmbeddingConfig,
    batch_size: int,
    on_progress: Progress,
) -> EmbeddedCells:
    parts = []
    for found in embed_cells(model, member, how, batch_size=batch_size):
        parts.append(found)
        on_progress(int(found.cell_index[-1]) + 1, member.source.n_cells)
    return EmbeddedCells(*map(np.concatenate, zip(*parts, strict=True)))


def _terms(classes: tuple[str, ...], mapping: Any) -> dict[str, str]:
    ontology = CellOntology.load()
    found = terms_of_labels(dict.fromkeys(classes, 0), ontology, given_mapping(mapping, ontology))
    return found.terms


def _facts(
    model: CellModel,
    member: PoolMember,
    how: ReferenceConfig,
    reading: InputConfig,
    embedding: EmbeddingConfig,
) -> dict[str, Any]:
    source, report = member.source, member.reports[0]
    path = Path(source.name)
    return {
        "data": path.name,  # no more of the path: a reference is shared, and names no machine
        "data_sha256": sha256(path) if path.exists() else "",
        "n_cells": source.n_cells,
        "counts_from": source.counts_from,
        "species": report.species,
        "orthologs": report.orthologs,
        "genes": {**report.to_dict(), "name": path.name},
        "label_key": how.label_key,
        "donor_key": how.donor_key or "",
        "seed": how.seed,
        "precision": how.precision,
        "layer": reading.layer or "",
        "minimum_coverage": reading.minimum_coverage,
        "model_family": str(model.config.model_type),
        "weights_sha256": model_id(model),
        "vocab_hash": vocab_of(model).hash,
        "pooling": embedding.pooling,
        "target_depth": str(embedding.target_depth),
        "ontology_version": CellOntology.load().version,
        "scfm_version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
