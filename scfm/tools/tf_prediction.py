"""Regions and groups of cells, a model of TF binding -> logits, streamed.

in   RegionExamples, a BindingModel
out  (group, regions, logits) part by part; a store of them
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scfm.data.region_examples import RegionExamples, open_regions
from scfm.errors import ConfigError, InputError
from scfm.model.dna import BindingModel
from scfm.model.dna_folder import load_binding
from scfm.tasks.tf_calibration import BindingCalibration
from scfm.tasks.tf_names import find_tfs
from scfm.tasks.tfbinding import predict_logits
from scfm.tools.loading import choose_device
from scfm.tools.tf_store import NO_GROUP, Part, write_binding
from scfm.version import __version__

REGIONS_AT_ONCE = 8192
Progress = Callable[[int, int], None]


def predict_binding(
    examples: RegionExamples,
    model: BindingModel | str | Path,
    out: str | Path,
    *,
    tfs: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    calibration: BindingCalibration | None = None,
    batch_size: int = 256,
    device: str = "auto",
    genome: str = "",
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Write the logits of every region in every group of cells to a zarr folder.

    Parameters
    ----------
    tfs, groups
        Which; None: all. A model that reads no accessibility has one group, "all".
    calibration
        Kept in the store, for probabilities; the logits stay the model's own.

    Raises ConfigError for an unknown TF or group, InputError for data the model cannot read,
    OutputError.
    """
    model = as_binding(model, device)
    check_readable(examples, model)
    chosen = np.arange(len(model.tasks)) if tfs is None else find_tfs(tfs, model.tasks)
    names, codes = chosen_groups(examples, model, groups)
    settings: dict[str, Any] = {
        "scfm_version": __version__,
        "weights_sha256": binding_id(model),
        "genome": genome,
        "counted": "logits",
    }
    if calibration is not None:
        settings["calibration"] = {
            "scale": [calibration.scale[i] for i in chosen],
            "offset": [calibration.offset[i] for i in chosen],
        }
    parts = logit_parts(examples, model, codes, chosen, batch_size, on_progress)
    write_binding(
        out,
        parts,
        groups=names,
        tasks=tuple(model.tasks[i] for i in chosen),
        chrom=examples.chrom,
        start=examples.start,
        end=examples.end,
        settings=settings,
    )


def open_for(
    model: BindingModel,
    data: Any,
    *,
    fasta: str | Path | None = None,
    tracks: Mapping[str, Any] | None = None,
    group_key: str | None = None,
    cell_key: str | None = None,
    chip_key: str | None = None,
    chip_of: Mapping[str, str] | None = None,
    layer: str | None = None,
    binarised: bool = False,
) -> RegionExamples:
    """Regions opened as the model reads them: its window, groups only where they matter to it."""
    reads_cells = bool(model.config.n_tracks or model.config.d_cell)
    examples = open_regions(
        data,
        fasta=fasta,
        tracks=tracks,
        length=model.config.length,
        group_key=group_key if reads_cells else None,
        cell_key=cell_key if reads_cells else None,
        chip_key=chip_key if reads_cells else None,
        chip_of=chip_of if reads_cells else None,
        layer=layer,
        binarised=binarised,
    )
    check_readable(examples, model)
    return examples


def logit_parts(
    examples: RegionExamples,
    model: BindingModel,
    groups: Sequence[int],
    tasks: Int[np.ndarray, " task"],
    batch_size: int,
    on_progress: Progress = lambda done, total: None,
) -> Iterator[Part]:
    """Group after group, regions in their order."""
    total = len(groups) * examples.n_regions
    for number, group in enumerate(groups):
        for start in range(0, examples.n_regions, REGIONS_AT_ONCE):
            region = np.arange(start, min(start + REGIONS_AT_ONCE, examples.n_regions))
            found = group_logits(examples, model, region, group, batch_size)
            yield number, region, found[:, tasks]
            on_progress(number * examples.n_regions + int(region[-1]) + 1, total)


def group_logits(
    examples: RegionExamples,
    model: BindingModel,
    region: Int[np.ndarray, " example"],
    group: int,
    batch_size: int,
) -> Float[np.ndarray, "example task"]:
    """Logits of some regions in one group of cells, -1 for none."""
    same = np.full(len(region), group, dtype=np.int64)
    device = next(model.parameters()).device
    return predict_logits(model, examples, region, same, batch_size=batch_size, device=device)


def chosen_groups(
    examples: RegionExamples, model: BindingModel, groups: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Names and numbers of the groups to predict in; one without a number where none matters."""
    if not (model.config.n_tracks or model.config.d_cell) or not examples.groups:
        if groups:
            raise ConfigError(
                "groups= (--group) names groups of cells, but "
                + ("the data has none." if not examples.groups else "this model reads DNA alone.")
            )
        return (NO_GROUP,), [0 if examples.groups else -1]
    if groups is None:
        return tuple(examples.groups), list(range(len(examples.groups)))
    unknown = [name for name in groups if name not in examples.groups]
    if unknown:
        raise ConfigError(
            f"There is no group {unknown[0]!r}; there are {', '.join(examples.groups[:10])}."
        )
    return tuple(groups), [examples.groups.index(name) for name in groups]


def check_readable(examples: RegionExamples, model: BindingModel) -> None:
    """InputError where the windows or tracks are not those the model reads."""
    if examples.n_regions == 0:
        raise InputError("There is not one peak. Give data with at least one region.")
    if examples.length != model.config.length:
        raise InputError(
            f"The windows have {examples.length:,} bases, the model reads {model.config.length:,}. "
            f"Open the regions with length={model.config.length}."
        )
    if len(examples.tracks) != model.config.n_tracks:
        raise InputError(
            f"The data has {len(examples.tracks)} rows of accessibility "
            f"({', '.join(examples.tracks) or 'none'}), the model reads {model.config.n_tracks}. "
            "Give the tracks it was trained with: --track NAME=FILE.bw, or groups of cells: "
            "--group-key COLUMN."
        )


def as_binding(model: BindingModel | str | Path, device: str = "auto") -> BindingModel:
    """Models pass, folders are loaded; in evaluation mode, on the device."""
    found = model if isinstance(model, BindingModel) else load_binding(model)
    return found.to(choose_device(device)).eval()


def binding_id(model: BindingModel) -> str:
    """The hash of the weights file a model was loaded from; "" for one never saved."""
    return str(model.provenance.get("weights_sha256", ""))
