"""An array of cells too large for memory -> a zarr folder, whole or not at all.

in   parts of a float32 array, cells first, in any order of cells
out  OUT/embedding (n_cells, ...), OUT/scfm.json (settings, gene symbols, names of the cells)

Read it with ``zarr.open_group(OUT)["embedding"]``; rows are the cells of the AnnData in its order.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scfm.data.write import atomic_folder

MARKER = "scfm.json"  # also says that the folder is an earlier result, which may be replaced
CHUNK_NUMBERS = 2**20  # of one compressed chunk: 4 MB


def write_cell_array(
    out: str | Path,
    parts: Iterable[tuple[Int[np.ndarray, " part"], Float[np.ndarray, "part *rest"]]],
    shape: tuple[int, ...],
    cell_names: Sequence[str],
    settings: dict[str, Any],
) -> None:
    """Write parts as they come; ``out`` appears when all of them are there.

    Raises OutputError: ``out`` holds something else, no space, no permission.
    """
    import zarr

    with atomic_folder(out, marker=MARKER) as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        n_cells = max(1, min(shape[0], CHUNK_NUMBERS // math.prod(shape[1:])))
        array = group.create_array(
            "embedding", shape=shape, chunks=(n_cells, *shape[1:]), dtype=np.float32
        )
        for cell_index, values in parts:
            array[cell_index[0] : cell_index[-1] + 1] = values
        names = [str(name) for name in cell_names]
        (folder / MARKER).write_text(json.dumps({**settings, "cells": names}) + "\n")
