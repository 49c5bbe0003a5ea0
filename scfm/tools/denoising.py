"""scfm.tl.denoise, and the same for a file: read-depth enhancement.

in   AnnData or a path, a model with a decoder, the depth asked for
out  a layer of predicted log1p(cp10k) at that depth, and, if asked for, one of sampled counts
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfm.data.genes import GeneReport
from scfm.data.write import SafeFile, write_annotated
from scfm.errors import ScfmWarning
from scfm.model.base import CellModel
from scfm.tasks.decoding import check_decodes, decode_cells
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import TargetDepth, parse_target_depth
from scfm.tools.decoded import chosen_genes, decoder_settings
from scfm.tools.embedding import (
    checked_batch_size,
    checked_key,
    scfm_uns,
    vocab_of,
    write_settings,
)
from scfm.tools.loading import as_model, input_config
from scfm.tools.memory import check_fits
from scfm.tools.predicted_layer import (
    LayerColumns,
    layer_columns,
    new_layer,
    put_var,
    sample_counts,
)

if TYPE_CHECKING:
    from anndata import AnnData

# Five times the cell's own depth: training shows cells thinned to b of their depth, b ~ Beta(2, 2),
# which is below a fifth in one of ten; beyond that the model is asked for what it rarely saw.
DEFAULT_DEPTH = "f5"
REMEDY = "Use 'scfm denoise IN --out OUT', which writes to the file as it goes."


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """What a denoised layer is made of; the same for an AnnData and a file."""

    target_depth: float | str | None = DEFAULT_DEPTH  # None: the same
    layer_added: str = "scfm_denoised"
    genes: Sequence[str] | None = None
    draw_counts: bool = False
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        checked_key(self.layer_added, "layer_added", "scfm_denoised")
        checked_batch_size(self.batch_size)
        parse_target_depth(self.target_depth)

    @property
    def depth(self) -> TargetDepth:
        return parse_target_depth(DEFAULT_DEPTH if self.target_depth is None else self.target_depth)

    @property
    def counts_layer(self) -> str:
        return f"{self.layer_added}_counts"

    @property
    def var_column(self) -> str:
        return f"{self.layer_added}_predicted"


def denoise(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    target_depth: float | str | None = DEFAULT_DEPTH,
    layer_added: str = "scfm_denoised",
    genes: Sequence[str] | None = None,
    sample_counts: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    layer: str | None = None,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """Predict each cell's profile as if it had been sequenced to another depth.

    Parameters
    ----------
    adata
        Raw counts in X, ``layers["counts"]`` or ``raw``; they stay as they are.
    model
        Of the scfoundation family, or of the scfm family. The latter is asked for all genes by
        its query decoder, those it is shown included, which its training never does.
    target_depth
        Depth asked for (T): "f5" is five times each cell's own, "a1" ten times, "t4" 10,000
        counts, a number log10 of a total count, "source" each cell's own; None is "f5". A warning
        says where it is below the cell's own.
    genes
        Symbols or Ensembl ids to predict; None: all that have a column.
    sample_counts
        Also draw counts at the target depth into ``layers[layer_added + "_counts"]``.
    seed
        For these draws. They hang on (seed, cell, gene) alone: not on the batch size, the order of
        the columns, or the genes chosen.

    Returns
    -------
    The copy if ``copy``, else None. ``adata`` gains

    - ``layers[layer_added]``, float32 (n_cells, n_vars): log1p of counts per 10,000 (nats) at the
      target depth. Predictions below 0, which no profile can have, are set to 0. NaN in columns
      the model does not know; where several columns are one gene, the first has the prediction
      and the others are NaN, so that nothing is counted twice;
    - ``var[layer_added + "_predicted"]``: True where the column has predictions;
    - ``layers[layer_added + "_counts"]``, int32: Poisson draws of mean
      (exp(prediction) - 1) / 10,000 x 10^T; 0 in columns without predictions;
    - ``uns["scfm"][layer_added]``: the settings.

    Raises ModelError for a model without a decoder, ConfigError for unknown genes, impossible
    settings, and a layer beyond scfm.tools.memory's bound.

    Source: Hao et al. 2024 (scFoundation, read depth enhancement),
    doi:10.1038/s41592-024-02305-7.
    """
    adata = adata.copy() if copy else adata
    config = DenoiseConfig(
        target_depth=target_depth,
        layer_added=layer_added,
        genes=genes,
        draw_counts=sample_counts,
        seed=seed,
        batch_size=batch_size,
    )
    reading = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    model = as_model(model)
    check_decodes(model, "expression")
    chosen_genes(vocab_of(model), genes)  # unknown ones are refused before anything is read
    member, report = open_input(adata, vocab_of(model), reading, model.token_config)
    var: Any = adata.var
    job = _Job.of(model, member, report, var, config, reading)
    check_fits((1 + sample_counts, *adata.shape), "The layer", REMEDY)
    layers = {name: np.empty(adata.shape, dtype) for name, dtype in job.layers.items()}
    for rows, parts in job.parts():
        for name, values in parts.items():
            layers[name][rows] = values
    for name, values in layers.items():
        adata.layers[name] = values
    adata.var[config.var_column] = job.columns.is_predicted
    adata.uns["scfm"] = {**scfm_uns(adata), config.layer_added: job.settings}
    return adata if copy else None


def denoise_file(
    path: str | Path,
    model: CellModel | str | Path,
    out: str | Path,
    *,
    denoise_config: DenoiseConfig | None = None,
    config: InputConfig | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> GeneReport:
    """Denoise a file into a new h5ad that holds everything an old h5ad did.

    Read in chunks and written as it is made, so memory does not grow with the number of cells.
    ``out`` appears when it is complete, or stays what it was.
    """
    what, config = denoise_config or DenoiseConfig(), config or InputConfig()
    model = as_model(model)
    check_decodes(model, "expression")
    chosen_genes(vocab_of(model), what.genes)
    member, report = open_input(path, vocab_of(model), config, model.token_config, backed=True)
    source = member.source

    def write(file: SafeFile) -> None:
        from anndata.io import read_elem

        stored: Any = file["var"]
        var: Any = read_elem(stored)  # the counts may be raw's, the layer is of the file
        job = _Job.of(model, member, report, var, what, config)
        shape = (source.n_cells, len(var))
        arrays = {name: new_layer(file, name, shape, dtype) for name, dtype in job.layers.items()}
        for rows, parts in job.parts():
            for name, values in parts.items():
                arrays[name][rows] = values
            file.check()  # a full disk is heard of now, not after the last cell
            on_progress(rows.stop, source.n_cells)
        put_var(file, what.var_column, job.columns.is_predicted)
        write_settings(file, what.layer_added, job.settings)

    write_annotated(source, out, write)
    return report


@dataclass(frozen=True)
class _Job:
    """Everything settled; `parts` does the work."""

    model: CellModel
    member: PoolMember
    config: DenoiseConfig
    columns: LayerColumns
    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        model: CellModel,
        member: PoolMember,
        report: GeneReport,
        var: pd.DataFrame,
        config: DenoiseConfig,
        reading: InputConfig,
    ) -> "_Job":
        chosen = chosen_genes(vocab_of(model), config.genes)
        columns = layer_columns(var, member, reading, chosen)
        if columns.n_repeated:
            warnings.warn(
                f"{columns.n_repeated:,} columns of {member.source.name} repeat a gene: the first "
                "column of each has its prediction, the others are NaN.",
                ScfmWarning,
                stacklevel=3,
            )
        settings = decoder_settings(model, member, report, config.depth)
        if config.draw_counts:
            settings["seed"] = config.seed
        return cls(model, member, config, columns, settings)

    @property
    def layers(self) -> dict[str, type]:
        """Layers to fill and the type of their numbers."""
        counts = {self.config.counts_layer: np.int32} if self.config.draw_counts else {}
        return {self.config.layer_added: np.float32, **counts}

    def parts(self) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Rows of the layers, a few cells at a time."""
        genes = self.columns.genes
        decoded = decode_cells(
            *(self.model, self.member, "expression"),
            genes=genes,
            target_depth=self.config.depth,
            batch_size=self.config.batch_size,
        )
        for cells in decoded:
            predicted = np.maximum(cells.values, 0)
            parts = {self.config.layer_added: self.columns.spread(predicted, np.nan)}
            if self.config.draw_counts:
                counts = sample_counts(
                    *(predicted, cells.target_depth),
                    genes=genes,
                    cell_index=cells.cell_index,
                    seed=self.config.seed,
                )
                parts[self.config.counts_layer] = self.columns.spread(counts, 0)
            yield slice(int(cells.cell_index[0]), int(cells.cell_index[-1]) + 1), parts
