"""Files as blocks: the same rows, every block read once an epoch, a bounded number kept."""

import numpy as np
import pytest

from scfm.data.blocked import BLOCK_CELLS, BlockedSource, in_blocks
from scfm.data.counts import CountRows
from scfm.data.order import CellOrder
from scfm.data.read import open_counts
from scfm.errors import LabelError
from tests.toy_stores import write_store
from tests.toys import toy_adata


@pytest.fixture
def path(rng, tmp_path):
    toy_adata(rng, n_cells=203).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


class Counted:
    """A source that remembers which rows it was asked for."""

    def __init__(self, source):
        self.source, self.asked = source, []
        self.name, self.counts_from, self.n_cells = source.name, source.counts_from, source.n_cells
        self.var, self.obs, self.in_memory = source.var, source.obs, source.in_memory

    def rows(self, cell_index) -> CountRows:
        self.asked += np.asarray(cell_index).tolist()
        return self.source.rows(cell_index)

    def chunks(self, n_cells):
        return self.source.chunks(n_cells)


def assert_same_rows(one: CountRows, other: CountRows) -> None:
    for name in ("indptr", "indices", "counts", "cell_index"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_rows_are_the_files(path, rng):
    source = open_counts(path, backed=True)
    blocked = BlockedSource(source)
    assert blocked.blocks.n_cells.tolist() == [BLOCK_CELLS] * 12 + [11]
    blocked.keep_blocks(3)
    for _ in range(20):
        cells = rng.integers(0, 203, rng.integers(0, 60))
        assert_same_rows(blocked.rows(cells), source.rows(cells))
        assert len(blocked._kept) <= 3


def test_an_epoch_reads_every_block_once(path):
    """But for those that the end of a lane cuts in two: one fewer than lanes, at most."""
    counted = Counted(open_counts(path, backed=True))
    blocked = BlockedSource(counted)
    order = CellOrder(blocks=blocked.blocks, seed=3, lanes=4)
    blocked.keep_blocks(4 + 6)
    for start in range(0, 203, 7):
        blocked.rows(order.stretch(start, min(7, 203 - start))[0])
    blocks, reads = np.unique(np.array(counted.asked) // BLOCK_CELLS, return_counts=True)
    assert blocks.tolist() == list(range(13))
    assert (reads // blocked.blocks.n_cells).sum() <= 13 + 3


def test_data_in_memory_has_blocks_of_one_cell(rng):
    source = open_counts(toy_adata(rng))
    blocked = BlockedSource(source)
    assert blocked.blocks.are_single_cells
    assert_same_rows(blocked.rows(np.array([3, 1, 3])), source.rows(np.array([3, 1, 3])))
    assert not blocked._kept


def test_columns_and_numbers(path):
    blocked = BlockedSource(open_counts(path, backed=True))
    codes, names = blocked.column("cell_type")
    assert names == ["A", "B"]
    assert codes.tolist() == [0, 1] * 101 + [0]
    assert blocked.column("dataset")[1] == ["cells.h5ad"]
    with pytest.raises(LabelError, match="There is: cell_type"):
        blocked.column("donor")
    whole = blocked.source.rows(np.arange(203))
    np.testing.assert_array_equal(blocked.n_genes, np.diff(whole.indptr))


def test_a_store_comes_in_blocks_of_its_own(rng, tmp_path):
    from scfm.data.store import Store

    store = Store(write_store(tmp_path / "store", {"a.h5ad": toy_adata(rng)}))
    assert in_blocks(store) is store
    blocked = BlockedSource(open_counts(toy_adata(rng)))
    assert in_blocks(blocked) is blocked
