"""scfm.tl.drug_features: inputs for drug-response heads, made as they were published.

in   bulk samples or single cells, a model of the scfoundation family, a recipe
out  one vector a sample in obsm, for heads like DeepCDR's and SCAD's

Each recipe fixes the units of the values, the two depths and the pooling, oddities included: heads
trained on published features are right with these alone.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float

from scfm.data.genes import GeneAlignment, align
from scfm.data.log_values import LogValues
from scfm.data.read import open_counts
from scfm.errors import ConfigError, ModelError, ScfmWarning
from scfm.model.base import CellModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.tasks.embedding import MOST_TOKENS
from scfm.tokens.given_values import from_values
from scfm.tools.embedding import checked_batch_size, checked_key, model_id, scfm_uns, vocab_of
from scfm.tools.loading import as_model
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

Sums = Float[np.ndarray, " sample"]
FEWEST_BULK_COUNTS = 200_000  # single cells have fewer, bulk samples millions


@dataclass(frozen=True)
class Recipe:
    """How one publication fed its samples to the model.

    Attributes
    ----------
    units
        "log1p": natural log1p of normalised expression, as given. "counts": raw counts, scaled to
        one total and log1p here.
    depths
        Sums of a sample's log1p values over the vocabulary -> T and S.
    pooling
        What is made of the encoder's states.
    """

    units: Literal["log1p", "counts"]
    depths: Callable[[Sums], tuple[Sums, Sums]]
    pooling: str


def _log10_both(sums: Sums) -> tuple[Sums, Sums]:
    return np.log10(sums), np.log10(sums)


RECIPES = {
    # the sum as it is, not its log10: as released
    "deepcdr": Recipe("log1p", lambda sums: (sums, sums), "max"),
    "scad_bulk": Recipe("log1p", _log10_both, "all"),
    "scad_cell": Recipe("log1p", lambda s: (np.full_like(s, 4.0), np.log10(s)), "all"),
    "bulk": Recipe("counts", _log10_both, "max"),
}


class Samples(NamedTuple):
    """log1p values on the vocabulary's genes, and what became of the columns."""

    values: sp.csr_matrix
    alignment: GeneAlignment
    place: str
    settings: dict[str, Any]


def drug_features(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    recipe: str,
    layer: str | None = None,
    key_added: str = "X_scfm_drug",
    total: float | None = None,
    batch_size: int = 8,
    copy: bool = False,
) -> "AnnData | None":
    """One vector a sample, by a published recipe, for a drug-response head of the user's own.

    ========== ======================== ==================== =============== =======
    recipe     values                   T                    S               vector
    ========== ======================== ==================== =============== =======
    deepcdr    log1p, as given (bulk)   sum of the values    the same        max, d
    scad_bulk  log1p, as given (bulk)   log10 of their sum   the same        all, 4 d
    scad_cell  log1p, as given (cells)  4                    log10 of sum    all, 4 d
    bulk       counts, scaled, log1p    log10 of their sum   the same        max, d
    ========== ======================== ==================== =============== =======

    "max" is the maximum over all of the encoder's states, T and S included; "all" is S, T, maximum
    and mean over genes. With the published weights d is 768.

    Parameters
    ----------
    adata
        Samples by genes. Genes are matched by name and reported in ``uns``; two columns of one
        gene are refused, for log values do not add up.
    layer
        "X" (default), "raw" or a layer's name: where the values of the recipe's unit are.
    total
        Only for "bulk": the total count that samples are scaled to. None: the median of these
        samples, as published; the vectors then hang on which samples are there, and the total is
        kept in ``uns`` to be given for later ones.

    Returns
    -------
    The copy if ``copy``, else None: ``adata`` gains ``obsm[key_added]`` (float32) and
    ``uns["scfm"][key_added]``.

    Raises
    ------
    CountsError
        Values of another unit than the recipe's, naming the layer that has it, if one does.
    ModelError
        A model of another family.

    Source: Hao et al. 2024, doi:10.1038/s41592-024-02305-7; DeepCDR: Liu et al. 2020,
    doi:10.1093/bioinformatics/btaa822; SCAD: Zheng et al. 2023, doi:10.1002/advs.202204113.
    """
    adata = adata.copy() if copy else adata
    model, key_added = as_model(model), checked_key(key_added)
    if recipe not in RECIPES:
        raise ConfigError(f"recipe is {recipe!r}; known are {', '.join(RECIPES)}.")
    if not isinstance(model, ScfoundationModel):
        raise ModelError(
            f"The recipes are of the scfoundation family; this is a {type(model).__name__}. "
            "Use scfm.tl.embed for its vectors."
        )
    how = RECIPES[recipe]
    if total is not None and how.units != "counts":
        raise ConfigError(f"total= is for recipe='bulk'; {recipe} takes the values as they are.")
    if how.units == "counts":
        samples = _from_counts(adata, model, layer, total)
    else:
        samples = _from_log_values(adata, model, layer)
    features = _features(model, samples.values, how, checked_batch_size(batch_size))
    adata.obsm[key_added] = features
    settings = {
        "scfm_version": __version__,
        "weights_sha256": model_id(model),
        "recipe": recipe,
        "values_from": samples.place,
        "genes": samples.alignment.report.to_dict(),
        **samples.settings,
    }
    adata.uns["scfm"] = {**scfm_uns(adata), key_added: settings}
    return adata if copy else None


