"""Did the model see these cells in pretraining? Counted, named, and what cannot be known is said.

in   a model's folder (provenance.json; data.json of the run beside it), a data set
out  Contamination: cells of the data set found in the pretraining data, by file and store

A file that was pretrained on is known by its hash alone, wherever it lies. Single cells are looked
for in the pretraining data itself, where that is still in its place: exact copies by a hash of
their counts, near copies by sketches (scfm.data.leakage). Pretraining uses no labels, so cells that
are found tell of familiar profiles, not of known answers; how much that helps is not known here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt64

from scfm.data.blocked import CHUNK_CELLS, BlockedSource, in_blocks
from scfm.data.blocks import encode
from scfm.data.fingerprint import sha256
from scfm.data.gene_reading import VocabularyGenes, read_names
from scfm.data.leakage import FEWEST_GENES, KeyedSource, find_leaks, holds_whole_counts, keyed
from scfm.data.read import open_counts
from scfm.data.soma_address import is_address
from scfm.data.store import Store, is_store
from scfm.model.folder import find_model, read_provenance
from scfm.tokens.vocab import GeneVocab

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.model.base import CellModel

MOST_NAMED = 1_000  # cells listed in metrics.json
SHOWN = 5


@dataclass(frozen=True)
class Contamination:
    """What of a data set the model saw in pretraining.

    Attributes
    ----------
    name
        The data set.
    n_cells
        Its cells of at least 20 expressed genes; the others are alike by chance.
    is_same_file
        Whether the very file was pretrained on.
    n_exact, n_near
        Cells of which an exact, or only a near, copy was; near ones are a lower bound.
    by_source
        Exact copies by pretraining file or store; a cell may be in several.
    cells
        Names (obs index) of those with an exact copy, the first thousand.
    unknowable
        Sentences on what could not be looked at.
    """

    name: str
    n_cells: int
    is_same_file: bool
    n_exact: int
    n_near: int
    by_source: Mapping[str, int]
    cells: tuple[str, ...]
    unknowable: tuple[str, ...]

    def __str__(self) -> str:
        found = f"{self.n_exact:,} of {self.n_cells:,} cells of {self.name} are"
        if self.is_same_file:
            text = f"{self.name} is a file that the model was pretrained on, with all its cells."
        elif self.n_exact or self.n_near:
            where = ", ".join(f"{n:,} in {source}" for source, n in self.by_source.items() if n)
            names = ", ".join(self.cells[:SHOWN]) + (" ..." if self.n_exact > SHOWN else "")
            text = f"{found} exact copies of cells the model was pretrained on"
            text += f" ({where}; {names})" if self.n_exact else ""
            text += f"; at least {self.n_near:,} more are near copies." if self.n_near else "."
        elif self.by_source:
            text = f"None of {self.n_cells:,} cells of {self.name} is among the pretraining cells."
        else:
            text = f"Cells of {self.name} could not be looked for in the pretraining data."
        return " ".join([text, *self.unknowable])

    @property
    def is_clean(self) -> bool:
        """Whether all was looked at and nothing found."""
        return not (self.is_same_file or self.n_exact or self.n_near or self.unknowable)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": str(self)}


@dataclass(frozen=True)
class PretrainingData:
    """What a model's folder says it was pretrained on.

    Attributes
    ----------
    hashes
        Of the files, and of the files that went into the stores still there.
    paths
        Files and stores that are still in their place and unchanged.
    unknowable
        Sentences on what is not.
    """

    hashes: frozenset[str]
    paths: tuple[str, ...]
    unknowable: tuple[str, ...]


def pretraining_data(model: str | Path) -> PretrainingData:
    """Read a model folder's provenance, and data.json of the run it lies in."""
    folder = find_model(model)
    made = read_provenance(folder).get("data")
    record = folder.parent / "data.json"
    if not isinstance(made, Mapping):
        sentence = (
            "The model does not say what it was pretrained on, so whether it saw these cells "
            "cannot be known."
        )
        return PretrainingData(frozenset(), (), (sentence,))
    hashes = {digest for _, digest in made.get("files", [])}
    names = [name for name, _ in [*made.get("files", []), *made.get("stores", [])]]
    if folder.name != "model" or not record.exists():
        return PretrainingData(frozenset(hashes), (), (_only_hashes(names),))
    found = json.loads(record.read_text())
    paths, gone = [], []
    for path, digest in found["files"]:
        is_there = not is_address(path) and Path(path).exists() and sha256(Path(path)) == digest
        (paths if is_there else gone).append(path)
    for store in found.get("stores", []):
        if is_store(store["path"]):
            hashes |= {entry.sha256 for entry in Store(store["path"]).manifest.datasets}
        (paths if is_store(store["path"]) else gone).append(store["path"])
    missing = [Path(path).name for path in gone]
    return PretrainingData(
        frozenset(hashes), tuple(paths), (_only_hashes(missing),) if missing else ()
    )


