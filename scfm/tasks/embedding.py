"""Cells of any source -> one vector each, as a stream.

in   a model and an opened input
out  EmbeddedCells, a chunk at a time; memory does not grow with the file
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from scfm.data.counts import CountRows
from scfm.errors import ConfigError, ModelError, ScfmWarning
from scfm.model.pretrained import Pooling, ScfmModel
from scfm.tokens.collate import N_SPECIALS
from scfm.tokens.pool import PoolMember

CHUNK_CELLS = 2048  # read at a time; more would not be faster
# Tokens a forward pass, by whether it runs on a CPU: bounds memory where cells have many genes
# (peak 976 MB instead of 1,305 on 8,000 cells). The GPU's number is a guess: none has measured it.
MOST_TOKENS = {True: 2**14, False: 2**18}


class EmbeddedCells(NamedTuple):
    """Some cells' embeddings, and the log10 of the total count each was seen at."""

    cell_index: Int[np.ndarray, " cell"]
    embedding: Float[np.ndarray, "cell d"]
    depth: Float[np.ndarray, " cell"]


def embed_cells(
    model: ScfmModel,
    member: PoolMember,
    *,
    batch_size: int = 64,
    pooling: Pooling = "cell",
    target_depth: float | None = None,
) -> Iterator[EmbeddedCells]:
    """Embed all cells of a source in file order.

    Parameters
    ----------
    batch_size
        Most cells a forward pass; fewer where they have many genes, so that memory is bounded. A
        cell's embedding does not depend on it beyond rounding (1e-5).
    target_depth
        log10 of the total count the model is asked for (T); None: the cell's own.

    Warns once, at the end, when cells had more expressed genes than the model was trained on.
    """
    if target_depth is not None and not 0 <= target_depth <= 9:
        raise ConfigError(
            f"target_depth is log10 of a total count, from 0 to 9; got {target_depth:g}. "
            "For 10,000 counts give 4."
        )
    most, n_beyond = model.config.max_genes, 0
    model.eval()
    for rows in member.source.chunks(CHUNK_CELLS):
        found = [
            _embed_rows(model, member, rows.part(first, last), pooling, target_depth)
            for first, last in _batches(rows, batch_size, MOST_TOKENS[model.device.type == "cpu"])
        ]
        n_beyond += sum(n for _, _, n in found)
        embedded = np.concatenate([e for e, _, _ in found])
        depth = np.concatenate([d for _, d, _ in found])
        if not np.isfinite(embedded).all():
            raise ModelError("The model's embeddings are NaN or infinite. Take another model.")
        yield EmbeddedCells(rows.cell_index, embedded, depth)
    if n_beyond:
        warnings.warn(
            f"{n_beyond:,} of {member.source.n_cells:,} cells express more than the {most:,} "
            "genes a cell this model was trained on; all of their genes were used.",
            ScfmWarning,
            stacklevel=2,
        )


def _batches(rows: CountRows, batch_size: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Row ranges of at most ``batch_size`` cells and ``most_tokens`` tokens, at least one cell."""
    first = 0
    while first < rows.n_cells:
        room = rows.indptr[first] + most_tokens
        last = int(np.searchsorted(rows.indptr, room, side="right")) - 1
        last = min(max(last, first + 1), first + batch_size, rows.n_cells)
        yield first, last
        first = last


def _embed_rows(
    model: ScfmModel,
    member: PoolMember,
    rows: CountRows,
    pooling: Pooling,
    target_depth: float | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    cells = member.tokenizer.shown(rows, target_depth=target_depth)
    n_beyond = int((np.diff(cells.offsets) - N_SPECIALS > model.config.max_genes).sum())
    device = model.device
    with torch.inference_mode():
        states = model(cells.map(lambda x: torch.from_numpy(x).to(device)))
        embedded = model.pool(states, pooling)
    return embedded.float().cpu().numpy(), cells.source_depth, n_beyond
