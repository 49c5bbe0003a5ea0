"""Examples of binding: (region, group of cells) -> RegionBatch. What models and scores read.

in   regions: h5ad, h5mu, zarr, npz, h5, AnnData, MuData; FASTA and bigWigs beside them
out  RegionExamples
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np
from jaxtyping import Int, Int8, Integer, Shaped

from scfm.batch import RegionBatch
from scfm.data.genome import Genome
from scfm.data.genome_regions import GenomeRegions, GroupLabels, GroupSignal
from scfm.data.region_file import RegionFile, open_region_file
from scfm.data.region_formats import is_window_h5, read_npz, read_window_h5
from scfm.data.region_groups import EACH_ROW, cell_types_of, group_signal
from scfm.data.region_sequences import SequenceRegions
from scfm.data.region_windows import Windows, plan_windows
from scfm.data.regions import read_regions
from scfm.data.signal_tracks import Track, Tracks, parse_scale
from scfm.data.split import missing_column
from scfm.errors import ConfigError, LabelError, MissingFileError

__all__ = ["GenomeRegions", "RegionExamples", "SequenceRegions", "open_regions"]


@runtime_checkable
class RegionExamples(Protocol):
    """Regions, each seen in groups of cells or in none.

    Labels cost nothing to ask for; sequence and signal are read when a batch is.
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Columns of the labels: TFs where there are groups, else "TF:cell" or what was given."""
        ...

    @property
    def tracks(self) -> tuple[str, ...]:
        """Rows of the signal; none where there is sequence only."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of cells; none where all examples have group -1."""
        ...

    @property
    def length(self) -> int:
        """Bases a window."""
        ...

    @property
    def chrom(self) -> Shaped[np.ndarray, " region"]: ...

    @property
    def start(self) -> Int[np.ndarray, " region"]:
        """Of the region itself, 0-based, not of the window around its middle."""
        ...

    @property
    def end(self) -> Int[np.ndarray, " region"]:
        """Half-open: the first base after the region."""
        ...

    @property
    def n_regions(self) -> int: ...

    def labels(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> Int8[np.ndarray, "example task"]:
        """1 bound, 0 not bound, -1 unknown."""
        ...

    def batch(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> RegionBatch:
        """Windows, signal and labels of these examples, as NumPy arrays."""
        ...


def open_regions(
    source: Any,
    *,
    fasta: str | Path | None = None,
    tracks: Mapping[str, Any] | None = None,
    length: int | None = None,
    group_key: str | None = None,
    cell_key: str | None = None,
    chip_key: str | None = None,
    chip_of: Mapping[str, str] | None = None,
    genome: str | None = None,
    counting: str | None = None,
    sequence_key: str | None = None,
    require_sequence: bool = True,
    layer: str | None = None,
    binarised: bool = False,
) -> RegionExamples:
    """Open regions; what the file is, its content decides.

    Parameters
    ----------
    source
        A path: h5ad, zarr or h5mu of peaks x cells (0 cells are enough), .npz or .h5 of windows; or
        an AnnData or MuData.
    fasta
        The genome. Without it sequences have to be in the file.
    tracks
        bigWigs by name: a path, "path:none" (scfm.data.signal_tracks), with "{group}" where each
        group has its own. Without it those of uns["tracks"].
    length
        Bases a window, around a region's middle (its summit where the file has one). By itself that
        of the file's sequences; with a FASTA that of the regions where they have but one.
    group_key
        obs column whose groups the regions are seen in; "obs_names" makes every row one. Without it
        there are no groups and no accessibility of cells.
    cell_key
        obsm of the cells' embedding by a model of RNA; in a MuData also that of its "rna".
    chip_key
        obs column that says of which cell type a cell is; by itself ``group_key``.
    chip_of
        Cell types with ChIP by the values of that column, where the names differ.
    genome, counting
        What the file does not say: the assembly; "insertions" or "fragments".
    sequence_key
        var column of sequences; by itself "sequence" or one like "seq100".
    require_sequence
        Leave out regions without a sequence, which is said; else their windows are all 0.
    layer
        Where the counts are; by itself X, then layers["counts"].
    binarised
        Take a matrix of 0 and 1.

    Raises MissingFileError, UnreadableFileError, InputError (regions that break the contract or
    are of another genome), LabelError, CountsError, ConfigError.
    """
    windows = _windows_of(source)
    if windows is not None:
        _refuse_options(windows.name, fasta=fasta, tracks=tracks, group_key=group_key)
        return windows.cut(length)
    file = open_region_file(source)
    planned = plan_windows(
        read_regions(file, genome=genome, counting=counting, sequence_key=sequence_key),
        fasta=fasta,
        folder=None if file.path is None else file.path.parent,
        length=length,
        require_sequence=require_sequence,
    )
    own = None
    cell_types: list[str | None] = []
    if group_key is not None:
        width = _widths(file, planned)
        own, groups = group_signal(
            file,
            group_key,
            planned.source_row,
            width,
            counting=planned.regions.counting,
            cell_key=cell_key,
            layer=layer,
            binarised=binarised,
        )
        cell_types = _cell_types(file, planned, own, groups, chip_key or group_key, chip_of)
    elif cell_key or chip_key or chip_of:
        raise ConfigError(
            "cell_key, chip_key and chip_of say something of groups of cells: name their obs "
            "column too, group_key (--group-key)."
        )
    named = _tracks(file, tracks)
    if own is None and not named and not isinstance(planned.sequences, Genome):
        return _sequences_alone(planned, planned.sequences)
    return _genome_regions(planned, own, cell_types, named)


def _windows_of(source: Any) -> SequenceRegions | None:
    """A file of windows with their sequences; None where the source is something else."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file (looked in {path.absolute()}).")
    if path.is_dir():
        return None
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return read_npz(path)
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            is_windows = is_window_h5(file)
        return read_window_h5(path) if is_windows else None
    return None


def _refuse_options(name: str, **given: Any) -> None:
    unused = [key for key, value in given.items() if value]
    if unused:
        raise ConfigError(
            f"{name} holds windows with their own sequences and no cells: {', '.join(unused)} "
            "cannot be used with it. Leave it out."
        )


def _sequences_alone(windows: Windows, codes: Any) -> SequenceRegions:
    regions = windows.regions
    labels = GroupLabels.without_groups(regions.chip, len(regions))
    return SequenceRegions(
        name=regions.name,
        tasks=labels.tasks,
        chrom=regions.chrom,
        start=regions.start,
        end=regions.end,
        codes=codes,
        label_table=labels.tables[0],
        source_row=windows.source_row,
        genome=windows.genome,
    )


def _genome_regions(
    windows: Windows,
    own: GroupSignal | None,
    cell_types: list[str | None],
    tracks: Mapping[str, Track],
) -> GenomeRegions:
    regions = windows.regions
    groups = () if own is None else own.names
    binding = (
        GroupLabels.without_groups(regions.chip, len(regions))
        if own is None
        else GroupLabels.by_group(regions.chip, len(regions), cell_types)
    )
    return GenomeRegions(
        name=regions.name,
        chrom=regions.chrom,
        start=regions.start,
        end=regions.end,
        chrom_number=windows.chrom_number,
        window_start=windows.start,
        length=windows.length,
        sequences=windows.sequences,
        binding=binding,
        source_row=windows.source_row,
        group_signal=own,
        bulk=Tracks(tracks, windows.chroms, groups) if tracks else None,
        genome=windows.genome,
    )


def _widths(file: RegionFile, windows: Windows) -> np.ndarray:
    """Bases of all the file's regions, of which the windows are some."""
    if len(windows.regions) == len(file.var):
        return windows.regions.end - windows.regions.start
    every = read_regions(file)
    return every.end - every.start


def _cell_types(
    file: RegionFile,
    windows: Windows,
    own: GroupSignal,
    groups: Any,
    key: str,
    chip_of: Mapping[str, str] | None,
) -> list[str | None]:
    """The ChIP cell type of each group: of its name, or of what its cells have in a column."""
    chip = list(windows.regions.chip)
    if key == EACH_ROW or not chip:
        return cell_types_of(own.names, chip, chip_of, source=file.name)
    if key not in file.obs.columns:
        raise missing_column(key, file.name, [str(column) for column in file.obs.columns])
    values: Any = file.obs[key].astype(object)
    of_group = values.groupby(groups.to_numpy()).agg(lambda held: sorted(set(held.dropna())))
    mixed = [name for name in own.names if len(of_group[name]) > 1]
    if mixed:
        raise LabelError(
            f"{file.name}: cells of one group differ in obs '{key}': {', '.join(mixed[:5])}. Group "
            "by a finer column, or name one of the groups' own in chip_key."
        )
    labels = [str(of_group[name][0]) if of_group[name] else "" for name in own.names]
    return cell_types_of(labels, chip, chip_of, source=file.name)


def _tracks(file: RegionFile, given: Mapping[str, Any] | None) -> dict[str, Track]:
    """Tracks as given, else those the file names; its relative paths are from its folder."""
    if given is not None:
        return {k: t if isinstance(t, Track) else Track.parse(t) for k, t in given.items()}
    stored = dict(file.get_uns("tracks", {}))
    scale = parse_scale(str(stored.pop("scale", "total")), f"{file.name}: uns['tracks']")
    folder = Path() if file.path is None else file.path.parent
    return {name: Track(str(folder / str(path)), scale) for name, path in stored.items()}
