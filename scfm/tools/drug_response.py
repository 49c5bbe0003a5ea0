"""scfm.tl.drug_features: inputs for drug-response heads, made as they were published.

in   bulk samples or single cells, a model of the scfoundation family, a recipe
out  one vector a sample in obsm, for heads like DeepCDR's and SCAD's

Each recipe fixes the units of the values, both depths (scfm.tokens.given_values) and the pooling:
heads trained on published features are right with these alone, oddities included.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from scfm.data.bulk import warn_if_cells
from scfm.data.genes import GeneAlignment, GeneReport, align, require_share
from scfm.data.log_values import LogValues
from scfm.data.matrices import RawRows
from scfm.data.read import open_counts
from scfm.errors import ConfigError, ModelError
from scfm.model.base import CellModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.tasks.embedding import MOST_TOKENS
from scfm.tokens.given_values import RECIPES, cells_by_recipe, median_total
from scfm.tokens.inputs import InputConfig
from scfm.tools.embedding import checked_batch_size, checked_key, model_id, scfm_uns, vocab_of
from scfm.tools.loading import as_model, input_config
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

# DeepCDR's expression branch takes 768 numbers, SCAD's 3,072.
POOLINGS = {"deepcdr": "max", "scad_bulk": "all", "scad_cell": "all", "bulk": "max"}
CHUNK_SAMPLES = 512


class Samples(NamedTuple):
    """Rows as the recipe wants them, and which column is which gene."""

    blocks: list[RawRows]
    alignment: GeneAlignment
    report: GeneReport  # with the coverage measured
    place: str


def drug_features(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    recipe: str,
    layer: str | None = None,
    key_added: str = "X_scfm_drug",
    total: float | str = 1e4,
    batch_size: int = 8,
    species: str = "auto",
    orthologs: bool = False,
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """One vector a sample, by a published recipe, for a drug-response head of the user's own.

    ========== ======================== ==================== =============== =======
    recipe     values                   T                    S               vector
    ========== ======================== ==================== =============== =======
    deepcdr    log1p, as given (bulk)   sum of the values    the same        max, d
    scad_bulk  log1p, as given (bulk)   log10 of their sum   the same        all, 4 d
    scad_cell  log1p, as given (cells)  4                    log10 of sum    all, 4 d
    bulk       counts, scaled, log1p    log10 of the sum     the same        max, d
    ========== ======================== ==================== =============== =======

    "max" is the maximum over all of the encoder's states, T and S included; "all" is S, T, maximum
    and mean over genes. With the published weights d is 768. "bulk" takes the log10 of the sum of
    log1p values, too, not of the counts: as released.

    Parameters
    ----------
    adata
        Samples by genes, in memory. Genes are matched by name and reported in ``uns``; columns of
        one gene are added up before the logarithm.
    layer
        "X" (default), "raw" or a layer's name: where the values of the recipe's unit are.
    total
        Only for "bulk": what the counts of a sample are scaled to. "median" is the median of these
        samples, as published: the vectors then hang on which samples are there. The total is kept
        in ``uns``, to be given for later samples.
    orthologs
        Match mouse genes through one-to-one human orthologs.
    minimum_coverage
        Share of the values (of counts, or log1p ones) on genes the model knows below which the
        samples are refused.

    Returns
    -------
    The copy if ``copy``, else None: ``adata`` gains ``obsm[key_added]`` (float32) and
    ``uns["scfm"][key_added]``.

    Raises
    ------
    CountsError
        Values of another unit than the recipe's, naming the layer that has it, if one does.
    GeneCoverageError
        Too few of the values fall on genes the model knows, or mouse genes without ``orthologs``.
    ModelError
        A model of another family.

    Source: Hao et al. 2024, doi:10.1038/s41592-024-02305-7; DeepCDR: Liu et al. 2020,
    doi:10.1093/bioinformatics/btaa822; SCAD: Zheng et al. 2023, doi:10.1002/advs.202204113.
    """
    adata = adata.copy() if copy else adata
    model, key_added = as_model(model), checked_key(key_added)
    _check(model, recipe, total)
    assert isinstance(model, ScfoundationModel), "checked above"
    config = input_config(layer, species, minimum_coverage, orthologs=orthologs)
    if RECIPES[recipe].from_counts:
        samples = _counts(adata, model, config)
        column_to_gene = samples.alignment.column_to_gene
        scale = median_total(samples.blocks, column_to_gene) if total == "median" else float(total)
    else:
        samples, scale = _log_values(adata, model, config), 1e4
    parts = _features(model, samples, recipe, scale, checked_batch_size(batch_size))
    adata.obsm[key_added] = np.concatenate(list(parts))
    settings: dict[str, Any] = {
        "scfm_version": __version__,
        "weights_sha256": model_id(model),
        "recipe": recipe,
        "values_from": samples.place,
        "genes": samples.report.to_dict(),
    }
    settings |= {"total": scale} if RECIPES[recipe].from_counts else {}
    adata.uns["scfm"] = {**scfm_uns(adata), key_added: settings}
    return adata if copy else None


def _check(model: CellModel, recipe: str, total: float | str) -> None:
    if recipe not in RECIPES:
        raise ConfigError(f"recipe is {recipe!r}; known are {', '.join(RECIPES)}.")
    if not isinstance(model, ScfoundationModel):
        raise ModelError(
            f"The recipes are of the scfoundation family; this is a {type(model).__name__}. "
            "Use scfm.tl.embed for its vectors."
        )
    if isinstance(total, str) and total != "median":
        raise ConfigError(f"total is {total!r}; wanted a number such as 1e4, or 'median'.")
    if not isinstance(total, str) and not 0 < total < float("inf"):
        raise ConfigError(f"total is {total}; wanted a number above 0, or 'median'.")
    if total != 1e4 and not RECIPES[recipe].from_counts:
        raise ConfigError(f"total= is for recipe='bulk'; {recipe} takes the values as they are.")


def _log_values(adata: "AnnData", model: CellModel, config: InputConfig) -> Samples:
    given = LogValues(adata, config.layer)
    alignment, blocks = _aligned(given.var, model, config), list(given.blocks())
    share = _covered(alignment, blocks)
    report = require_share(alignment, share, config.minimum_coverage, "log1p values")
    return Samples(blocks, alignment, report, given.place)


def _counts(adata: "AnnData", model: CellModel, config: InputConfig) -> Samples:
    source = open_counts(adata, layer=config.layer, expected_counts=True)
    alignment = _aligned(source.var, model, config)
    rows = list(source.chunks(CHUNK_SAMPLES))
    blocks = [RawRows(some.indptr, some.indices, some.counts) for some in rows]
    totals = [np.add.reduceat(some.values, some.indptr[:-1]) for some in blocks]
    warn_if_cells(np.concatenate(totals), source.name)
    report = require_share(alignment, _covered(alignment, blocks), config.minimum_coverage)
    return Samples(blocks, alignment, report, source.counts_from)


def _covered(alignment: GeneAlignment, blocks: list[RawRows]) -> float:
    """Share of all samples' values that falls on matched columns, 0 to 1."""
    is_matched = alignment.column_to_gene >= 0
    total = sum(float(block.values.sum(dtype=np.float64)) for block in blocks)
    matched = [block.values[is_matched[block.indices]] for block in blocks]
    assert total > 0, "samples without a value are refused where they are read"
    return sum(float(some.sum(dtype=np.float64)) for some in matched) / total


