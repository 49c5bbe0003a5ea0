"""Cells on their way into a shuffled store: written in buckets, read back bucket by bucket.

in   EncodedCells and their obs, as the files hand them out
out  .run files, each whole or absent; all cells of some buckets of many runs, earlier ones first

A cell's bucket hangs on its content and a seed alone, so identical cells of different files meet
in one bucket, and neither the order of the files nor an interruption has a say in the shuffle.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from jaxtyping import Int64, UInt64

from scfm.data.blocks import EncodedCells, concatenate, from_bytes, parts_of, take, to_bytes
from scfm.data.mixing import GOLDEN, mix64_array
from scfm.data.write import atomic_path
from scfm.errors import UnreadableFileError

# Encoded cells in memory before they are written: no more runs than can be merged well, but small
# ones where they are few, since memory that is used over and over need not be cleared for us anew.
RUN_BYTES = (24 * 2**20, 128 * 2**20)
MANY_RUNS = 512
_TAIL = struct.Struct("<QQ")  # buckets, xxh3 of the index
_INDEX = np.dtype([("stop", "<u8"), ("n_cells", "<u8"), ("xxh3", "<u8")])  # one a bucket


def run_bytes_for(total: float) -> int:
    """Bytes of a run where about ``total`` will be written."""
    return int(min(max(total / MANY_RUNS, RUN_BYTES[0]), RUN_BYTES[1]))


def shuffle_keys(cell_hash: UInt64[np.ndarray, " cell"], seed: int) -> UInt64[np.ndarray, " cell"]:
    """Where a cell stands in the shuffled order: a bijection of its hash."""
    with np.errstate(over="ignore"):
        start = mix64_array(np.array([seed], dtype=np.uint64) + GOLDEN)
        return mix64_array(cell_hash ^ start)


def buckets_of(keys: UInt64[np.ndarray, " cell"], n_buckets: int) -> Int64[np.ndarray, " cell"]:
    """Equal stretches of the keys' range, in the order of the keys."""
    assert 0 < n_buckets < 2**31, n_buckets
    high = (keys >> np.uint64(32)) * np.uint64(n_buckets)
    return (high >> np.uint64(32)).astype(np.int64)


class RunWriter:
    """Collects cells of one file and writes them as runs 0000.run, 0001.run, ...

    ``folder`` must exist; runs of those names are replaced.
    """

    def __init__(self, folder: Path, *, n_buckets: int, seed: int, run_bytes: int):
        self.folder, self.n_buckets, self.seed, self.run_bytes = folder, n_buckets, seed, run_bytes
        self.n_runs = 0
        self._cells: list[EncodedCells] = []
        self._obs: list[pa.Table] = []
        self._waiting = 0

    def add(self, cells: EncodedCells, obs: pa.Table) -> None:
        """Take in some cells; writes a run when enough have come together. Raises OutputError."""
        assert cells.n_cells == obs.num_rows, (cells.n_cells, obs.num_rows)
        self._cells.append(cells)
        self._obs.append(obs)
        self._waiting += cells.nbytes
        if self._waiting >= self.run_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._cells:
            return
        cells, obs = concatenate(self._cells), pa.concat_tables(self._obs)
        self._cells, self._obs, self._waiting = [], [], 0
        buckets = buckets_of(shuffle_keys(cells.cell_hash, self.seed), self.n_buckets)
        write_run(self.folder / f"{self.n_runs:04d}.run", cells, obs, buckets, self.n_buckets)
        self.n_runs += 1


def write_run(
    path: Path,
    cells: EncodedCells,
    obs: pa.Table,
    buckets: Int64[np.ndarray, " cell"],
    n_buckets: int,
) -> None:
    """Write cells bucket by bucket. The obs go first: a run that is there is complete."""
    order = np.argsort(buckets, kind="stable")
    cells, bounds = take(cells, order), np.searchsorted(buckets[order], np.arange(n_buckets + 1))
    with (
        atomic_path(_obs_path(path)) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, obs.schema) as writer,
    ):
        writer.write_table(obs.take(pa.array(order)).combine_chunks())
    index = np.zeros(n_buckets, _INDEX)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for bucket, part in enumerate(parts_of(cells, bounds)):
            data = to_bytes(part) if part.n_cells else b""
            file.write(data)
            index[bucket] = (file.tell(), part.n_cells, xxhash.xxh3_64_intdigest(data))
        file.write(index.tobytes())
        file.write(_TAIL.pack(n_buckets, xxhash.xxh3_64_intdigest(index.tobytes())))


@dataclass(frozen=True)
class Run:
    """One written run."""

    path: Path

    @cached_property
    def index(self) -> np.ndarray:
        """Per bucket: where its bytes stop, its cells, its checksum."""
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _TAIL.size, 0))
            tail = file.read()
            n_buckets, hash_ = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, 0)
            start = size - _TAIL.size - n_buckets * _INDEX.itemsize
            raw = b""
            if start >= 0:
                file.seek(start)
                raw = file.read(n_buckets * _INDEX.itemsize)
        if not n_buckets or xxhash.xxh3_64_intdigest(raw) != hash_:
            raise _damaged(self.path)
        return np.frombuffer(raw, _INDEX)

    def cells(self, bucket: int) -> EncodedCells:
        """The cells of a bucket that has some."""
        stop, _, hash_ = self.index[bucket].tolist()
        start = int(self.index["stop"][bucket - 1]) if bucket else 0
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if xxhash.xxh3_64_intdigest(data) != hash_:
            raise _damaged(self.path)
        return from_bytes(data)

    def obs(self, bucket: int) -> pa.Table:
        """Their obs, as a copy: nothing stays mapped."""
        first, last = int(self._ends[bucket]), int(self._ends[bucket + 1])
        with pa.memory_map(str(_obs_path(self.path))) as source:
            return pa.ipc.open_file(source).read_all().take(pa.array(np.arange(first, last)))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.index["n_cells"])]).astype(np.int64)


def bucket_sizes(runs: Sequence[Run], n_buckets: int) -> Int64[np.ndarray, "2 bucket"]:
    """Cells and bytes of every bucket, over all runs."""
    sizes = np.zeros((2, n_buckets), np.int64)
    for run in runs:
        sizes[0] += run.index["n_cells"].astype(np.int64)
        sizes[1] += np.diff(run.index["stop"].astype(np.int64), prepend=0)
    return sizes


def gather(runs: Sequence[Run], bucket: int) -> tuple[EncodedCells, pa.Table] | None:
    """All cells of a bucket with their obs, in the order of the runs; None where it has none."""
    having = [run for run in runs if run.index["n_cells"][bucket]]
    if not having:
        return None
    cells = concatenate([run.cells(bucket) for run in having])
    return cells, pa.concat_tables([run.obs(bucket) for run in having])


def _obs_path(path: Path) -> Path:
    return path.with_suffix(".arrow")


def _damaged(path: Path) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path} is damaged: it was altered after it was written, or the disk is failing. Begin "
        "anew, from the source files: the same command with --restart."
    )
