"""Windows of 1,000 bases per CPU-second, from FASTA and bigWig to RegionBatch.

One JSON line on stdout. A synthetic genome and a bigWig of insertions are made first: runs of whole
numbers a base as Tn5 leaves them, at a depth of 20 million over a human genome (one insertion in
150 bases) and three times as dense in peaks. Windows are drawn at random over the whole genome, as
training draws them, and, as prediction reads them, tiled at half their length. CPU time of one
thread, not wall time.

    OMP_NUM_THREADS=1 python benchmarks/regions.py [--windows 20000] [--rounds 7] [--fasta F]
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from measure import report, spread

from scfm.data.genome import Genome
from scfm.data.region_examples import RegionExamples, open_regions

BATCH = 256
LENGTH = 1000
CHROMS = {"chr1": 40_000_000, "chr2": 24_000_000}  # well beyond any cache of the processor
INSERTIONS_A_BASE = 1 / 150
PEAK_EVERY, PEAK_LENGTH, PEAK_FOLD = 20_000, 500, 30


def main() -> None:
    """Make the files, measure, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fasta", type=Path, help="take this genome instead of a synthetic one")
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        fasta = asked.fasta or write_genome(Path(folder) / "genome.fa", rng)
        genome = Genome.open(fasta)
        bigwig = Path(folder) / "insertions.bw"
        n_runs = write_insertions(bigwig, genome.sizes, rng)
        regions = {
            "random": open_windows(fasta, bigwig, genome, rng, asked.windows),
            "tiled": open_windows(fasta, bigwig, genome, None, asked.windows),
        }
        alone = open_windows(fasta, None, genome, np.random.default_rng(0), asked.windows)
        sides = {**regions, "random_without_bigwig": alone}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            windows_per_cpu_second(side, 1)  # compiled, opened, in the page cache
        for _ in range(asked.rounds):
            for name, side in sides.items():
                rates[name].append(windows_per_cpu_second(side, None))
        bigwig_mb = round(bigwig.stat().st_size / 1e6, 1)
    report(
        {
            "what": "FASTA + bigWig -> RegionBatch, windows of 1,000 bases",
            "unit": "windows per CPU-second, one thread (median [min, max])",
            **{name: spread(found) for name, found in rates.items()},
            "asked": 5000,
            "rounds": asked.rounds,
            "input": {
                "windows": asked.windows,
                "batch": BATCH,
                "length": LENGTH,
                "genome": str(asked.fasta.name) if asked.fasta else "synthetic",
                "bases": sum(genome.sizes.values()),
                "bigwig_runs": n_runs,
                "bigwig_mb": bigwig_mb,
                "seed": 0,
            },
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("numpy", "numba", "pybigtools")},
        }
    )


def write_genome(path: Path, rng: np.random.Generator) -> Path:
    """Random letters in lines of 60."""
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    with path.open("wb") as file:
        for name, size in CHROMS.items():
            file.write(f">{name}\n".encode())
            lines = np.full((size // 60, 61), ord("\n"), dtype=np.uint8)
            lines[:, :60] = letters[rng.integers(0, 4, (size // 60, 60), dtype=np.uint8)]
            file.write(lines.tobytes())
    return path


def write_insertions(path: Path, sizes: dict[str, int], rng: np.random.Generator) -> int:
    """A bigWig of insertion counts, absent where there is none; how many runs it holds."""
    import pybigtools

    runs = {name: list(insertions(size, rng)) for name, size in sorted(sizes.items())}
    lines = ((name, *run) for name, of_one in runs.items() for run in of_one)
    pybigtools.open(str(path), "w").write(sizes, lines)
    return sum(map(len, runs.values()))


def insertions(size: int, rng: np.random.Generator) -> Iterator[tuple[int, int, float]]:
    rate = np.full(size, INSERTIONS_A_BASE, dtype=np.float32)
    for start in range(0, size - PEAK_LENGTH, PEAK_EVERY):
        rate[start : start + PEAK_LENGTH] *= PEAK_FOLD
    counts = rng.poisson(rate).astype(np.float32)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(counts)) + 1, [size]])
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if counts[start]:
            yield start, end, float(counts[start])


def open_windows(
    fasta: Path,
    bigwig: Path | None,
    genome: Genome,
    rng: np.random.Generator | None,
    n_windows: int,
) -> RegionExamples:
    """Windows at random, or tiled at half their length from the start of the first chromosome."""
    names = np.array(list(genome.sizes))
    sizes = np.array(list(genome.sizes.values()))
    if rng is None:
        place = np.arange(n_windows) * (LENGTH // 2)
        room = sizes // LENGTH * LENGTH
        chrom = np.searchsorted(np.cumsum(room), place, side="right") % len(names)
        start = place % (room[chrom] - LENGTH)
    else:
        chrom = rng.choice(len(names), n_windows, p=sizes / sizes.sum())
        start = rng.integers(0, sizes[chrom] - LENGTH)
    frame = pd.DataFrame({"chrom": names[chrom], "start": start, "end": start + LENGTH})
    frame = frame.drop_duplicates().sort_values(["chrom", "start"], ignore_index=True)
    if rng is not None:
        frame = frame.sample(frac=1, random_state=0, ignore_index=True)
    frame.index = frame.index.astype(str)
    tfs = np.array([f"TF{i}" for i in range(50)])
    labels: Any = {"chip_all": np.zeros((len(frame), len(tfs)), dtype=np.int8)}
    cells = pd.DataFrame(index=pd.Index([], dtype=str))
    uns = {"genome": genome.name or "synthetic", "chip_tfs_all": tfs}
    adata = ad.AnnData(obs=cells, var=frame, varm=labels, uns=uns)
    tracks = {} if bigwig is None else {"atac": bigwig}
    return open_regions(adata, fasta=fasta, tracks=tracks)


def windows_per_cpu_second(regions: RegionExamples, n_batches: int | None) -> float:
    n_batches = n_batches or regions.n_regions // BATCH
    no_group = np.full(BATCH, -1)
    start = time.process_time()
    for first in range(0, n_batches * BATCH, BATCH):
        regions.batch(np.arange(first, first + BATCH), no_group)
    return n_batches * BATCH / (time.process_time() - start)


if __name__ == "__main__":
    main()
