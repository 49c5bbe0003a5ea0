"""Runs of all files -> the shards of a store: shuffled, each cell once.

in   runs, what the store holds already, which data set each file becomes
out  groups of buckets, one a shard; a shard's cells in their final order, and its duplicates

Order is that of a key made of a cell's content and the seed, so it is the same however the cells
were divided into files and runs. Identical profiles fall together, within a file as across files;
the first of them, by the order of the files and of the rows, is kept. A profile of few genes may
repeat by chance and is left alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, UInt64

from scfm.data.blocks import EncodedCells
from scfm.data.manifest import ObsColumn
from scfm.data.mixing import GOLDEN, mix64_array
from scfm.data.runs import shuffle_keys
from scfm.data.write import atomic_path

DUPLICATE_GENES = 20  # a profile of fewer genes is no proof that two cells are one
KNOWN_ROWS = 2**21  # cells of the store a file of their hashes holds
KNOWN = np.dtype([("key", "<u8"), ("n_counts", "<i8"), ("dataset", "<i4")])

Pairs = dict[tuple[int, int], int]  # (data set of the one kept, of the duplicate) -> cells


@dataclass(frozen=True)
class Settled:
    """Cells of a shard: which are kept, in their order, and duplicates per pair of data sets."""

    order: Int64[np.ndarray, " kept"]
    duplicates: Pairs


def shard_groups(
    sizes: Int64[np.ndarray, "2 bucket"], shard_cells: int, shard_bytes: int
) -> list[tuple[int, int]]:
    """Consecutive buckets (first, last + 1) of each shard, by the cells and bytes of each bucket.

    Shards are about equal, and of about ``shard_cells`` cells or ``shard_bytes`` bytes at most.
    """
    n_cells, n_bytes = (int(total) for total in sizes.sum(axis=1))
    if not n_cells:
        return []
    n_shards = max(-(-n_cells // shard_cells), -(-n_bytes // shard_bytes))
    middle = np.cumsum(sizes[0]) - sizes[0] / 2
    shard_of = np.minimum((middle * n_shards / n_cells).astype(np.int64), n_shards - 1)
    starts = np.flatnonzero(np.diff(shard_of, prepend=-1))
    stops = [*starts[1:].tolist(), sizes.shape[1]]
    groups = zip(starts.tolist(), stops, strict=True)
    return [(first, last) for first, last in groups if sizes[0, first:last].any()]


def settle(
    cells: EncodedCells, seed: int, known: Iterator[np.ndarray], *, drop_duplicates: bool
) -> Settled:
    """Put cells, given in the order of files and rows, in the shuffled order.

    ``known`` are pieces of `known_pieces` for these buckets.
    """
    keys = shuffle_keys(cells.cell_hash, seed)
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    first = order[starts][group]
    is_copy = order != first
    is_copy &= cells.n_genes[order] >= DUPLICATE_GENES
    is_copy &= cells.n_counts[order] == cells.n_counts[first]
    is_copy &= cells.n_genes[order] == cells.n_genes[first]
    # int64: numpy has no exact type for an unsigned and a signed one
    origin = cells.dataset[first].astype(np.int64)
    in_store = _in_store(ranked, cells.n_counts[order], known)
    is_known = (in_store >= 0) & (cells.n_genes[order] >= DUPLICATE_GENES)
    origin = np.where(is_known, in_store, origin)
    is_copy |= is_known
    duplicates = _pairs(origin[is_copy], cells.dataset[order[is_copy]].astype(np.int64))
    kept = ~is_copy if drop_duplicates else np.ones(len(order), bool)
    nth = np.arange(len(order)) - starts[group]
    return Settled(order[kept][_apart(ranked[kept], nth[kept])], duplicates)


def shard_table(cells: EncodedCells, obs: pa.Table, columns: dict[str, ObsColumn]) -> pa.Table:
    """The obs of a shard: what the store says of every cell, then the chosen columns."""
    found = {
        "dataset": pa.array(cells.dataset.astype(np.int32)),
        "row": obs.column("row"),
        "cell_hash": pa.array(cells.cell_hash),
        "n_counts": pa.array(cells.n_counts),
        "n_genes": pa.array(cells.n_genes.astype(np.int32)),
        "sketch_a": pa.array(np.ascontiguousarray(cells.sketches[:, 0])),
        "sketch_b": pa.array(np.ascontiguousarray(cells.sketches[:, 1])),
        "name": obs.column("name"),
    }
    for name, column in columns.items():
        values = obs.column(name).combine_chunks()
        if column.kind == "category":
            categories = pa.array(column.categories, pa.string())
            values = pa.DictionaryArray.from_arrays(values, categories)
        found[name] = values
    return pa.table(found)


def write_known(folder: Path, obs_files: Sequence[Path], seed: int) -> None:
    """Write what a store holds already as sorted files of (key, total count, data set).

    Memory does not grow with the store.
    """
    waiting: list[np.ndarray] = []
    n_files = 0
    for number, file in enumerate(obs_files):
        table = pq.read_table(file, columns=["cell_hash", "n_counts", "dataset"])
        part = np.empty(len(table), KNOWN)
        part["key"] = shuffle_keys(table["cell_hash"].to_numpy(), seed)
        part["n_counts"], part["dataset"] = (table[c].to_numpy() for c in table.column_names[1:])
        waiting.append(part)
        if sum(map(len, waiting)) >= KNOWN_ROWS or number == len(obs_files) - 1:
            rows = np.concatenate(waiting)
            with atomic_path(folder / f"{n_files:04d}.npy") as temporary, temporary.open("wb") as f:
                np.save(f, rows[np.argsort(rows["key"], kind="stable")])
            waiting, n_files = [], n_files + 1


def known_pieces(folder: Path, bucket: int, n_buckets: int) -> Iterator[np.ndarray]:
    """The rows of a bucket, from one file after the other."""
    # a bucket begins where the upper half of the key is ceil(b 2^32 / n): see buckets_of
    low, high = (-(-edge * 2**32 // n_buckets) << 32 for edge in (bucket, bucket + 1))
    for file in sorted(folder.glob("*.npy")):
        rows = np.load(file, mmap_mode="r")
        start = np.searchsorted(rows["key"], np.uint64(low))
        stop = len(rows) if high >= 2**64 else np.searchsorted(rows["key"], np.uint64(high))
        if stop > start:
            yield np.array(rows[start:stop])


def _in_store(
    keys: UInt64[np.ndarray, " cell"],
    n_counts: Int64[np.ndarray, " cell"],
    known: Iterator[np.ndarray],
) -> Int64[np.ndarray, " cell"]:
    """Data set that holds each cell already, -1 where none does."""
    found = np.full(len(keys), -1, np.int64)
    for rows in known:
        place = np.minimum(np.searchsorted(rows["key"], keys), len(rows) - 1)
        same = (rows["key"][place] == keys) & (rows["n_counts"][place] == n_counts)
        found[same & (found < 0)] = rows["dataset"][place[same & (found < 0)]]
    return found


def _pairs(origin: np.ndarray, copy: np.ndarray) -> Pairs:
    pairs, counts = np.unique(np.stack([origin, copy]), axis=1, return_counts=True)
    return {(int(a), int(b)): int(n) for a, b, n in zip(*pairs, counts, strict=True)}


def _apart(keys: np.ndarray, nth: np.ndarray) -> np.ndarray:
    """The order of the keys, with copies that are kept scattered over the shard."""
    is_first: Bool[np.ndarray, " kept"] = nth == 0
    with np.errstate(over="ignore"):
        scattered = np.where(is_first, keys, mix64_array(keys + nth.astype(np.uint64) * GOLDEN))
    return np.argsort(scattered, kind="stable")
