"""TF activities of cells -> their mean by group, as a heatmap.

in   adata.obsm["X_tf_activity"], adata.uns["tf_names"] (scfm.tl.tf_activity), an obs column
out  matplotlib Axes; nothing is shown or saved
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from scfm.errors import InputError, LabelError
from scfm.evaluate import figures
from scfm.tasks.tf_names import find_tfs

DIVERGING = LinearSegmentedColormap.from_list(
    "scfm_activity", [to_rgb(figures.ACCENT), to_rgb("#f4f5f6"), to_rgb(figures.SECOND)]
)
MOST_TFS = 40


def tf_heatmap(
    adata: AnnData,
    *,
    group_key: str,
    key: str = "X_tf_activity",
    tfs: Sequence[str] | None = None,
    n_tfs: int = MOST_TFS,
    standardise: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Mean activity of each TF (row) in each group of cells (column).

    Parameters
    ----------
    group_key
        obs column; groups stand in sorted order, cells without one are left out.
    tfs
        Which; None: the ``n_tfs`` that differ most between groups. TFs stand in an order that puts
        those of like activity side by side.
    standardise
        Each TF's means to mean 0 and standard deviation 1 over the groups, so that TFs of small
        activities show too.

    Raises InputError where there are no activities, LabelError for the column, ConfigError for an
    unknown TF.
    """
    values, names = _activities(adata, key)
    groups, means = _means(adata, values, group_key)
    if tfs is not None:
        rows = find_tfs(tfs, names)
    else:
        spread = np.nan_to_num(np.nanstd(means, axis=0))
        rows = np.sort(np.argsort(-spread, kind="stable")[:n_tfs])
    shown = means[:, rows].T
    if standardise:
        centred = shown - np.nanmean(shown, axis=1, keepdims=True)
        scale = np.nanstd(shown, axis=1, keepdims=True)
        shown = centred / np.where(scale > 1e-12, scale, 1)
    order = _similar(shown) if tfs is None else np.arange(len(rows))
    shown, labels = shown[order], [names[rows[i]] for i in order]
    if ax is None:
        size = (0.45 * len(groups) + 2.2, 0.22 * len(labels) + 1.2)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    _draw(ax, shown, labels, groups, "mean activity, standardised" if standardise else "activity")
    return ax


def _activities(adata: AnnData, key: str) -> tuple[Float[np.ndarray, "cell tf"], list[str]]:
    if key not in adata.obsm or "tf_names" not in adata.uns:
        raise InputError(
            f"The AnnData has no obsm['{key}'] with uns['tf_names']. Make them: "
            "scfm.tl.tf_activity(adata, model)."
        )
    values = np.asarray(adata.obsm[key], dtype=np.float64)
    names = [str(name) for name in adata.uns["tf_names"]]
    if values.shape[1] != len(names):
        raise InputError(
            f"obsm['{key}'] has {values.shape[1]} columns and uns['tf_names'] {len(names)} names: "
            "they are of different runs. Compute the activities again: scfm.tl.tf_activity."
        )
    return values, names


def _means(
    adata: AnnData, values: Float[np.ndarray, "cell tf"], group_key: str
) -> tuple[list[str], Float[np.ndarray, "group tf"]]:
    if group_key not in adata.obs:
        columns = ", ".join(map(str, adata.obs.columns)) or "none"
        raise LabelError(f"adata.obs has no column '{group_key}'. Wanted: one of: {columns}.")
    has_group = adata.obs[group_key].notna().to_numpy() & np.isfinite(values).any(axis=1)
    of_cell = adata.obs[group_key].astype(str).to_numpy()
    groups = sorted(set(of_cell[has_group]))
    if not groups:
        raise LabelError(f"No cell has both an activity and a value in obs['{group_key}'].")
    means = [np.nanmean(values[has_group & (of_cell == group)], axis=0) for group in groups]
    return groups, np.stack(means)


def _similar(values: Float[np.ndarray, "tf group"]) -> np.ndarray:
    """An order of the rows in which like ones are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(values) < 3:
        return np.arange(len(values))
    return leaves_list(linkage(np.nan_to_num(values), "average", optimal_ordering=True))


def _draw(
    ax: Axes,
    values: Float[np.ndarray, "tf group"],
    tfs: Sequence[str],
    groups: Sequence[str],
    caption: str,
) -> None:
    limit = float(np.nanmax(np.abs(values), initial=1e-12))
    tiles = ax.pcolormesh(
        values, cmap=DIVERGING, vmin=-limit, vmax=limit, edgecolors=figures.PAPER, linewidth=0.8
    )
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(np.arange(len(groups)) + 0.5, list(groups), **slant)
    ax.set_yticks(np.arange(len(tfs)) + 0.5, list(tfs))
    for tick in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        tick.set_parse_math(False)  # a "$" in a name is a dollar sign
    ax.invert_yaxis()
    ax.tick_params(length=0, labelsize=8.5, labelcolor=figures.INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    assert ax.figure is not None
    bar = ax.figure.colorbar(tiles, ax=ax, shrink=0.6)
    bar.set_label(caption, color=figures.MUTED, fontsize=8.5)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=figures.INK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
