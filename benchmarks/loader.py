"""Cells per CPU-second of loading shuffled batches from a store, beside scDataset and a memory map.

One JSON line on stdout. The corpus (benchmarks/corpus.py) is made once in --folder, with its store
(by scfm prepare, in a process of its own, whose CPU time and memory are reported) and a raw memory
map of uint16 columns and counts: what reading would cost if nothing were compressed or checked.
Everything is in the page cache. Sides are measured in turn, in one process, on one thread; each
yields CSR batches of 128 cells as int32, the store also packed training examples. The two ranks are
two processes reading their shares, against one, by wall time: only on two idle cores does that say
anything.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--folder corpus] [--cells 200000] [--rounds 5]

Needs scDataset (pip install scDataset==0.3.0).
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from corpus import make_corpus
from measure import report, spread
from numba import njit

from scfm.data.buffers import BufferPool
from scfm.data.order import SHUFFLED_LANES, CellOrder
from scfm.data.store import Store
from scfm.tokens.collate import TokenConfig
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import CellPool
from scfm.tokens.vocab import GeneVocab

BATCH = 128
TOGETHER = 4  # batches that a store is asked for at a time
FETCH = 8_192  # scDataset's cells a fetch
BLOCK = 16  # its cells a block
SECONDS = 2.0  # of CPU time, each side and round


def main() -> None:
    """Measure all sides and print one JSON line; with --reader, be one measured process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("corpus"))
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--reader", help="internal: SHARE/OF, read for some seconds and say how many"
    )
    asked = parser.parse_args()
    if asked.reader:
        rank, world_size = map(int, asked.reader.split("/"))
        be_a_reader(asked.folder, rank, world_size)
        return
    files = make_corpus(asked.folder, asked.cells)
    store_folder = asked.folder / f"store_{asked.cells}"
    conversion = convert(files, store_folder)
    memory_map = MemoryMap(asked.folder / f"memory_map_{asked.cells}", files)
    sides: dict[str, Callable[[], Iterator[int]]] = {
        "store": lambda: store_batches(store_folder),
        "memory_map": memory_map.batches,
        "scdataset": lambda: scdataset_batches(files),
        "store_to_tokens": lambda: token_batches([store_folder]),
        "h5ad_to_tokens": lambda: token_batches(files),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    running = {name: side() for name, side in sides.items()}
    for name, batches in running.items():
        measured(batches)  # warm: compiled, page-cached, buffers made
        print(f"{name} is warm", file=sys.stderr, flush=True)
    for _ in range(asked.rounds):
        for name, batches in running.items():
            rates[name].append(measured(batches))
    middle = {name: float(np.median(found)) for name, found in rates.items()}
    store = Store(store_folder)
    report(
        {
            "what": "shuffled batches of 128 cells from disk, page-cached",
            "unit": "cells per CPU-second (median [min, max])",
            **{name: spread(found) for name, found in rates.items()},
            "store_to_scdataset": round(middle["store"] / middle["scdataset"], 2),
            "store_to_memory_map": round(middle["store"] / middle["memory_map"], 2),
            "entropy_bits": entropies(store),
            "store_bytes_a_cell": round(store.manifest.n_bytes / store.n_cells),
            "conversion": conversion,
            "reader_peak_mb": reader(store_folder, ["0/1"])[0]["peak_mb"],
            "two_ranks": two_ranks(store_folder, asked.rounds),
            "rounds": asked.rounds,
            "input": {
                "cells": asked.cells,
                "genes_a_cell": round(store.manifest.n_values / store.n_cells),
                "batch": BATCH,
                "order_on_disk": "by donor, then type",
            },
        }
    )


def measured(batches: Iterator[int]) -> float:
    """Cells per CPU-second over about SECONDS."""
    start, cells = time.process_time(), 0
    while (passed := time.process_time() - start) < SECONDS:
        cells += next(batches)
    return cells / passed


def store_batches(folder: Path) -> Iterator[int]:
    """The store's own order, into CSR."""
    store = Store(folder)
    order = CellOrder(blocks=store.blocks, seed=0, lanes=SHUFFLED_LANES)
    for step in count(0, TOGETHER):
        cells, _ = order.stretch(step * BATCH, TOGETHER * BATCH)
        rows = store.rows(cells)
        for first in range(0, TOGETHER * BATCH, BATCH):
            yield rows.part(first, first + BATCH).n_cells


def token_batches(paths: list[Path]) -> Iterator[int]:
    """Training examples of scfm's default vocabulary: remapped, thinned, with targets."""
    config = InputConfig(minimum_coverage=0.0)
    members = [
        open_input(path, GeneVocab.human(), config, TokenConfig(), backed=True)[0] for path in paths
    ]
    pool = CellPool(members, seed=0)
    order = CellOrder(blocks=pool.blocks, seed=0, lanes=pool.lanes)
    pool.keep_blocks(pool.lanes)
    for step in count():
        yield pool.training(*order.stretch(step * BATCH, BATCH)).n_cells


def scdataset_batches(files: list[Path]) -> Iterator[int]:
    """scDataset over an AnnCollection of the backed files: blocks of 16, 8,192 cells a fetch."""
    import anndata as ad
    from anndata.experimental import AnnCollection
    from scdataset import BlockShuffling, scDataset  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = [ad.read_h5ad(path, backed="r") for path in files]
        for adata in opened:
            adata.obs = adata.obs[[]]
        collection = AnnCollection(opened, join_vars="inner", index_unique="-")
        dataset = scDataset(
            collection,
            BlockShuffling(block_size=BLOCK),
            batch_size=BATCH,
            fetch_factor=FETCH // BATCH,
            fetch_callback=lambda data, cells: data[cells].X,
            seed=0,
        )
        while True:
            for batch in dataset:
                yield batch.shape[0]


class MemoryMap:
    """Columns and counts as uint16 in two files: random rows by one compiled copy."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in ("indices.npy", "counts.npy", "indptr.npy")]
        if not paths[2].exists():
            self._write(paths, files)
        self.indices, self.counts = (np.load(path, mmap_mode="r") for path in paths[:2])
        self.indptr = np.load(paths[2])
        for array in (self.indices, self.counts):  # into the page cache
            for first in range(0, len(array), 2**24):
                array[first : first + 2**24].sum()

    @staticmethod
    def _write(paths: list[Path], files: list[Path]) -> None:
        pointers, n = [np.zeros(1, np.int64)], 0
        for path in files:
            with h5py.File(path) as file:
                of_file: Any = file["X/indptr"]
                pointers.append(of_file[1:] + n)
                n = int(pointers[-1][-1])
        for target, key in zip(paths, ("indices", "data"), strict=False):
            out, at = np.lib.format.open_memmap(target, "w+", np.uint16, (n,)), 0
            for path in files:
                with h5py.File(path) as file:
                    values: Any = file[f"X/{key}"]
                    for first in range(0, len(values), 2**24):
                        part = values[first : first + 2**24]
                        out[at : at + len(part)] = part
                        at += len(part)
            out.flush()
        np.save(paths[2], np.concatenate(pointers))

    def batches(self) -> Iterator[int]:
        """Random cells, each epoch in another order, in the types that the store hands out."""
        pool, rng = BufferPool(), np.random.default_rng(0)
        n_cells = len(self.indptr) - 1
        while True:
            order = rng.permutation(n_cells)
            for first in range(0, n_cells, BATCH):
                cells = order[first : first + BATCH]
                starts, stops = self.indptr[cells], self.indptr[cells + 1]
                indptr = np.concatenate([[0], np.cumsum(stops - starts)])
                indices, counts = (pool.empty(int(indptr[-1]), np.int32) for _ in range(2))
                _gather(self.indices, self.counts, starts, indptr, indices, counts)
                yield len(cells)


@njit(nogil=True)
def _gather(stored_indices, stored_counts, starts, indptr, indices, counts):
    for i in range(len(starts)):
        start, first, n = starts[i], indptr[i], indptr[i + 1] - indptr[i]
        for k in range(n):
            indices[first + k] = stored_indices[start + k]
        for k in range(n):
            counts[first + k] = stored_counts[start + k]


def entropies(store: Store) -> dict[str, float]:
    """Mean entropy of cell types within a batch: the store's order, and batches drawn at random."""
    codes, categories = store.column("cell_type")
    order = CellOrder(blocks=store.blocks, seed=0, lanes=SHUFFLED_LANES)
    rng = np.random.default_rng(0)
    ours = [codes[order.stretch(step * BATCH, BATCH)[0]] for step in range(500)]
    ideal = [codes[rng.choice(store.n_cells, BATCH, replace=False)] for _ in range(500)]
    return {
        name: round(float(np.mean([_entropy(batch, len(categories)) for batch in batches])), 3)
        for name, batches in {"store": ours, "ideal": ideal}.items()
    }


def _entropy(codes: np.ndarray, n: int) -> float:
    share = np.bincount(codes, minlength=n) / len(codes)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def convert(files: list[Path], out: Path) -> dict[str, int]:
    """scfm prepare in a process of its own, if there is no store yet."""
    if (out / "manifest.json").exists():
        return json.loads((out.parent / f"{out.name}.conversion.json").read_text())
    command = [sys.executable, "-m", "scfm.cli.app", "prepare", *map(str, files), "--out", str(out)]
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"scfm prepare ended with {os.waitstatus_to_exitcode(status)}")
    n_cells = Store(out).n_cells
    found = {
        "cells_per_cpu_second": round(n_cells / (used.ru_utime + used.ru_stime)),
        "cells_per_second": round(n_cells / (time.perf_counter() - began)),
        "peak_mb": round(used.ru_maxrss / 1024),
    }
    (out.parent / f"{out.name}.conversion.json").write_text(json.dumps(found))
    return found


