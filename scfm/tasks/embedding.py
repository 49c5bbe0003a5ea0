"""Cells of any source -> one vector each, as a stream.

in   a model and an opened input
out  EmbeddedCells, a chunk at a time; memory does not grow with the file
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from scfm.data.counts import CountRows
from scfm.errors import ConfigError, ModelError
from scfm.model.base import CellModel
from scfm.tasks.doubts import Doubts
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import TargetDepth, parse_target_depth

CHUNK_CELLS = 2048  # read at a time; more would not be faster
# Tokens a forward pass, by whether it runs on a CPU: bounds memory where cells have many genes
# (peak 976 MB instead of 1,305 on 8,000 cells). The GPU's number is a guess: none has measured it.
MOST_TOKENS = {True: 2**14, False: 2**18}


class EmbeddedCells(NamedTuple):
    """Some cells' embeddings, the log10 of the total count each was seen at, and its genes."""

    cell_index: Int[np.ndarray, " cell"]
    embedding: Float[np.ndarray, "cell d"]
    depth: Float[np.ndarray, " cell"]
    n_genes: Int[np.ndarray, " cell"]


@dataclass(frozen=True)
class EmbeddingConfig:
    """Which vector of a cell, and what the model is asked for.

    Attributes
    ----------
    pooling
        One of the model's ``poolings``.
    target_depth
        The total count that the model is asked for (T).
    """

    pooling: str
    target_depth: TargetDepth

    @classmethod
    def of(
        cls,
        model: CellModel,
        pooling: str | None = None,
        target_depth: float | str | None = None,
    ) -> "EmbeddingConfig":
        """The model's own choices for what is None. ConfigError for what it does not have."""
        if pooling is not None and pooling not in model.poolings:
            known = ", ".join(model.poolings)
            raise ConfigError(f"pooling is '{pooling}'; this model has {known}.")
        depth = model.default_target_depth if target_depth is None else target_depth
        return cls(pooling or model.poolings[0], parse_target_depth(depth))


def embed_cells(
    model: CellModel, member: PoolMember, how: EmbeddingConfig, *, batch_size: int = 64
) -> Iterator[EmbeddedCells]:
    """Embed all cells of a source in file order.

    ``batch_size`` is the most cells a forward pass; fewer where they have many genes, so that
    memory is bounded. A cell's embedding does not depend on it beyond rounding (1e-5).

    Warns once of each kind of doubtful cell (`scfm.tasks.doubts`).
    """
    doubts = Doubts(model, member, how.target_depth)
    model.eval()
    for rows in member.source.chunks(CHUNK_CELLS):
        doubts.see_rows(rows)
        found = [
            _embed_rows(model, member, rows.part(first, last), how)
            for first, last in batches(rows, batch_size, MOST_TOKENS[model.device.type == "cpu"])
        ]
        cells = EmbeddedCells(rows.cell_index, *map(np.concatenate, zip(*found, strict=True)))
        if not np.isfinite(cells.embedding).all():
            raise ModelError("The model's embeddings are NaN or infinite. Take another model.")
        doubts.see(cells.cell_index, cells.depth, cells.n_genes)
        yield cells
    doubts.say()


def batches(rows: CountRows, batch_size: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Row ranges of at most ``batch_size`` cells and ``most_tokens`` tokens, at least one cell."""
    first = 0
    while first < rows.n_cells:
        room = rows.indptr[first] + most_tokens
        last = int(np.searchsorted(rows.indptr, room, side="right")) - 1
        last = min(max(last, first + 1), first + batch_size, rows.n_cells)
        yield first, last
        first = last


def _embed_rows(
    model: CellModel, member: PoolMember, rows: CountRows, how: EmbeddingConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokenizer, device = member.tokenizer, model.device
    cells = tokenizer.asked_for(tokenizer.shown(rows), how.target_depth)
    with torch.inference_mode():
        batch = cells.map(lambda x: torch.from_numpy(x).to(device))
        embedded = model.embed(batch, how.pooling)
    n_genes = np.diff(cells.offsets) - tokenizer.n_specials
    return embedded.float().cpu().numpy(), cells.source_depth, n_genes
