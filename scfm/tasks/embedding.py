"""Cells of any source -> one vector each, as a stream.

in   a model and an opened input
out  (cell numbers, float32 embeddings), a chunk at a time; memory does not grow with the file
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int

from scfm.data.counts import CountRows
from scfm.errors import ScfmWarning
from scfm.model.pretrained import Pooling, ScfmModel
from scfm.tokens.collate import N_SPECIALS
from scfm.tokens.pool import PoolMember

CHUNK_CELLS = 2048  # read at a time; more would not be faster


def embed_cells(
    model: ScfmModel,
    member: PoolMember,
    *,
    batch_size: int = 64,
    pooling: Pooling = "cell",
    target_depth: float | None = None,
) -> Iterator[tuple[Int[np.ndarray, " cell"], Float[np.ndarray, "cell d"]]]:
    """Embed all cells of a source in file order.

    Parameters
    ----------
    batch_size
        Cells a forward pass. A cell's embedding does not depend on it beyond rounding (1e-5).
    target_depth
        log10 of the total count the model is asked for (T); None: the cell's own.

    Warns once, at the end, when cells had more expressed genes than the model was trained on.
    """
    most, n_beyond = model.config.max_genes, 0
    model.eval()
    for rows in member.source.chunks(CHUNK_CELLS):
        found = [
            _embed_rows(
                model,
                member,
                rows.part(i, min(i + batch_size, rows.n_cells)),
                pooling,
                target_depth,
            )
            for i in range(0, rows.n_cells, batch_size)
        ]
        n_beyond += sum(n for _, n in found)
        yield rows.cell_index, np.concatenate([embedded for embedded, _ in found])
    if n_beyond:
        warnings.warn(
            f"{n_beyond:,} of {member.source.n_cells:,} cells express more than the {most:,} "
            "genes a cell this model was trained on; all of their genes were used.",
            ScfmWarning,
            stacklevel=2,
        )


def _embed_rows(
    model: ScfmModel,
    member: PoolMember,
    rows: CountRows,
    pooling: Pooling,
    target_depth: float | None,
) -> tuple[np.ndarray, int]:
    cells = member.tokenizer.shown(rows, target_depth=target_depth)
    n_beyond = int((np.diff(cells.offsets) - N_SPECIALS > model.config.max_genes).sum())
    device = model.device
    with torch.inference_mode():
        states = model(cells.map(lambda x: torch.from_numpy(x).to(device)))
        embedded = model.pool(states, pooling)
    return embedded.float().cpu().numpy(), n_beyond