def two_ranks(store: Path, rounds: int) -> dict[str, object]:
    """Wall cells per second of two processes with half the lanes each, over one with all."""
    ratios, alone = [], []
    for _ in range(rounds):
        one = reader(store, ["0/1"])
        two = reader(store, ["0/2", "1/2"])
        alone.append(one[0]["cells_per_second"])
        ratios.append(sum(rank["cells_per_second"] for rank in two) / alone[-1])
    return {
        "ratio": round(float(np.median(ratios)), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "one_rank_cells_per_second": spread(alone),
    }


def reader(store: Path, shares: list[str]) -> list[dict[str, float]]:
    """Processes that read their shares of a store at the same time, and what each found."""
    command = [sys.executable, __file__, "--folder", str(store), "--reader"]
    children = [
        subprocess.Popen([*command, share], stdout=subprocess.PIPE, text=True) for share in shares
    ]
    return [json.loads(child.communicate()[0]) for child in children]


def be_a_reader(folder: Path, rank: int, world_size: int) -> None:
    """Read this rank's share for some seconds; say how fast and with how much memory."""
    store = Store(folder)
    order = CellOrder(blocks=store.blocks, seed=0, lanes=SHUFFLED_LANES)

    def read(seconds: float, step: int) -> tuple[int, float, int]:
        began, cells = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds:
            mine, _ = order.share(step * BATCH * world_size, BATCH * world_size, rank, world_size)
            cells, step = cells + store.rows(mine).n_cells, step + 1
        return cells, passed, step

    *_, step = read(3.0, 0)  # warm, and both ranks at it
    cells, passed, _ = read(4.0, step)
    # not ru_maxrss, which begins with what the parent had when this process was started
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"cells_per_second": round(cells / passed), "peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