def _aligned(var: pd.DataFrame, model: CellModel, config: InputConfig) -> GeneAlignment:
    vocab = vocab_of(model)
    return align(
        var,
        vocab.symbols,
        vocab.ensembl_ids,
        species=config.species,
        orthologs=config.orthologs,
        duplicates=config.duplicates,
        name="AnnData",
    )


def _features(
    model: ScfoundationModel, samples: Samples, recipe: str, scale: float, batch_size: int
) -> Iterator[Float[np.ndarray, "sample d"]]:
    model.eval()
    most = MOST_TOKENS[model.device.type == "cpu"]
    starts = np.cumsum([0, *(len(block.indptr) - 1 for block in samples.blocks)])
    for start, block in zip(starts, samples.blocks, strict=False):
        for first, last in _spans(block.indptr, batch_size, most):
            own = slice(block.indptr[first], block.indptr[last])
            cells = cells_by_recipe(
                block.indptr[first : last + 1] - block.indptr[first],
                *(block.indices[own], block.values[own], samples.alignment.column_to_gene),
                *(vocab_of(model), recipe),
                scale=scale,
                cell_index=np.arange(start + first, start + last),
            )
            with torch.inference_mode():
                batch = cells.map(lambda x: torch.from_numpy(x).to(model.device))
                found = model.pool(model(batch), POOLINGS[recipe]).float().cpu().numpy()
            if not np.isfinite(found).all():
                raise ModelError("The model's states are NaN or infinite. Take another model.")
            yield found


def _spans(indptr: np.ndarray, batch_size: int, most: int) -> Iterator[tuple[int, int]]:
    """Runs of at most ``batch_size`` samples and ``most`` values, at least one sample."""
    first, n = 0, len(indptr) - 1
    while first < n:
        last = int(np.searchsorted(indptr, indptr[first] + most, side="right")) - 1
        last = min(max(last, first + 1), first + batch_size, n)
        yield first, last
        first = last
