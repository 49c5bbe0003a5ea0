"""Runs: every cell comes back once, in its bucket, whatever the size of the runs."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.blocks import concatenate, encode, gene_key64, take, to_bytes
from scfm.data.counts import CountRows
from scfm.data.runs import Run, RunWriter, bucket_sizes, buckets_of, gather, shuffle_keys
from scfm.errors import UnreadableFileError

KEYS = gene_key64([f"gene{i}" for i in range(40)])


def some_cells(rng, n_cells):
    dense = rng.poisson(0.6, size=(n_cells, 40)) * rng.choice([1, 300], size=(n_cells, 40))
    dense[:, 0] += 1
    cell, gene = np.nonzero(dense)
    rows = CountRows(
        np.searchsorted(cell, np.arange(n_cells + 1)).astype(np.int64),
        gene.astype(np.int32),
        dense[cell, gene].astype(np.int32),
        np.arange(n_cells),
    )
    return encode(rows, np.arange(40, dtype=np.int32), KEYS, 3)


def obs_of(numbers):
    return pa.table({"row": numbers, "name": [f"cell{i}" for i in numbers]})


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 200), st.integers(1, 8000), st.integers(0, 2**31))
def test_every_cell_comes_back_once(tmp_path_factory, n_cells, n_buckets, run_bytes, seed):
    folder = tmp_path_factory.mktemp("runs")
    cells = some_cells(np.random.default_rng(seed), n_cells)
    writer = RunWriter(folder, n_buckets=n_buckets, seed=seed, run_bytes=run_bytes)
    for first in range(0, n_cells, 7):
        part = np.arange(first, min(first + 7, n_cells))
        writer.add(take(cells, part), obs_of(part))
    writer.flush()
    runs = [Run(path) for path in sorted(folder.glob("*.run"))]
    assert len(runs) == writer.n_runs
    buckets = buckets_of(shuffle_keys(cells.cell_hash, seed), n_buckets)
    np.testing.assert_array_equal(
        bucket_sizes(runs, n_buckets)[0], np.bincount(buckets, minlength=n_buckets)
    )
    found_rows = []
    for bucket in range(n_buckets):
        found = gather(runs, bucket)
        if not found:
            assert bucket not in buckets
            continue
        part, obs = found
        rows = np.array(obs["row"])
        # the very bytes of these cells, and their own obs beside them
        assert to_bytes(part) == to_bytes(take(cells, rows))
        assert obs["name"].to_pylist() == [f"cell{i}" for i in rows]
        np.testing.assert_array_equal(rows, np.flatnonzero(buckets == bucket))
        found_rows.append(rows)
    np.testing.assert_array_equal(np.sort(np.concatenate(found_rows)), np.arange(n_cells))


def test_buckets_follow_the_keys(rng):
    keys = np.sort(rng.integers(0, 2**64, 100_000, dtype=np.uint64))
    buckets = buckets_of(keys, 37)
    assert (np.diff(buckets) >= 0).all()
    exact = [int(key) * 37 >> 64 for key in keys[::997]]
    # by the upper 32 bits: off by one at most where a key lies at a border
    assert np.abs(buckets[::997] - exact).max() <= 1
    sizes = np.bincount(buckets, minlength=37)
    expected = 100_000 / 37
    assert ((sizes - expected) ** 2 / expected).sum() < 80  # chi-squared, 36 degrees: p < 1e-4


def test_equal_cells_meet_and_seeds_differ(rng):
    cells = some_cells(rng, 200)
    twice = concatenate([cells, cells])
    keys = shuffle_keys(twice.cell_hash, 5)
    np.testing.assert_array_equal(keys[:200], keys[200:])
    assert len(np.unique(keys)) == len(np.unique(cells.cell_hash))
    one, other = (np.argsort(shuffle_keys(cells.cell_hash, seed)) for seed in (1, 2))
    assert (one != other).mean() > 0.9


def read_all(path):
    for bucket in range(4):
        gather([Run(path)], bucket)


@pytest.mark.parametrize("where", [100, -40, -3])
def test_a_flipped_bit_is_found(tmp_path, rng, where):
    writer = RunWriter(tmp_path, n_buckets=4, seed=0, run_bytes=2**20)
    writer.add(some_cells(rng, 50), obs_of(range(50)))
    writer.flush()
    path = tmp_path / "0000.run"
    raw = bytearray(path.read_bytes())
    raw[where] ^= 4
    path.write_bytes(raw)
    with pytest.raises(UnreadableFileError, match=r"0000\.run is damaged.*--restart"):
        read_all(path)


def test_a_truncated_run_is_found(tmp_path, rng):
    writer = RunWriter(tmp_path, n_buckets=4, seed=0, run_bytes=2**20)
    writer.add(some_cells(rng, 50), obs_of(range(50)))
    writer.flush()
    path = tmp_path / "0000.run"
    for size in (0, 10, 300):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UnreadableFileError, match="is damaged"):
            read_all(path)


def test_run_writer_without_cells(tmp_path):
    RunWriter(tmp_path, n_buckets=4, seed=0, run_bytes=2**20).flush()
    assert not list(tmp_path.iterdir())
