"""Fragments and peaks -> peaks x cells, as a file.

in   fragments.tsv.gz; BED, or a file of regions with its labels
out  h5ad that holds the contract of scfm.data.regions
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from scfm.data.fragments import Counting, count_fragments
from scfm.data.intervals import Intervals, read_bed
from scfm.data.region_file import open_region_file
from scfm.data.regions import check_intervals, read_regions
from scfm.data.write import check_writable, write_h5ad
from scfm.errors import MissingFileError

OF_CELLS = ("metacells", "counting")  # of uns: what belongs to cells that are not taken along


@dataclass(frozen=True)
class Counted:
    """What was counted."""

    out: str
    n_cells: int
    n_peaks: int
    n_counts: int
    n_fragments: int
    counting: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.n_counts:,} {self.counting} of {self.n_cells:,} cells in {self.n_peaks:,} "
            f"peaks; {self.n_fragments:,} fragments read"
        )


def count_file(
    fragments: str | Path,
    peaks: str | Path,
    out: str | Path,
    *,
    counting: Counting = "insertions",
    barcodes: str | Path | None = None,
    min_fragments: int = 0,
    genome: str | None = None,
) -> Counted:
    """Count a fragments file over peaks and write peaks x cells.

    ``peaks`` is a BED, or a file of regions, whose labels and genome are kept. ``barcodes`` is a
    file of one a line. Raises what reading them raises; InputError where peaks occur twice.
    """
    check_writable(out)
    adata, intervals = _peaks_of(peaks, genome)
    wanted = None if barcodes is None else _barcodes_of(barcodes)
    found = count_fragments(
        fragments, intervals, counting=counting, barcodes=wanted, min_fragments=min_fragments
    )
    n_counts = np.asarray(found.counts.sum(axis=1)).ravel()
    obs = pd.DataFrame(
        {"n_fragments": found.n_fragments, "n_counts": n_counts}, index=pd.Index(found.barcodes)
    )
    tables: dict[str, Any] = {"var": adata.var, "varm": dict(adata.varm)}
    uns = {**adata.uns, "counting": counting}
    counted = ad.AnnData(X=found.counts, obs=obs, uns=uns, **tables)
    write_h5ad(counted, out)
    return Counted(
        out=str(out),
        n_cells=counted.n_obs,
        n_peaks=counted.n_vars,
        n_counts=int(n_counts.sum()),
        n_fragments=int(found.n_fragments.sum()),
        counting=counting,
    )


def _peaks_of(peaks: str | Path, genome: str | None) -> tuple[ad.AnnData, Intervals]:
    """Peaks without cells, and where they lie; refuses what is no region, or is there twice."""
    path = Path(peaks)
    if path.name.endswith((".h5ad", ".h5mu", ".zarr")):
        file = open_region_file(path)
        empty = ad.AnnData(
            obs=pd.DataFrame(index=pd.Index([], dtype=str)),
            var=file.var,
            varm={key: read() for key, read in file.varm.items()},
            uns={key: read() for key, read in file.uns.items() if key not in OF_CELLS},
        )
        return empty, read_regions(file, genome=genome).intervals
    bed = read_bed(path)
    check_intervals(bed.chrom, bed.start, bed.end, str(path))
    var = pd.DataFrame({"chrom": bed.chrom, "start": bed.start, "end": bed.end})
    if bed.summit is not None:
        var["summit"] = bed.middle
    var.index = pd.Index(
        [f"{c}:{s}-{e}" for c, s, e in zip(bed.chrom, bed.start, bed.end, strict=True)], dtype=str
    )
    empty = ad.AnnData(obs=pd.DataFrame(index=pd.Index([], dtype=str)), var=var)
    regions = read_regions(open_region_file(empty), genome=genome)
    if genome:
        empty.uns["genome"] = genome
    return empty, regions.intervals


def _barcodes_of(path: str | Path) -> list[str]:
    if not Path(path).is_file():
        raise MissingFileError(f"{path}: no such file (looked in {Path(path).absolute()}).")
    frame: Any = pd.read_csv(path, header=None, sep="\t", dtype=str)
    return frame[0].tolist()
