"""What an earlier annotation under the same key left behind, and this one does not write.

in   settings of both, as uns["scfm"][key] holds them
out  the AnnData, or the open h5ad, without the columns that would now tell of other labels
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scfm.tools.embedding import scfm_uns

if TYPE_CHECKING:
    from anndata import AnnData

Settings = Mapping[str, Any]


def written_by(made: Settings, key: str) -> tuple[set[str], set[str]]:
    """Columns of obs and arrays of obsm that an annotation of these settings writes."""
    if "by" not in made:
        return set(), set()
    obs, obsm = ["cell_type", "confidence", "runner_up"], []
    if "ontology_version" in made:
        obs += ["ontology_term", "ontology_name", "ontology_confidence"]
    if "smoothing" in made:
        obs += ["own_cell_type"]
    if len(made.get("types", ())) > 1:
        obs += ["coarse_type"]
    if "reference_cells" in made:
        obsm += ["neighbours", "similarity"]
    if made["by"] == "markers":
        obsm += ["marker_scores"]
    return {f"{key}_{name}" for name in obs}, {f"{key}_{name}" for name in obsm}


def stale(before: Settings, after: Settings, key: str) -> tuple[set[str], set[str]]:
    """Names in obs and obsm that are the earlier annotation's alone."""
    (obs, obsm), (own_obs, own_obsm) = written_by(before, key), written_by(after, key)
    return obs - own_obs, obsm - own_obsm


def settings_of(adata: "AnnData", key: str) -> Settings:
    """Of the annotation that an AnnData holds under a key; empty without one."""
    made = scfm_uns(adata).get(key)
    return made if isinstance(made, Mapping) else {}


def drop_stale(adata: "AnnData", before: Settings, key: str) -> None:
    """Once it was annotated anew."""
    obs, obsm = stale(before, settings_of(adata, key), key)
    for name in obs & set(adata.obs):
        adata.obs.pop(name)  # pyright: ignore[reportAttributeAccessIssue]
    for name in obsm & set(adata.obsm):
        del adata.obsm[name]


def drop_stale_in(file: h5py.File, after: Settings, key: str) -> None:
    """Before the new settings are written over the earlier ones."""
    from anndata.io import read_elem

    made = file.get(f"uns/scfm/{key}")
    if not isinstance(made, h5py.Group):
        return
    before: Any = read_elem(made)
    obs, obsm = stale(before, after, key)
    table: Any = file["obs"]
    for name in obs & set(table):
        del table[name]
    kept = [str(name) for name in table.attrs.get("column-order", []) if str(name) not in obs]
    table.attrs["column-order"] = np.array(kept, dtype=h5py.string_dtype())
    for name in obsm:
        if f"obsm/{name}" in file:
            del file[f"obsm/{name}"]
