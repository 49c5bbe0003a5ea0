"""AnnData with a 2-d embedding -> a scatter of its cells.

in   adata.obsm[basis] (scanpy.tl.umap), adata.obs columns
out  matplotlib Axes; nothing is shown or saved
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from jaxtyping import Num
from matplotlib.axes import Axes

from scfm.errors import InputError, LabelError
from scfm.evaluate import figures


def umap_confidence(
    adata: AnnData, *, key: str = "scfm", basis: str = "X_umap", ax: Axes | None = None
) -> Axes:
    """How sure `scfm.tl.annotate` was of each cell: dots from light (doubtful) to dark.

    Cells labelled "unknown", and cells without a confidence, are grey.

    Parameters
    ----------
    key
        What ``annotate`` was given as ``key_added``: ``obs[f"{key}_confidence"]``, 0 to 1, and
        ``obs[f"{key}_cell_type"]`` are read.
    basis
        Key of ``obsm``; "umap" stands for "X_umap", as in scanpy. The first two columns are drawn.
    ax
        Where to draw; a new figure when None.

    Raises
    ------
    InputError
        ``obsm`` has no such basis.
    LabelError
        ``obs`` lacks a column that ``annotate`` writes.
    """
    coordinates = _coordinates(adata, basis)
    annotate = f'scfm.tl.annotate(adata, model, reference=ref, label_key="cell_type"{_added(key)})'
    values = np.asarray(_column(adata, f"{key}_confidence", annotate), dtype=float)
    labels = _column(adata, f"{key}_cell_type", annotate)
    is_unknown = np.asarray(labels.isna() | (labels.astype(str) == figures.UNKNOWN))
    ax = ax if ax is not None else plt.subplots(figsize=(5.2, 4.4), layout="constrained")[1]
    dots = figures.confidence(ax, coordinates, values, is_unknown)
    assert ax.figure is not None
    bar = ax.figure.colorbar(dots, ax=ax, shrink=0.7)
    bar.set_label("confidence", color=figures.MUTED, fontsize=8.5)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=figures.INK)
    bar.outline.set_visible(False)
    ax.set_title(f"{key}: confidence of {len(values):,} cells", fontsize=10, color=figures.INK)
    _name_axes(ax, basis)
    return ax


def umap_labels(
    adata: AnnData, *, color: str = "scfm_cell_type", basis: str = "X_umap", ax: Axes | None = None
) -> Axes:
    """Cells coloured by the labels in ``obs[color]``, in the report's colours and with its names.

    A missing label is drawn as "unknown". Raises InputError where ``obsm`` has no such basis and
    LabelError where ``obs`` has no such column.
    """
    coordinates = _coordinates(adata, basis)
    column = _column(adata, color, f"one of: {', '.join(map(str, adata.obs.columns)) or 'none'}")
    labels = column.astype(object).where(column.notna(), figures.UNKNOWN).astype(str).to_numpy()
    ax = ax if ax is not None else plt.subplots(figsize=(6, 4.4), layout="constrained")[1]
    figures.embedding(ax, coordinates, labels, figures.label_colours(labels))
    figures.write_names(ax, figures.name_places(ax, coordinates, labels))
    ax.set_title(color, fontsize=10, color=figures.INK)
    _name_axes(ax, basis)
    return ax


def _coordinates(adata: AnnData, basis: str) -> Num[np.ndarray, "cell 2"]:
    for key in (basis, f"X_{basis}"):
        if key in adata.obsm:
            return np.asarray(adata.obsm[key])[:, :2]
    found = ", ".join(adata.obsm) or "nothing"
    raise InputError(
        f"adata.obsm has no '{basis}' (it holds: {found}). Make it with "
        'sc.pp.neighbors(adata, use_rep="X_scfm"); sc.tl.umap(adata).'
    )


def _column(adata: AnnData, name: str, remedy: str) -> Any:
    if name not in adata.obs:
        raise LabelError(f"adata.obs has no column '{name}'. Wanted: {remedy}.")
    return adata.obs[name]


def _added(key: str) -> str:
    return "" if key == "scfm" else f', key_added="{key}"'


def _name_axes(ax: Axes, basis: str) -> None:
    name = basis.removeprefix("X_")
    name = name.upper() if name in ("umap", "pca") else name
    ax.set_xlabel(f"{name}1", fontsize=8.5, color=figures.MUTED)
    ax.set_ylabel(f"{name}2", fontsize=8.5, color=figures.MUTED)
