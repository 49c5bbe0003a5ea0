"""TF binding of real single cells: what accessibility alone says, and clusters by TF activity.

One JSON line.

accessibility  25 + 25 cells of two cell lines, peaks with ENCODE ChIP of 15 and 18 TFs: AUROC and
               AUPR of the share of k pooled cells that have a peak open, mean over TFs; mean and
               standard deviation over draws of k cells
marrow         14,125 cells of 16 types x 10,000 peaks, read out of core by a process of its own:
               pooled by type, LSI, deviations of peaks that ChIP in other cells found bound
               (chromVAR's), activities by the same ChIP; ARI and NMI of k-means with the types,
               seconds and the process's peak memory. No DNA is in the file, and none is used.

    python benchmarks/tf_cells.py [--data FOLDER] [--draws 20] [--out FILE]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from measure import commit, machine

from scfm.data.lsi import lsi
from scfm.data.matched_peaks import matched_peaks
from scfm.data.metacells import cell_depth, pool_counts, pooled
from scfm.data.region_examples import open_regions
from scfm.data.region_file import open_region_file
from scfm.data.regions import Regions, read_regions
from scfm.data.write import atomic_path
from scfm.evaluate.motif_deviations import chromvar_deviations
from scfm.evaluate.ranking import ranking
from scfm.evaluate.tf_cells import cell_scores, standardised, unit_rows
from scfm.tasks.tf_activity import deviations, open_peaks
from scfm.tasks.tf_names import tf_of
from scfm.tools.tf_activities import count_chunks, peak_totals

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tf"
LINES, MARROW = "scatac_gm12878_h1_50cells_chip.h5ad", "scatac_human_marrow_14k.h5ad"
WINDOWS = "windows_hg19_100bp_labels.npz"
POOLED = (1, 2, 5, 10, 25)
TYPES = "BioClassification"


def main() -> None:
    """Measure both and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--marrow-only", action="store_true", help="what the process of its own does"
    )
    asked = parser.parse_args()
    if asked.marrow_only:
        print(json.dumps(marrow(asked.data)), flush=True)
        return
    command = [sys.executable, __file__, "--data", str(asked.data), "--marrow-only"]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {
        "what": "TF binding of real cells: accessibility alone, clusters of marrow cells",
        "accessibility": accessibility(asked.data / LINES, asked.draws),
        "marrow": json.loads(child.stdout.splitlines()[-1]),
        "machine": machine(),
        "commit": commit(),
    }
    line = json.dumps(found)
    print(line, flush=True)
    if asked.out:
        with atomic_path(asked.out) as path:
            path.write_text(line + "\n")


def accessibility(path: Path, n_draws: int) -> dict[str, Any]:
    """By cell line and cells pooled: AUROC and AUPR, [mean, standard deviation] over draws."""
    cells = ad.read_h5ad(path)
    counts = sp.csr_matrix(cells.X)
    chip = read_regions(open_region_file(cells)).chip
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"n_draws": n_draws}
    for line, cell in (("GM", "GM12878"), ("H1", "H1-hESC")):
        rows = np.flatnonzero(cells.obs["cell_type"] == line)
        labels = chip[cell].table
        by_k = {}
        for k in POOLED:
            n = n_draws if k < len(rows) else 1
            scores = []
            for _ in range(n):
                some = rng.choice(rows, k, replace=False)
                share = np.asarray((counts[some] > 0).mean(0)).ravel()
                scores.append(mean_scores(labels, share))
            mean, spread = np.mean(scores, 0), np.std(scores, 0)
            by_k[str(k)] = {
                "auroc": [round(float(mean[0]), 4), round(float(spread[0]), 4)],
                "aupr": [round(float(mean[1]), 4), round(float(spread[1]), 4)],
            }
        found[cell] = {"n_tfs": labels.shape[1], "pooled_cells": by_k}
    return found


