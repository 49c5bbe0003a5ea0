"""scfm.tl.tf_activity, and the same for a file that need not fit in memory.

in   peaks x cells, a model of TF binding
out  obsm["X_tf_activity"], uns["tf_names"], uns["tf_activity"]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.special import expit

from scfm.data.counts import CellSource, CountRows
from scfm.data.genome_regions import GenomeRegions
from scfm.data.matched_peaks import N_BACKGROUNDS, matched_peaks
from scfm.data.nucleotides import gc_share
from scfm.data.region_examples import RegionExamples
from scfm.data.region_file import RegionFile, open_region_file
from scfm.data.region_groups import EACH_ROW
from scfm.data.region_sequences import SequenceRegions
from scfm.data.regions import read_regions
from scfm.data.split import group_codes
from scfm.data.write import SafeFile, put, write_annotated
from scfm.errors import ConfigError, InputError, LabelError
from scfm.evaluate.tfbinding_baselines import window_codes
from scfm.model.dna import BindingModel
from scfm.tasks.tf_activity import METHODS, deviations, open_peaks, top2_shares
from scfm.tasks.tf_calibration import BindingCalibration
from scfm.tasks.tf_names import blocks_of, find_tfs
from scfm.tools.embedding import checked_key
from scfm.tools.tf_prediction import (
    as_binding,
    binding_id,
    group_logits,
    open_for,
)
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

CELLS_AT_ONCE = 2048
FEWEST_CELLS = 2
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ActivityConfig:
    """How activity is computed.

    Attributes
    ----------
    method
        "deviation" or "top2": scfm.tasks.tf_activity.
    threshold
        A peak is open in a cell with more counts than this.
    n_backgrounds, seed
        Of the matched background peaks.
    """

    method: str = "deviation"
    threshold: float = 0
    n_backgrounds: int = N_BACKGROUNDS
    seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method is {self.method!r}; known are {', '.join(METHODS)}.")
        if self.n_backgrounds < 2:
            raise ConfigError(f"n_backgrounds must be at least 2, got {self.n_backgrounds}.")
        if self.threshold < 0:
            raise ConfigError(f"threshold must be at least 0, got {self.threshold}.")


@dataclass(frozen=True)
class ActivityData:
    """What the model reads beside the peaks, and where: the arguments of `tf_activity`."""

    group_key: str | None = None
    fasta: str | Path | None = None
    tracks: Mapping[str, Any] = field(default_factory=dict)
    cell_key: str | None = None
    layer: str | None = None
    binarised: bool = False


def tf_activity(
    adata: "AnnData",
    model: BindingModel | str | Path,
    *,
    group_key: str | None = None,
    fasta: str | Path | None = None,
    tracks: Mapping[str, Any] | None = None,
    cell_key: str | None = None,
    layer: str | None = None,
    binarised: bool = False,
    method: str = "deviation",
    tfs: Sequence[str] | None = None,
    calibration: BindingCalibration | None = None,
    threshold: float = 0,
    n_backgrounds: int = N_BACKGROUNDS,
    seed: int = 0,
    batch_size: int = 256,
    device: str = "auto",
    key_added: str = "X_tf_activity",
    copy: bool = False,
) -> "AnnData | None":
    """How active each TF is in each cell.

    Binding is predicted at every peak, in each group of cells where the model reads accessibility;
    a cell's activity is of the peaks it has open itself.

    Parameters
    ----------
    adata
        Peaks x cells as the contract of regions has them: var chrom, start, end; raw counts.
    model
        From ``scfm finetune tfbinding``: a folder, or a BindingModel.
    group_key
        obs column of the groups whose pooled accessibility the model reads (cell types, clusters,
        metacells); of no use to a model of DNA alone.
    fasta, tracks
        The genome and bigWigs, where var has no sequences and the model reads tracks.
    cell_key
        obsm of the embedding that conditions the model.
    binarised
        Take a matrix of 0 and 1 for counts, where the model reads accessibility.
    method
        "deviation": mean probability at open peaks, corrected by backgrounds of like accessibility
        and GC. "top2": scFAN's score.
    tfs
        Which; None: all. For "top2" all TFs vote, whichever are kept.
    calibration
        From ``scfm evaluate tfbinding``; without one the model's probabilities are as it says them.
    threshold
        A peak is open in a cell with more counts than this.

    Returns
    -------
    The copy if ``copy``, else None: ``adata`` gains ``obsm[key_added]`` (float32; NaN where a cell
    has none of the peaks open that could be predicted, or belongs to no group),
    ``uns["tf_names"]``, and ``uns["tf_activity"]``: method, k, model, threshold, genome.

    Raises InputError (one cell only, regions the model cannot read), EmptyCellError, LabelError,
    ConfigError.
    """
    adata = adata.copy() if copy else adata
    key_added = checked_key(key_added, example="X_tf_activity")
    how = ActivityConfig(
        method=method,
        threshold=threshold,
        n_backgrounds=n_backgrounds,
        seed=seed,
        batch_size=batch_size,
    )
    places = ActivityData(group_key, fasta, tracks or {}, cell_key, layer, binarised)
    found = activities(adata, as_binding(model, device), how, places, tfs, calibration)
    adata.obsm[key_added] = found.values
    adata.uns["tf_names"], adata.uns["tf_activity"] = list(found.tfs), found.settings
    return adata if copy else None


def tf_activity_file(
    path: str | Path,
    model: BindingModel | str | Path,
    out: str | Path,
    *,
    data: ActivityData | None = None,
    tfs: Sequence[str] | None = None,
    calibration: BindingCalibration | None = None,
    config: ActivityConfig | None = None,
    device: str = "auto",
    key_added: str = "X_tf_activity",
    on_progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """The same from one h5ad into another that holds all the first did; returns the settings.

    Counts are read a chunk of cells at a time.
    """
    key_added = checked_key(key_added, example="X_tf_activity")
    found = activities(
        path,
        as_binding(model, device),
        config or ActivityConfig(),
        data or ActivityData(),
        *(tfs, calibration, on_progress),
    )

    def write(file: SafeFile) -> None:
        for group in ("obsm", "uns"):
            if group not in file:
                put(file, group, {})
        put(file, f"obsm/{key_added}", found.values)
        put(file, "uns/tf_names", np.array(found.tfs, dtype=object))
        put(file, "uns/tf_activity", found.settings)

    layer = None if data is None else data.layer
    with open_region_file(path).open_counts(layer=layer, keep_empty=True, backed=True) as source:
        write_annotated(source, out, write)
    return found.settings


@dataclass(frozen=True)
class Activity:
    """Activities of all cells, and what made them."""

    values: Float[np.ndarray, "cell tf"]
    tfs: tuple[str, ...]
    settings: dict[str, Any]


def activities(
    data: Any,
    model: BindingModel,
    how: ActivityConfig,
    places: ActivityData,
    tfs: Sequence[str] | None = None,
    calibration: BindingCalibration | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Activity:
    """Activities of all cells of a file or AnnData; arguments are those of `tf_activity`."""
    file = open_region_file(data)
    chosen = np.arange(len(model.tasks)) if tfs is None else find_tfs(tfs, model.tasks)
    examples = open_for(
        model,
        data,
        fasta=places.fasta,
        tracks=places.tracks,
        group_key=places.group_key,
        cell_key=places.cell_key,
        layer=places.layer,
        binarised=places.binarised,
    )
    assert isinstance(examples, GenomeRegions | SequenceRegions), type(examples)
    row = examples.source_row
    gc = read_regions(file).gc
    with file.open_counts(layer=places.layer) as source:
        if source.n_cells < FEWEST_CELLS and how.method == "deviation":
            raise InputError(
                f"{source.name} holds one cell only: there is nothing to tell how accessible a "
                "peak is in general, so no background. Give more cells, or use method='top2' "
                "(--method top2)."
            )
        totals = peak_totals(source)
        background = matched_peaks(
            totals[row],
            gc_share(window_codes(examples)) if gc is None else gc[row],
            n=how.n_backgrounds,
            seed=how.seed,
        )
        group_of_cell, groups, n_pooled = _cell_groups(
            file, examples, places.group_key, source.n_cells
        )
        values = _by_group(
            examples, model, source, row, background, group_of_cell, groups, chosen,
            calibration or BindingCalibration.none(model.tasks), how, on_progress,
        )  # fmt: skip
    settings: dict[str, Any] = {
        "scfm_version": __version__,
        "method": how.method,
        "k": n_pooled,
        "model": binding_id(model),
        "threshold": how.threshold,
        "genome": examples.genome or "",
        "calibrated": calibration is not None,
        "n_peaks": len(row),
        "n_empty_peaks": int((totals[row] == 0).sum()),
        "n_backgrounds": how.n_backgrounds,
        "seed": how.seed,
    }
    if examples.groups:
        settings["group_key"] = places.group_key
    return Activity(values, tuple(model.tasks[i] for i in chosen), settings)


def peak_totals(source: CellSource) -> Float[np.ndarray, " peak"]:
    """Cells that have each peak open."""
    totals = np.zeros(len(source.var))
    for rows in source.chunks(CELLS_AT_ONCE):
        totals += np.bincount(rows.indices, minlength=len(totals))
    return totals


def count_chunks(source: CellSource) -> Iterator[sp.csr_matrix]:
    """Counts of all cells, some rows at a time."""
    for rows in source.chunks(CELLS_AT_ONCE):
        yield _csr(rows, len(source.var))


def _cell_groups(
    file: RegionFile, examples: RegionExamples, group_key: str | None, n_cells: int
) -> tuple[Int[np.ndarray, " cell"], list[int], float]:
    """The group of each cell (-1: none), the groups to predict in, cells pooled in the median."""
    if not examples.groups:
        return np.zeros(n_cells, dtype=np.int64), [-1], 1.0
    assert group_key is not None, "groups come from a column"
    if group_key == EACH_ROW:
        return np.arange(n_cells), list(range(n_cells)), 1.0
    codes, names = group_codes(file.obs, group_key, file.name)
    if tuple(names) != tuple(examples.groups):
        raise LabelError(
            f"{file.name}: obs '{group_key}' names other groups than the regions were opened with."
        )
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    return codes.astype(np.int64), list(range(len(names))), float(np.median(sizes))


def _by_group(
    examples: RegionExamples,
    model: BindingModel,
    source: CellSource,
    row: Int[np.ndarray, " region"],
    background: Int[np.ndarray, "background region"],
    group_of_cell: Int[np.ndarray, " cell"],
    groups: list[int],
    chosen: Int[np.ndarray, " task"],
    calibration: BindingCalibration,
    how: ActivityConfig,
    on_progress: Progress,
) -> Float[np.ndarray, "cell tf"]:
    """One group's predictions in memory at a time, some of its cells at a time."""
    region = np.arange(examples.n_regions)
    values = np.full((source.n_cells, len(chosen)), np.nan, dtype=np.float32)
    done = 0
    for number, group in enumerate(groups):
        logits = group_logits(examples, model, region, group, how.batch_size)
        probability = expit(calibration.apply(logits)).astype(np.float64)
        cells = np.flatnonzero(group_of_cell == number)
        for start in range(0, len(cells), CELLS_AT_ONCE):
            some = cells[start : start + CELLS_AT_ONCE]
            is_open = open_peaks(_csr(source.rows(some), len(source.var))[:, row], how.threshold)
            if how.method == "top2":
                values[some] = top2_shares(is_open, probability, blocks_of(model.tasks))[:, chosen]
            else:
                values[some] = deviations(is_open, probability[:, chosen], background)
            done += len(some)
            on_progress(done, source.n_cells)
    return values


def _csr(rows: CountRows, n_peaks: int) -> sp.csr_matrix:
    return sp.csr_matrix((rows.counts, rows.indices, rows.indptr), (rows.n_cells, n_peaks))