def _from_log_values(adata: "AnnData", model: CellModel, layer: str | None) -> Samples:
    given = LogValues(adata, layer)
    alignment = _aligned(given.var, model)
    parts = [
        _on_vocabulary(raw.indptr, raw.indices, raw.values, alignment, vocab_of(model).n_genes)
        for raw in given.blocks()
    ]
    return Samples(_stacked(parts), alignment, given.place, {})


def _from_counts(
    adata: "AnnData", model: CellModel, layer: str | None, total: float | None
) -> Samples:
    """log1p of counts scaled to one total over the vocabulary's genes."""
    source = open_counts(adata, layer=layer, expected_counts=True)
    alignment = _aligned(source.var, model)
    parts = [
        _on_vocabulary(rows.indptr, rows.indices, rows.counts, alignment, vocab_of(model).n_genes)
        for rows in source.chunks(512)
    ]
    counts = _stacked(parts)
    totals = np.asarray(counts.sum(1)).ravel()
    _refuse_silent(totals)
    if np.median(totals) < FEWEST_BULK_COUNTS:
        warnings.warn(
            f"The samples have {np.median(totals):,.0f} counts in the middle: these look like "
            "single cells, and recipe='bulk' is for bulk samples. scfm.tl.embed is for cells.",
            ScfmWarning,
            stacklevel=3,
        )
    total = float(np.median(totals)) if total is None else float(total)
    counts.data = np.log1p(counts.data * np.repeat(total / totals, np.diff(counts.indptr)))
    return Samples(counts, alignment, source.counts_from, {"total": total})


def _aligned(var: pd.DataFrame, model: CellModel) -> GeneAlignment:
    vocab = vocab_of(model)
    return align(
        var, vocab.symbols, vocab.ensembl_ids, species="human", duplicates="refuse", name="AnnData"
    )


def _on_vocabulary(
    indptr: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    alignment: GeneAlignment,
    n_genes: int,
) -> sp.csr_matrix:
    genes = alignment.column_to_gene[columns].astype(np.int64)
    sample = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    used = (genes >= 0) & (values != 0)
    entries = (values[used].astype(np.float64), (sample[used], genes[used]))
    return sp.csr_matrix(entries, shape=(len(indptr) - 1, n_genes))


def _stacked(parts: list[sp.csr_matrix]) -> sp.csr_matrix:
    whole = sp.csr_matrix(sp.vstack(parts, format="csr"))
    whole.sort_indices()
    return whole


def _refuse_silent(sums: Sums) -> None:
    if (sums <= 0).any():
        raise ConfigError(
            f"{int((sums <= 0).sum()):,} samples have no expression on the model's genes (first "
            f"rows: {np.flatnonzero(sums <= 0)[:3].tolist()}). Leave them out."
        )


def _features(
    model: ScfoundationModel, values: sp.csr_matrix, how: Recipe, batch_size: int
) -> Float[np.ndarray, "sample d"]:
    sums = np.asarray(values.sum(1)).ravel()
    _refuse_silent(sums)
    target, source = how.depths(sums)
    model.eval()
    parts = []
    for first, last in _spans(values.indptr, batch_size, MOST_TOKENS[model.device.type == "cpu"]):
        some = values[first:last]
        cells = from_values(
            some.indptr,
            some.indices,
            some.data.astype(np.float32),
            source_depth=source[first:last].astype(np.float32),
            target_depth=target[first:last].astype(np.float32),
            vocab=vocab_of(model),
            cell_index=np.arange(first, last),
        )
        with torch.inference_mode():
            batch = cells.map(lambda x: torch.from_numpy(x).to(model.device))
            found = model.pool(model(batch), how.pooling).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise ModelError("The model's states are NaN or infinite. Take another model.")
        parts.append(found)
    return np.concatenate(parts)


def _spans(indptr: np.ndarray, batch_size: int, most: int) -> Iterator[tuple[int, int]]:
    """Runs of at most ``batch_size`` samples and ``most`` values, at least one sample."""
    first, n = 0, len(indptr) - 1
    while first < n:
        last = int(np.searchsorted(indptr, indptr[first] + most, side="right")) - 1
        last = min(max(last, first + 1), first + batch_size, n)
        yield first, last
        first = last
