"""scfm.tl.support: which reference cells speak for a cell's label.

in   an AnnData that annotation by neighbours labelled
out  a table: cell, rank, reference cell, its label, similarity
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfm.errors import LabelError

if TYPE_CHECKING:
    from anndata import AnnData


def support(
    adata: "AnnData", cells: str | Sequence[str] | None = None, *, key: str = "scfm"
) -> pd.DataFrame:
    """The neighbours behind each label, nearest first.

    Parameters
    ----------
    adata
        After ``scfm.tl.annotate(adata, model, reference=...)``, or read from what
        ``scfm annotate`` wrote.
    cells
        Names of the cells to tell of; None: all of them, k rows each.
    key
        What ``annotate`` was given as ``key_added``.

    Returns
    -------
    Columns cell, rank (1 is the nearest), reference_cell, label and similarity (the cosine).

    Raises LabelError where the cells were not annotated by neighbours, or a name is no cell.
    """
    made = adata.uns.get("scfm", {}).get(key, {})
    if "reference_cells" not in made or f"{key}_neighbours" not in adata.obsm:
        raise LabelError(
            f"uns['scfm'] has no neighbours under '{key}'. Annotate first, by neighbours: "
            f"scfm.tl.annotate(adata, model, reference=..., key_added='{key}')."
        )
    rows = np.arange(adata.n_obs)
    if cells is not None:
        asked = [cells] if isinstance(cells, str) else list(cells)
        rows = adata.obs_names.get_indexer_for(asked)  # of a name that several have, all of them
        if (rows < 0).any():
            strange = [name for name in asked if name not in adata.obs_names]
            raise LabelError(f"No cell is called {', '.join(map(repr, strange[:5]))}.")
    neighbour = np.asarray(adata.obsm[f"{key}_neighbours"])[rows]
    similarity = np.asarray(adata.obsm[f"{key}_similarity"])[rows]
    n_cells, k = neighbour.shape
    named = neighbour.ravel() >= 0
    at = neighbour.ravel()[named]
    names = np.asarray(made["reference_cells"], dtype=object)
    labels = np.asarray(made["classes"], dtype=object)[np.asarray(made["reference_codes"])]
    return pd.DataFrame(
        {
            "cell": np.repeat(adata.obs_names.to_numpy(dtype=object)[rows], k)[named],
            "rank": np.tile(np.arange(1, k + 1), n_cells)[named],
            "reference_cell": names[at],
            "label": labels[at],
            "similarity": similarity.ravel()[named],
        }
    )
