"""scfm.tl.perturb_in_silico: genes taken out of cells, or put in, as a model of sentences sees it.

in   AnnData, a model of family scmulan, genes
out  obsm: of each cell and gene the shift of its type's probability and of its state; uns: a table
     of one row a gene, and of each gene's mean shift of all types

This asks the model what it has learned to go with a gene. It is no experiment: a gene that marks a
type moves that type's probability whether or not it causes it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.data.gene_choice import find_genes
from scfm.errors import ConfigError, ScfmWarning
from scfm.model.base import CellModel
from scfm.model.scmulan import ScmulanModel
from scfm.tasks.calibration import Calibration
from scfm.tasks.in_silico import GeneEdit, PerturbedChunk, perturb_cells
from scfm.tasks.word_annotation import POOLINGS, TypeWords
from scfm.tokens.inputs import open_input
from scfm.tokens.vocab import GeneVocab
from scfm.tools.embedding import checked_batch_size, checked_key, model_id, scfm_uns, vocab_of
from scfm.tools.loading import as_model, input_config
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData


def perturb_in_silico(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    genes: Sequence[str],
    how: str = "remove",
    value: int | None = None,
    key_added: str = "in_silico",
    pooling: str = "type",
    batch_size: int = 64,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """Take genes out of cells' sentences, or put them in, one after the other.

    A cell is asked for its types as it is, then without the gene (or with it), under the coarse
    word that was said of it first; the bins of its other genes stay. Confidences are tempered by
    the model's calibration.

    Parameters
    ----------
    genes
        Symbols, other names or Ensembl ids; "A+B" is both at once.
    how
        "remove": the gene is not said, in the cells that express it. "express": it is said in every
        cell with the value ``value``.
    value
        Bin of an expressed gene, 1 to the model's bins, which is the default: as much as the
        cell's most expressed gene.
    pooling
        Whose shift is measured: "type", the state at the first type word, or "prompt", at <PCT>.
    key_added
        Prefix in obsm, and the key in uns["scfm"].

    Returns
    -------
    The copy if ``copy``, else None. ``adata`` gains, as tables of one column a gene,
    ``obsm[f"{key_added}_type"]`` (difference of the probability of the cell's own type, after less
    before), ``obsm[f"{key_added}_distance"]`` (Euclidean, of the state) and
    ``obsm[f"{key_added}_cosine"]``; and ``uns["scfm"][key_added]`` with ``genes``, one row a gene
    (cells that express it, cells changed, means over the changed cells, the types that gain and
    lose most), and ``types``, each gene's mean shift of every type's probability.

    Raises ConfigError for genes the model does not know (with the nearest), a value that is no bin,
    and a model without type words. Warns of genes that no cell expresses.
    """
    model, key_added = as_model(model), checked_key(key_added, example="in_silico")
    types = TypeWords.of(model)
    assert isinstance(model, ScmulanModel)
    edit = _checked_edit(how, value, model, pooling)
    ids = _gene_ids(genes, vocab_of(model))
    config = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    member, report = open_input(adata, vocab_of(model), config, model.token_config)
    found = _Shifts(types, list(genes), adata.n_obs)
    temperature = Calibration.of(model).temperature
    for chunk in perturb_cells(
        *(model, member, ids, edit),
        temperature=temperature,
        pooling=pooling,
        batch_size=checked_batch_size(batch_size),
    ):
        found.add(chunk)
    adata = adata.copy() if copy else adata
    for name, table in found.cell_tables(adata.obs_names).items():
        adata.obsm[f"{key_added}_{name}"] = table
    settings = {
        "how": how,
        "value": edit.value if how == "express" else 0,
        "pooling": pooling,
        "temperature": temperature,
        "weights_sha256": model_id(model),
        "scfm_version": __version__,
        "gene_report": report.to_dict(),
    }
    adata.uns["scfm"] = {**scfm_uns(adata), key_added: {**settings, **found.gene_tables()}}
    if how == "remove":
        _warn_of_absent(found, adata.n_obs)
    return adata if copy else None


def _checked_edit(how: str, value: int | None, model: ScmulanModel, pooling: str) -> GeneEdit:
    if how not in ("remove", "express"):
        raise ConfigError(f"how is '{how}'; wanted 'remove' or 'express'.")
    if pooling not in POOLINGS:
        raise ConfigError(f"pooling is '{pooling}'; wanted {' or '.join(POOLINGS)}.")
    n_bins = model.config.sizes.n_bins
    if value is not None and how == "remove":
        raise ConfigError("value is for how='express'; a gene that is removed has none.")
    if value is not None and (int(value) != value or not 1 <= value <= n_bins):
        raise ConfigError(
            f"value is {value}; wanted a whole number from 1 to {n_bins}, the last bin (as the "
            "cell's most expressed gene). To take a gene out: how='remove'."
        )
    return GeneEdit(how, n_bins if value is None else int(value))  # pyright: ignore


def _gene_ids(genes: Sequence[str], vocab: GeneVocab) -> list[list[int]]:
    """Token ids of each entry, of which "A+B" has two."""
    if isinstance(genes, str) or not len(genes):
        raise ConfigError(f"genes is {genes!r}; wanted a list of at least one name, ['CD3E'].")
    parts = [[name.strip() for name in entry.split("+")] for entry in genes]
    if len({frozenset(names) for names in parts}) < len(parts):
        raise ConfigError(f"genes names one entry twice: {', '.join(genes)}.")
    # all at once, so that every unknown name is said in one message
    names = list(dict.fromkeys(name for entry in parts for name in entry))
    found = find_genes(names, vocab.symbols, vocab.ensembl_ids)
    place = dict(zip(names, (vocab.gene_start + found).tolist(), strict=True))
    return [sorted({place[name] for name in entry}) for entry in parts]


def _warn_of_absent(found: "_Shifts", n_cells: int) -> None:
    absent = [gene for gene, n in zip(found.genes, found.n_changed, strict=True) if not n]
    if absent:
        warnings.warn(
            f"None of the {n_cells:,} cells expresses {', '.join(absent)}: there was nothing to "
            "take out, and no shift. To put a gene in: how='express'.",
            ScfmWarning,
            stacklevel=3,
        )


@dataclass
class _Shifts:
    """What chunks say, put together: by cell and gene, and summed over cells by gene and type."""

    types: TypeWords
    genes: list[str]
    n_cells: int
    cells: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (self.n_cells, len(self.genes))
        self.cells = {name: np.zeros(shape, np.float32) for name in ("type", "distance", "cosine")}
        self.n_changed, self.n_renamed = (np.zeros(len(self.genes), np.int64) for _ in range(2))
        self.by_type = [np.zeros((len(self.genes), len(level.ids))) for level in self.types.levels]

    def add(self, chunk: PerturbedChunk) -> None:
        cells, own = chunk.cell_index, np.arange(len(chunk.cell_index))
        for number, shift in enumerate(chunk.genes):
            self.cells["type"][cells, number] = shift.types[-1][own, chunk.called]
            self.cells["distance"][cells, number] = shift.distance
            self.cells["cosine"][cells, number] = shift.cosine
            self.n_changed[number] += shift.is_changed.sum()
            self.n_renamed[number] += shift.has_other_type.sum()
            for total, level in zip(self.by_type, shift.types, strict=True):
                total[number] += level.sum(0)

    def cell_tables(self, names: pd.Index) -> dict[str, pd.DataFrame]:
        columns = pd.Index(self.genes)
        return {k: pd.DataFrame(v, index=names, columns=columns) for k, v in self.cells.items()}

    def gene_tables(self) -> dict[str, Any]:
        """Means over the changed cells; of a gene that changed none they are 0 (cosine 1)."""
        n = np.maximum(self.n_changed, 1)
        means = [total / n[:, None] for total in self.by_type]
        fine, words = means[-1], np.array(self.types.levels[-1].names, dtype=object)
        lost = self.n_cells - self.n_changed  # their cosine is 1, the rest of their rows 0
        table = pd.DataFrame(
            {
                "n_cells_changed": self.n_changed,
                "n_cells_of_another_type": self.n_renamed,
                "type_shift": self.cells["type"].sum(0, dtype=np.float64) / n,
                "distance": self.cells["distance"].sum(0, dtype=np.float64) / n,
                "cosine": np.where(
                    self.n_changed > 0,
                    (self.cells["cosine"].sum(0, dtype=np.float64) - lost) / n,
                    1.0,
                ),
                "gains_most": words[fine.argmax(1)],
                "gain": fine.max(1),
                "loses_most": words[fine.argmin(1)],
                "loss": fine.min(1),
            },
            index=pd.Index(self.genes),
        )
        found = {"genes": table, "types": self._by_word(means[-1], -1)}
        return found if len(means) == 1 else {**found, "coarse_types": self._by_word(means[0], 0)}

    def _by_word(self, shift: np.ndarray, level: int) -> pd.DataFrame:
        columns = pd.Index(self.types.levels[level].names)
        return pd.DataFrame(shift, index=pd.Index(self.genes), columns=columns)
