"""Cells as bytes and back: nothing lost, whatever the counts and genes."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.blocks import (
    OpenBlock,
    concatenate,
    decode,
    encode,
    from_bytes,
    gene_key64,
    payload_size,
    take,
    to_bytes,
    to_payload,
)
from scfm.data.counts import CountRows
from tests.data.stores import toy_rows

COUNTS = st.one_of(st.integers(1, 3), st.integers(250, 260), st.integers(65_530, 2**31 - 1))


def rows_of(cells: list[dict[int, int]]) -> CountRows:
    lengths = [len(cell) for cell in cells]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    indices = np.array([g for cell in cells for g in sorted(cell)], dtype=np.int32)
    counts = np.array([cell[g] for cell in cells for g in sorted(cell)], dtype=np.int32)
    return CountRows(indptr, indices, counts, np.arange(len(cells)))


def dense(rows: CountRows, n_genes: int) -> np.ndarray:
    out = np.zeros((rows.n_cells, n_genes), np.int64)
    out[np.repeat(np.arange(rows.n_cells), np.diff(rows.indptr)), rows.indices] = rows.counts
    return out


def encoded(rows: CountRows, n_genes: int, column_to_store: np.ndarray | None = None):
    columns = np.arange(n_genes) if column_to_store is None else column_to_store
    keys = gene_key64([f"G{i}" for i in range(n_genes)])
    return encode(rows, columns.astype(np.int32), keys, 3)


@settings(deadline=None, max_examples=100)
@given(
    cells=st.lists(st.dictionaries(st.integers(0, 69_999), COUNTS, max_size=40), max_size=9),
    seed=st.integers(0, 99),
)
def test_cells_come_back_exactly(cells, seed):
    """Also with more than 65,535 genes and counts up to the largest int32."""
    n_genes = 70_000
    rows = rows_of(cells)
    shuffled = np.random.default_rng(seed).permutation(n_genes)
    found = decode(encoded(rows, n_genes, shuffled))
    np.testing.assert_array_equal(found.indptr, rows.indptr)
    for i in range(rows.n_cells):
        mine = slice(rows.indptr[i], rows.indptr[i + 1])
        genes = shuffled[rows.indices[mine]]
        order = np.argsort(genes)
        np.testing.assert_array_equal(found.indices[mine], genes[order])
        np.testing.assert_array_equal(found.counts[mine], rows.counts[mine][order])
    assert found.dataset is not None
    assert (found.dataset == 3).all()


def test_totals_and_lengths(rng):
    rows = toy_rows(rng, 50, 400)
    cells = encoded(rows, 400)
    np.testing.assert_array_equal(cells.n_genes, np.diff(rows.indptr))
    np.testing.assert_array_equal(cells.n_counts, dense(rows, 400).sum(axis=1))


def test_order_of_cells_does_not_matter(rng):
    rows = toy_rows(rng, 40, 300)
    cells, order = encoded(rows, 300), rng.permutation(40)
    found = decode(take(cells, order))
    np.testing.assert_array_equal(dense(found, 300), dense(rows, 300)[order])
    parts = concatenate([take(cells, np.arange(10)), take(cells, np.arange(10, 40))])
    for item in fields(cells):
        np.testing.assert_array_equal(getattr(parts, item.name), getattr(cells, item.name))
    assert take(cells, np.zeros(0, np.int64)).n_cells == 0


def test_bytes_come_back(rng):
    cells = encoded(toy_rows(rng, 40, 300), 300)
    back = from_bytes(to_bytes(cells))
    for item in fields(cells):
        np.testing.assert_array_equal(getattr(back, item.name), getattr(cells, item.name))
    payload = to_payload(cells)
    assert payload_size(np.frombuffer(payload, "<u4", 4)) == len(payload)


def test_a_hash_names_the_content_of_a_cell_whatever_the_file(rng):
    """Another order of columns, more unexpressed genes, another store: the same hash and sketch."""
    rows = toy_rows(rng, 30, 200)
    one = encoded(rows, 200)
    moved = rng.permutation(500)[:200]
    keys = np.array([f"other{i}" for i in range(500)], dtype=object)
    keys[moved] = [f"G{i}" for i in range(200)]
    other = encode(rows, moved.astype(np.int32), gene_key64(keys.tolist()), 0)
    np.testing.assert_array_equal(one.cell_hash, other.cell_hash)
    np.testing.assert_array_equal(one.sketches, other.sketches)
    assert len(np.unique(one.cell_hash)) == 30


def test_a_hash_feels_one_molecule(rng):
    rows = toy_rows(rng, 30, 200)
    more = rows.counts.copy()
    more[rows.indptr[:-1]] += 1
    changed = CountRows(rows.indptr, rows.indices, more, rows.cell_index)
    assert (encoded(rows, 200).cell_hash != encoded(changed, 200).cell_hash).all()


@pytest.mark.parametrize("similarity", [0.95, 0.7])
def test_near_copies_share_sketches_as_often_as_stated(similarity, rng):
    """Jaccard J of (gene, count) sets -> a band agrees with probability about J^12."""
    n_cells, n_genes, n_expressed = 400, 20_000, 1_000
    shared = round(2 * similarity / (1 + similarity) * n_expressed)
    chosen = [rng.permutation(n_genes)[: 2 * n_expressed - shared] for _ in range(n_cells)]
    both = [
        rows_of([dict.fromkeys(genes[part].tolist(), 1) for genes in chosen])
        for part in (slice(0, n_expressed), slice(n_expressed - shared, None))
    ]
    one, other = (encoded(rows, n_genes).sketches for rows in both)
    expected = similarity**12
    found = (one == other).mean()
    assert abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / (2 * n_cells)) + 0.01


def test_a_damaged_payload_is_seen(rng):
    """Before anything is read by address."""
    payload = to_payload(encoded(toy_rows(rng, 20, 300), 300))
    assert OpenBlock(payload).n_cells == 20
    with pytest.raises(ValueError, match="length"):
        OpenBlock(payload[:-1])
    with pytest.raises(ValueError, match="more than a block may have"):
        OpenBlock(payload, np.zeros((4, 20), np.int64))
    longer = bytearray(payload)
    longer[16] += 1  # the first cell claims one more value
    with pytest.raises(ValueError, match="add up"):
        OpenBlock(bytes(longer))
    escape = bytearray(payload)
    escape[16 + 16 * 20 : 16 + 16 * 20 + 4] = b"\xff" * 4  # the first escape's place
    with pytest.raises(ValueError, match="outside its cell"):
        OpenBlock(bytes(escape))


@pytest.mark.parametrize("kind", [0, 1])
def test_an_escape_that_int32_would_turn_negative_is_refused(kind):
    """Gaps that add up to a negative gene would be written to and read from anywhere."""
    cells = encoded(rows_of([{10: 1, 5_000: 300, 60_000: 1}]), 70_000)
    payload = bytearray(to_payload(cells))
    words = np.frombuffer(payload, "<u4", len(payload) // 4)
    at = 4 + 4 + 2 * int(words[2]) * kind + 1  # header, one cell, gap escapes; then (place, value)
    payload[4 * at : 4 * at + 4] = np.uint32(0x9000_0000).tobytes()
    with pytest.raises(ValueError, match="beyond int32"):
        OpenBlock(bytes(payload))
