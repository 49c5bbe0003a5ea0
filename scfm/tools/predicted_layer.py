"""Predictions of a vocabulary's genes -> columns of an AnnData's layer.

in   var of the data, how its columns were matched, predictions (cell, gene)
out  LayerColumns: which column takes which gene; layers with NaN (or 0) elsewhere; sampled counts
"""

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import poisson

from scfm.data.genes import align
from scfm.data.write import SafeFile, put
from scfm.errors import ConfigError, InputError
from scfm.tokens.inputs import InputConfig
from scfm.tokens.pool import PoolMember
from scfm.tokens.vocab import GeneVocab

CHUNK_NUMBERS = 2**17  # of a compressed chunk, 512 KB: HDF5 keeps chunks of less than 1 MB open


@dataclass(frozen=True)
class LayerColumns:
    """Where predictions go.

    Attributes
    ----------
    gene_of
        For each column of the data the position of its gene among the vocabulary's; -1 where it
        takes no prediction.
    n_repeated
        Columns left out because an earlier one is the same gene.
    """

    gene_of: Int[np.ndarray, " column"]
    n_repeated: int

    @property
    def is_predicted(self) -> Bool[np.ndarray, " column"]:
        return self.gene_of >= 0

    @property
    def genes(self) -> Int[np.ndarray, " gene"]:
        """Genes to be predicted, ascending."""
        return np.sort(self.gene_of[self.is_predicted])

    def spread(self, predicted: np.ndarray, fill: float) -> np.ndarray:
        """(cell, gene) in the order of ``genes`` -> (cell, column), ``fill`` elsewhere."""
        layer = np.full((len(predicted), len(self.gene_of)), fill, dtype=predicted.dtype)
        columns = np.flatnonzero(self.is_predicted)
        layer[:, columns] = predicted[:, np.searchsorted(self.genes, self.gene_of[columns])]
        return layer


def layer_columns(
    var: pd.DataFrame,
    member: PoolMember,
    config: InputConfig,
    chosen: Int[np.ndarray, " gene"],
) -> LayerColumns:
    """Which columns of ``var`` take a prediction of the genes chosen.

    ``var`` may be wider than the counts' own (counts in raw): then its columns are matched anew.
    Raises ConfigError where no column does, InputError for a store of differing data sets.
    """
    column_genes = _column_genes(var, member, config)
    is_known = np.isin(column_genes, chosen)
    first = np.zeros(len(column_genes), dtype=bool)
    first[np.unique(column_genes, return_index=True)[1]] = True
    if not is_known.any():
        raise ConfigError(
            f"None of the {len(chosen):,} genes asked for has a column in {member.source.name}. "
            "Leave genes= out to denoise all that have one."
        )
    gene_of = np.where(is_known & first, column_genes, -1)
    return LayerColumns(gene_of.astype(np.int64), int((is_known & ~first).sum()))


def _column_genes(
    var: pd.DataFrame, member: PoolMember, config: InputConfig
) -> Int[np.ndarray, " column"]:
    vocab, tables = member.tokenizer.vocab, member.tokenizer.tables
    if not var.index.equals(member.source.var.index):
        return _matched(var, vocab, config, member.source.name).astype(np.int64)
    if len(tables.slots) != 1:
        raise InputError(
            f"{member.source.name} holds data sets whose columns mean different genes. Denoise "
            "them one by one: scfm prepare --export ONE.h5ad STORE --dataset NAME."
        )
    genes = tables.slots[0].astype(np.int64)
    return np.where(genes == vocab.n_genes, -1, genes)


def _matched(
    var: pd.DataFrame, vocab: GeneVocab, config: InputConfig, name: str
) -> Int[np.ndarray, " column"]:
    return align(
        var,
        vocab.symbols,
        vocab.ensembl_ids,
        species=config.species,
        orthologs=config.orthologs,
        duplicates=config.duplicates,
        name=name,
    ).column_to_gene


def sample_counts(
    predicted: Float[np.ndarray, "cell gene"],
    target_depth: Float[np.ndarray, " cell"],
    *,
    genes: Int[np.ndarray, " gene"],
    cell_index: Int[np.ndarray, " cell"],
    seed: int,
) -> Int[np.ndarray, "cell gene"]:
    """Poisson counts of cells of total 10^T with these profiles (log1p of counts per 10,000).

    Each count is the Poisson quantile of one uniform number that hangs on (seed, cell, gene), so
    rounding in one prediction cannot shift another gene's draw. Raises ConfigError for means that
    no count can hold.
    """
    mean = np.expm1(predicted.astype(np.float64)) * 10.0 ** (target_depth[:, None] - 4.0)
    if mean.max(initial=0) > 1e9:
        raise ConfigError(
            f"At this depth a gene would have {mean.max():.3g} counts in one cell. Choose a lower "
            "target_depth, or go without sample_counts."
        )
    u = np.empty(predicted.shape)
    n_drawn = int(genes.max()) + 1
    for row, cell in enumerate(cell_index):
        key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, int(cell)], dtype=np.uint64)
        u[row] = np.random.Generator(np.random.Philox(key=key)).random(n_drawn)[genes]
    counts = np.zeros(predicted.shape, dtype=np.int32)
    is_some = u > np.exp(-mean)  # most are 0, and the quantile function is slow
    counts[is_some] = poisson.ppf(u[is_some], mean[is_some])
    return counts


def new_layer(file: SafeFile, name: str, shape: tuple[int, int], dtype: type) -> Any:
    """An empty dense layer in an h5ad, compressed by blocks of cells."""
    if "layers" not in file:
        put(file, "layers", {})
    layers: Any = file["layers"]
    if name in layers:
        del layers[name]
    n_cells = max(1, min(shape[0], CHUNK_NUMBERS // shape[1]))
    array = layers.create_dataset(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(n_cells, shape[1]),
        compression="gzip",
        compression_opts=1,  # NaN and 0 shrink to nothing, predictions hardly at any level
        shuffle=True,
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def put_var(file: SafeFile, name: str, values: np.ndarray) -> None:
    """A column of var, in the place of one of that name."""
    var: Any = file["var"]
    if not isinstance(var, h5py.Group):
        raise InputError(
            "The file is of anndata < 0.7. Write it again: anndata.read_h5ad(IN).write_h5ad(OUT)."
        )
    put(file, f"var/{name}", values)
    order = [str(column) for column in var.attrs.get("column-order", [])]
    order += [] if name in order else [name]
    var.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())