def mean_scores(labels: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Mean over TFs of AUROC and AUPR where the label is known."""
    each = []
    for column in labels.T:
        known = column >= 0
        unit = np.zeros(known.sum(), dtype=np.int64)
        of_tf = ranking(column[known] == 1, score[known], unit, np.ones((1, 1)))
        each.append((of_tf.auroc[0], of_tf.aupr[0]))
    auroc, aupr = np.mean(each, axis=0)
    return float(auroc), float(aupr)


def marrow(data: Path) -> dict[str, Any]:
    """Everything that needs no DNA, the counts read a chunk at a time."""
    file = open_region_file(data / MARROW)
    types = file.obs[TYPES].astype(str).to_numpy()
    regions = read_regions(file, genome="hg19")
    share, tfs = other_cells_chip(data / WINDOWS, regions)
    gc = regions.gc
    assert gc is not None, "the file has a column of GC"
    seconds: dict[str, float] = {}
    with file.open_counts(backed=True) as source:
        with timed(seconds, "pooled by type"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            depth = np.concatenate([cell_depth(rows) for rows in count_chunks(source)])
            groups = pooled(depth, groups=types, target_depth=500_000)
            profiles = pool_counts(groups.members, source)
        with timed(seconds, "LSI"):
            vectors = lsi(source)
        totals = peak_totals(source)
        background = matched_peaks(totals, gc, n=50, seed=0)
        with timed(seconds, "deviations"):
            bound = sp.csr_matrix((np.nan_to_num(share) > 0).astype(np.float64))
            z = chromvar_deviations(lambda: count_chunks(source), bound, background).z
        with timed(seconds, "activities"):
            known = np.flatnonzero(~np.isnan(share[:, 0]))
            within = matched_peaks(totals[known], gc[known], n=50, seed=0)
            parts = [
                deviations(open_peaks(sp.csr_matrix(rows[:, known])), share[known], within)
                for rows in count_chunks(source)
            ]
        activity = np.concatenate(parts)
    scores = cell_scores(
        {
            "lsi": ("LSI", "", unit_rows(vectors)),
            "deviations": ("ChIP deviations", "", standardised(z)),
            "activities": ("ChIP activities", "", standardised(activity)),
        },
        types,
    )
    return {
        "n_cells": len(types),
        "n_types": len(set(types)),
        "n_peaks": len(regions),
        "n_peaks_with_chip": len(known),
        "n_tfs": len(tfs),
        "cells_without_such_a_peak": int(np.isnan(activity).any(axis=1).sum()),
        "pooled_depth": [float(np.min(groups.depth)), float(np.max(groups.depth))],
        "pooled_counts_kept": float(profiles.sum() / depth.sum()),
        "ari": {s.key: [round(x, 3) for x in (s.ari.value, s.ari.low, s.ari.high)] for s in scores},
        "nmi": {s.key: [round(x, 3) for x in (s.nmi.value, s.nmi.low, s.nmi.high)] for s in scores},
        "leiden_ari_nmi": {s.key: [round(x, 3) for x in s.leiden or ()] for s in scores},
        "highest_spi1_z": highest(z[:, tfs.index("SPI1")], types),
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def highest(z: np.ndarray, types: np.ndarray, n: int = 4) -> dict[str, float]:
    """The types of highest mean: SPI1 (PU.1) makes myeloid cells."""
    means = {name: float(z[types == name].mean()) for name in sorted(set(types))}
    return {name: round(means[name], 3) for name in sorted(means, key=lambda t: -means[t])[:n]}


class timed:  # noqa: N801 a context manager, spelled as contextlib spells its own
    """Wall seconds of a block, into a dictionary."""

    def __init__(self, seconds: dict[str, float], name: str):
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start


def other_cells_chip(path: Path, regions: Regions) -> tuple[np.ndarray, list[str]]:
    """Share of the cell lines where ChIP found each TF in a window of the peak; NaN elsewhere."""
    windows = open_regions(path)
    tfs = sorted({tf_of(task) for task in windows.tasks})
    labels = windows.labels(np.arange(windows.n_regions), np.full(windows.n_regions, -1))
    middle = (windows.start + windows.end) // 2
    share = np.full((len(regions), len(tfs)), np.nan)
    of_tf = [[i for i, task in enumerate(windows.tasks) if tf_of(task) == tf] for tf in tfs]
    for peak, window in overlapping(regions, windows.chrom, middle):
        own = np.array([(labels[window, columns] == 1).mean() for columns in of_tf])
        share[peak] = np.fmax(share[peak], own)
    return share, tfs


def overlapping(regions: Regions, chrom: np.ndarray, at: np.ndarray) -> Iterator[tuple[int, int]]:
    """(peak, window) where the window's middle lies in the peak."""
    for name in np.unique(regions.chrom):
        peaks = np.flatnonzero(regions.chrom == name)
        peaks = peaks[np.argsort(regions.start[peaks])]
        here = np.flatnonzero(chrom == name)
        if not len(here):
            continue
        last = np.searchsorted(regions.start[peaks], at[here], side="right") - 1
        inside = (last >= 0) & (at[here] < regions.end[peaks[np.maximum(last, 0)]])
        yield from zip(peaks[last[inside]].tolist(), here[inside].tolist(), strict=True)


if __name__ == "__main__":
    main()
