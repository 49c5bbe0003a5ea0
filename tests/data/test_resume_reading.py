"""A reader killed in the middle of an epoch, and others that go on: every cell once, none twice."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from scfm.data.blocks import encode, gene_key64
from tests.data.stores import toy_genes, toy_rows, write_toy_store

BATCH, N_CELLS = 24, 1_000
READER = """
import json, sys
from pathlib import Path
import numpy as np
from scfm.data.blocks import encode, gene_key64
from scfm.data.order import CellOrder
from scfm.data.store import Store

store = Store(sys.argv[1])
position, rank, world_size = map(int, sys.argv[2:])
order = CellOrder(blocks=store.blocks, seed=4, lanes=12)
columns, keys = np.arange(len(store.genes), dtype=np.int32), gene_key64(store.genes.keys)
while position < store.n_cells:
    n = min({batch}, store.n_cells - position)
    cells, _ = order.share(position, n, rank, world_size)
    rows = store.rows(cells)
    hashes = encode(rows, columns, keys, 0).cell_hash
    position += n
    print(json.dumps([position, cells.tolist(), [int(h) for h in hashes]]), flush=True)
""".replace("{batch}", str(BATCH))


def start(folder, position, rank, world_size):
    command = [sys.executable, "-c", READER, str(folder), *map(str, (position, rank, world_size))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.multiprocess
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_killed_reader_is_followed_by_others(world_size, tmp_path, rng):
    rows = toy_rows(rng, N_CELLS, 150)
    write_toy_store(tmp_path / "s", rows, toy_genes(150), block_cells=16)
    first = start(tmp_path / "s", 0, 0, 1)
    assert first.stdout is not None
    read = [json.loads(first.stdout.readline()) for _ in range(11)]
    first.send_signal(
        signal.SIGKILL
    )  # what it printed after that is lost: its batches count for none
    first.wait()
    first.stdout.close()
    position = read[-1][0]
    others = [start(tmp_path / "s", position, rank, world_size) for rank in range(world_size)]
    for other in others:  # each in turn: what they print fits into the pipes
        read += [json.loads(line) for line in other.communicate()[0].splitlines()]
        assert other.returncode == 0
    cells = np.concatenate([np.array(line[1], dtype=np.int64) for line in read])
    np.testing.assert_array_equal(np.sort(cells), np.arange(N_CELLS))
    # and each brought its own counts
    hashes = np.concatenate([np.array(line[2], dtype=np.uint64) for line in read])
    wanted = encode(rows, np.arange(150, dtype=np.int32), gene_key64(toy_genes(150).keys), 0)
    np.testing.assert_array_equal(hashes, wanted.cell_hash[cells])