def _only_hashes(names: Sequence[str]) -> str:
    which = ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
    return (
        f"Of the pretraining data {which or '(none is named)'} is not at hand as it then was: only "
        "whole files could be compared, by hash, and copies of single cells in it would not be "
        "seen."
    )


def find_contamination(
    pretraining: PretrainingData,
    data: "str | Path | AnnData",
    *,
    name: str,
    layer: str | None = None,
    species: Literal["auto", "human", "mouse"] = "auto",
) -> Contamination:
    """Look for a data set's cells in the pretraining data. Reads each file once."""
    is_file = isinstance(data, str | Path) and not is_address(data) and Path(data).exists()
    is_same = is_file and sha256(Path(str(data))) in pretraining.hashes
    with open_counts(data, layer=layer) as opened:
        ours = _keyed(in_blocks(opened), species)
        unknowable = list(pretraining.unknowable)
        if not holds_whole_counts(ours.source):
            unknowable.append(f"{name} holds expected counts, which hardly ever agree exactly.")
            return Contamination(name, opened.n_cells, is_same, 0, 0, {}, (), tuple(unknowable))
        hashes, n_genes = _hashes(ours)
        enough = n_genes >= FEWEST_GENES
        is_exact, n_near, by_source = np.zeros(len(hashes), dtype=bool), 0, {}
        for path in pretraining.paths:
            theirs = _keyed(_opened(path), species)
            if not holds_whole_counts(theirs.source):
                unknowable.append(f"{Path(path).name} holds expected counts and was not compared.")
                continue
            here = np.isin(hashes, _hashes(theirs)[0]) & enough
            by_source[Path(path).name] = int(here.sum())
            is_exact |= here
            n_near += _near(theirs, ours)
        index = opened.obs.index.astype(str)
    return Contamination(
        name=name,
        n_cells=int(enough.sum()),
        is_same_file=is_same,
        n_exact=int(is_exact.sum()),
        n_near=n_near,
        by_source=by_source,
        cells=tuple(index[np.flatnonzero(is_exact)[:MOST_NAMED]]),
        unknowable=tuple(unknowable),
    )


def learned_labels_of(model: "CellModel", data: "str | Path | AnnData", name: str) -> str | None:
    """A sentence where a model was fine-tuned on this very file, labels and all; else None."""
    made = model.provenance.get("finetuned", {}).get("data", {})
    is_file = isinstance(data, str | Path) and Path(data).is_file()
    if not is_file or made.get("sha256") != sha256(Path(str(data))):
        return None
    return (
        f"{name} was fine-tuned on {Path(str(data)).name} itself and has seen its labels, so its "
        "scores on these cells say nothing of new ones: take cells that it did not learn from."
    )


def _opened(path: str) -> Store | BlockedSource:
    if is_store(path):
        return Store(path)
    return in_blocks(open_counts(path, backed=True))


def _near(theirs: KeyedSource, ours: KeyedSource) -> int:
    n_theirs, n_ours = theirs.source.n_cells, ours.source.n_cells
    is_training = np.arange(n_theirs + n_ours) < n_theirs
    return find_leaks([theirs, ours], is_training, ~is_training).near


def _keyed(
    source: Store | BlockedSource, species: Literal["auto", "human", "mouse"]
) -> KeyedSource:
    human = GeneVocab.human()
    vocabulary = VocabularyGenes(human.symbols, human.ensembl_ids)
    if isinstance(source, Store):
        return keyed(source, "human", vocabulary)
    kind = read_names(source.var, vocabulary, species)[0].species
    return keyed(source, kind, vocabulary)


def _hashes(keyed_source: KeyedSource) -> tuple[UInt64[np.ndarray, " cell"], np.ndarray]:
    """The content hash of every cell, and its number of genes."""
    source = keyed_source.source
    if isinstance(source, Store):
        return source.numbers("cell_hash"), source.numbers("n_genes")
    columns = np.arange(len(keyed_source.keys), dtype=np.int32)
    parts = [encode(rows, columns, keyed_source.keys, 0) for rows in source.chunks(CHUNK_CELLS)]
    hashes = np.concatenate([part.cell_hash for part in parts])
    return hashes, np.concatenate([part.n_genes for part in parts]).astype(np.int64)
