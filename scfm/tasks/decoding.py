"""Cells of any source -> what a decoder says of their genes, as a stream.

in   a model with a decoder, an opened input, chosen genes, the depth asked for
out  DecodedCells, one forward pass at a time; memory grows neither with the file nor, beyond a
     stated bound, with the batch size
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scfm.batch import CellBatch
from scfm.data.counts import CountRows
from scfm.errors import ModelError
from scfm.model.attention import Packing
from scfm.model.base import CellModel
from scfm.model.pretrained import ScfmModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.tasks.doubts import Doubts
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import TargetDepth

CHUNK_CELLS = 512  # read at a time; a decoder is far slower than reading
# Numbers in one decoder state a forward pass: 2^26 are 256 MB, six cells of the 100m size. Bounds
# memory whatever batch size is asked for; a single cell always fits.
MOST_DECODED = 2**26
QUERIES = 2048  # genes a query decoder is asked for at once

What = Literal["expression", "states"]


class DecodedCells(NamedTuple):
    """Some cells' decoded genes, the log10 depths they were seen at and asked for, their genes.

    ``values`` are log1p of counts per 10,000 (nats) at the target depth, not clipped, or decoder
    states with a third axis.
    """

    cell_index: Int[np.ndarray, " cell"]
    values: Float[np.ndarray, "cell gene *d"]
    source_depth: Float[np.ndarray, " cell"]
    target_depth: Float[np.ndarray, " cell"]
    n_genes: Int[np.ndarray, " cell"]  # expressed


def decode_cells(
    model: CellModel,
    member: PoolMember,
    what: What,
    *,
    genes: Int[np.ndarray, " gene"] | None = None,
    target_depth: TargetDepth,
    batch_size: int = 8,
) -> Iterator[DecodedCells]:
    """Decode all cells of a source in file order.

    Parameters
    ----------
    what
        "expression", or "states": the decoder's states before the last layer, which only the
        scfoundation family has.
    genes
        Positions among the vocabulary's genes, in the order wanted; None: all.
    batch_size
        Most cells a forward pass; fewer where ``MOST_DECODED`` would be exceeded. A cell's result
        does not depend on it beyond rounding.

    Warns once of each kind of doubtful cell (`scfm.tasks.doubts`). Raises ModelError where the
    model has no such decoder, or where its output is not finite.
    """
    check_decodes(model, what)
    doubts = Doubts(model, member, target_depth)
    model.eval()
    chosen = None if genes is None else torch.from_numpy(np.asarray(genes, dtype=np.int64))
    most_cells = _most_cells(model, batch_size)
    for rows in member.source.chunks(CHUNK_CELLS):
        doubts.see_rows(rows)
        for first in range(0, rows.n_cells, most_cells):
            part = rows.part(first, min(first + most_cells, rows.n_cells))
            cells = _decode_rows(model, member, part, what, chosen, target_depth)
            doubts.see(cells.cell_index, cells.source_depth, cells.n_genes)
            yield cells
    doubts.say()


def check_decodes(model: CellModel, what: What) -> None:
    """Raises ModelError for a model that cannot be asked for genes in this way."""
    if isinstance(model, ScfoundationModel):
        return
    if what == "states":
        raise ModelError(
            f"A {type(model).__name__} has no states for all genes: only models of the "
            "scfoundation family give gene embeddings (scfm convert scfoundation, or "
            "scfm pretrain --config scfoundation-3m)."
        )
    if not isinstance(model, ScfmModel):
        raise ModelError(
            f"A {type(model).__name__} has no decoder to denoise with. Take a model of the "
            "scfoundation or the scfm family."
        )


def _decode_rows(
    model: CellModel,
    member: PoolMember,
    rows: CountRows,
    what: What,
    genes: Tensor | None,
    target_depth: TargetDepth,
) -> DecodedCells:
    tokenizer = member.tokenizer
    cells = tokenizer.asked_for(tokenizer.shown(rows), target_depth)
    genes = None if genes is None else genes.to(model.device)
    with torch.inference_mode():
        batch = cells.map(lambda x: torch.from_numpy(x).to(model.device))
        found = _decoded(model, batch, what, genes).float().cpu().numpy()
    if not np.isfinite(found).all():
        raise ModelError("The model's decoder gives NaN or infinite values. Take another model.")
    n_genes = np.diff(cells.offsets) - tokenizer.n_specials
    return DecodedCells(rows.cell_index, found, cells.source_depth, cells.target_depth, n_genes)


def _decoded(model: CellModel, cells: CellBatch, what: What, genes: Tensor | None) -> Tensor:
    states = model(cells)
    if isinstance(model, ScfoundationModel):
        ask = model.decode if what == "states" else model.predict
        return ask(cells, states, genes)
    assert isinstance(model, ScfmModel)
    assert model.vocab is not None, "models are loaded or built with a vocabulary"
    asked = torch.arange(model.vocab.n_genes, device=model.device) if genes is None else genes
    parts = [
        model.predict_targets(queries(cells, some + model.vocab.gene_start), states)["query"]
        for some in asked.split(QUERIES)
    ]
    return torch.cat([part.view(cells.n_cells, -1) for part in parts], dim=1)


def queries(cells: CellBatch, gene_ids: Int[Tensor, " gene"]) -> CellBatch:
    """The shown cells with every one of ``gene_ids`` to be guessed behind each cell's tokens.

    Genes that are shown are asked for as well, which training never does: for them the query
    decoder sees the value it is asked to restore.
    """
    assert not bool(cells.is_target.any()), "cells are to be shown as they are"
    n_cells, k, device = cells.n_cells, len(gene_ids), gene_ids.device
    cell_of = Packing(cells.offsets).cell_of
    place = torch.arange(cells.n_tokens, device=device) + k * cell_of
    is_target = torch.ones(cells.n_tokens + k * n_cells, dtype=torch.bool, device=device)
    is_target[place] = False
    ids = gene_ids.new_empty(len(is_target))
    ids[place], ids[is_target] = cells.gene_ids, gene_ids.repeat(n_cells)
    values = cells.values.new_zeros(len(is_target))
    values[place] = cells.values
    bounds = torch.arange(n_cells + 1, device=device, dtype=cells.offsets.dtype)
    return replace(
        cells,
        gene_ids=ids,
        values=values,
        offsets=cells.offsets + k * bounds,
        is_target=is_target,
        target_values=torch.zeros_like(values),
    )


def _most_cells(model: CellModel, batch_size: int) -> int:
    """Cells a forward pass, within the bound on memory."""
    if not isinstance(model, ScfoundationModel):
        return max(1, min(batch_size, MOST_DECODED // (QUERIES * model.config.sizes.d_model)))
    sizes = model.config.sizes
    if sizes.stabiliser == "global":
        return 1  # else a cell's result would hang on its batch mates; the original runs one, too
    return max(1, min(batch_size, MOST_DECODED // (model.n_positions * sizes.d_decoder)))
