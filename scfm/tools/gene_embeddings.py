"""scfm.tl.gene_embedding: genes in the context of each cell.

in   AnnData, a model of the scfoundation family, gene names
out  (n_cells, n_genes, d) decoder states in obsm, or in a zarr folder; or their means in uns
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scfm.errors import ConfigError, LabelError
from scfm.model.base import CellModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.tasks.decoding import DecodedCells, check_decodes, decode_cells
from scfm.tokens.inputs import open_input
from scfm.tokens.target_depth import parse_target_depth
from scfm.tools.decoded import chosen_genes, decoder_settings, say_unmeasured
from scfm.tools.embedding import checked_batch_size, checked_key, scfm_uns, vocab_of
from scfm.tools.loading import as_model, input_config
from scfm.tools.memory import check_fits
from scfm.tools.zarr_output import write_cell_array

if TYPE_CHECKING:
    from anndata import AnnData

ALL = "all"
REMEDY = "Give out='genes.zarr' to write it to a folder, fewer genes=, or average_by='all'."


def gene_embedding(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    genes: Sequence[str] | None = None,
    target_depth: float | str | None = None,
    key_added: str = "X_scfm_genes",
    out: str | Path | None = None,
    average_by: str | None = None,
    batch_size: int = 8,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """Context embeddings of genes: the decoder's states, before its last layer, in each cell.

    Parameters
    ----------
    adata
        Raw counts in X, ``layers["counts"]`` or ``raw``; it may be backed.
    model
        Of the scfoundation family.
    genes
        Symbols or Ensembl ids; their order is kept. None: all genes of the vocabulary, in its
        order. A gene the data does not measure counts as not expressed; a warning says so.
    target_depth
        Depth asked for (T): log10 of a total count, or "t4", "f2", "a1", or "source", each cell's
        own; None: the model's default.
    out
        A zarr folder for the array, written as it is made: it appears when it is whole, and memory
        does not grow with the number of cells. An earlier such result of that name is replaced, any
        other folder or file refused.
    average_by
        "all", or a column of obs: only means over all cells, or over the cells of each value, are
        kept. Cells without a value are left out.

    Returns
    -------
    The copy if ``copy``, else None. ``adata`` gains ``uns["scfm"][key_added]``, which names the
    genes, and:

    - ``obsm[key_added]``, (n_cells, n_genes, d_decoder) float32. obsm takes arrays of any number of
      axes, is cut and written with its cells, and comes back from h5ad as it was; or
    - with ``out`` no more: "embedding" in that folder is the same array (scfm.tools.zarr_output);
    - with ``average_by`` ``uns[key_added]``: "embedding" (n_groups, n_genes, d_decoder), "genes",
      "groups", "n_cells".

    Raises
    ------
    ConfigError
        Unknown genes, with the nearest names; an array beyond scfm.tools.memory's bound.
    ModelError
        A model without such a decoder.

    Source: Hao et al. 2024 (scFoundation), doi:10.1038/s41592-024-02305-7.
    """
    adata = adata.copy() if copy else adata
    model, key_added = as_model(model), checked_key(key_added)
    if out is not None and average_by is not None:
        raise ConfigError("out= is for single cells; means (average_by=) are small. Leave out one.")
    check_decodes(model, "states")
    assert isinstance(model, ScfoundationModel), "checked above"
    chosen = chosen_genes(vocab_of(model), genes)
    config = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    member, report = open_input(adata, vocab_of(model), config, model.token_config)
    obs: Any = adata.obs
    groups = None if average_by is None else cell_groups(obs, average_by)
    if genes is not None:
        say_unmeasured(member, chosen)
    depth = parse_target_depth(model.default_target_depth if target_depth is None else target_depth)
    symbols = [vocab_of(model).symbols[gene] for gene in chosen]
    settings = {**decoder_settings(model, member, report, depth), "gene_symbols": symbols}
    decoded = decode_cells(
        *(model, member, "states"),
        genes=chosen,
        target_depth=depth,
        batch_size=checked_batch_size(batch_size),
    )
    shape = (member.source.n_cells, len(chosen), model.config.sizes.d_decoder)
    if groups is not None:
        adata.uns[key_added] = group_means(decoded, groups, shape[1:], symbols)
    elif out is not None:
        parts = ((cells.cell_index, cells.values) for cells in decoded)
        write_cell_array(out, parts, shape, list(adata.obs_names), settings)
        settings["out"] = str(out)
    else:
        adata.obsm[key_added] = all_cells(decoded, shape)
    adata.uns["scfm"] = {**scfm_uns(adata), key_added: settings}
    return adata if copy else None


class Groups(NamedTuple):
    """Which cells are averaged together: -1 for none."""

    codes: Int[np.ndarray, " cell"]
    names: list[str]


def cell_groups(obs: pd.DataFrame, by: str) -> Groups:
    """Cells by an obs column, sorted by its values as text, or all in one group.

    Raises LabelError where there is no such column or no cell has a value.
    """
    if by == ALL:
        return Groups(np.zeros(len(obs), dtype=np.int64), [ALL])
    if by not in obs:
        raise LabelError(
            f"obs has no column {by!r}; average_by is {ALL!r} or one of: {', '.join(map(str, obs))}"
        )
    column = obs[by]
    values = column.astype(object).where(column.notna(), None)
    codes, names = pd.factorize(values.map(lambda v: v if v is None else str(v)), sort=True)
    if not len(names):
        raise LabelError(f"no cell has a value in obs[{by!r}]. Name another column.")
    return Groups(codes.astype(np.int64), [str(name) for name in names])


def group_means(
    decoded: Iterator[DecodedCells],
    groups: Groups,
    shape: tuple[int, ...],
    gene_symbols: list[str],
) -> dict[str, Any]:
    """Mean states of each group; keeps one array a group, and sums in float64."""
    n_groups = len(groups.names)
    check_fits((2 * n_groups, *shape), "The sums over groups", "Give fewer genes=.")
    sums = np.zeros((n_groups, *shape))
    for cells in decoded:
        codes = groups.codes[cells.cell_index]
        for code in np.unique(codes[codes >= 0]):
            sums[code] += cells.values[codes == code].sum(0, dtype=np.float64)
    n_cells = np.bincount(groups.codes[groups.codes >= 0], minlength=n_groups)
    return {
        "embedding": (sums / n_cells[:, None, None]).astype(np.float32),
        "genes": np.array(gene_symbols, dtype=object),
        "groups": np.array(groups.names, dtype=object),
        "n_cells": n_cells,
    }


def all_cells(
    decoded: Iterator[DecodedCells], shape: tuple[int, ...]
) -> Float[np.ndarray, "cell gene d"]:
    """The whole array, where it fits."""
    check_fits(shape, "The embedding of the genes", REMEDY)
    found = np.empty(shape, dtype=np.float32)
    for cells in decoded:
        found[cells.cell_index] = cells.values
    return found
