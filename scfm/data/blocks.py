"""Cells as bytes: the codec of a store's blocks. Knows no file.

in   CountRows over a file's columns, and which store gene each column is
out  EncodedCells: per cell the gaps between its expressed genes and its counts, a byte each, with
     what does not fit a byte written out beside them; and back, without loss

Genes of a store are numbered by how often they are seen, so gaps are small where most values are,
and compress well. A cell's bytes do not depend on its neighbours: cells are put into another order,
or into blocks, without being decoded. The layout of a block is told in docs/store_format.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import xxhash
from jaxtyping import Int, Int32, Int64, UInt8, UInt32, UInt64
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic

from scfm.data.bits import ZERO, n_words, popcount, set_bit
from scfm.data.buffers import BufferPool
from scfm.data.compiled import compiled
from scfm.data.counts import CountRows
from scfm.data.mixing import GOLDEN, mix64

MOST_IN_A_BYTE, MOST = 255, 2**31 - 1  # counts and genes are handed out as int32
HEADER_WORDS = 4  # uint32: cells, values, gap escapes, count escapes
CELL_WORDS = 4  # uint32 a cell: values, gap escapes, count escapes, data set
LENGTHS_DIFFER, ESCAPE_OUTSIDE, TOO_LARGE = 1, 2, 3  # what can be wrong with a block
_POOL = BufferPool()
N_BANDS, BAND = 2, 12  # minima folded into one word: profiles of Jaccard J share it at J^12


@dataclass(frozen=True)
class EncodedCells:
    """Cells in byte form, one after the other.

    Attributes
    ----------
    n_genes
        Expressed genes of each cell.
    n_gap_escapes, n_count_escapes
        Entries of each cell in ``gap_escapes`` and ``count_escapes``.
    dataset
        Which data set of the store each is from.
    gaps
        For each expressed gene, ascending, the number of genes skipped since the one before;
        0 where that is more than 255.
    counts
        Raw counts; 0 where a count is more than 255.
    gap_escapes, count_escapes
        (place within the cell, value) of what did not fit.
    n_counts
        Total count of each cell.
    cell_hash
        Names a cell's content: the same for the same counts of the same genes, in whatever file,
        order of columns or store.
    sketches
        Two words a cell that near copies share: with Jaccard similarity J of their sets of
        (gene, count), each with a probability of about J^12.
    """

    n_genes: UInt32[np.ndarray, " cell"]
    n_gap_escapes: UInt32[np.ndarray, " cell"]
    n_count_escapes: UInt32[np.ndarray, " cell"]
    dataset: UInt32[np.ndarray, " cell"]
    gaps: UInt8[np.ndarray, " nonzero"]
    counts: UInt8[np.ndarray, " nonzero"]
    gap_escapes: UInt32[np.ndarray, "gap_escape 2"]
    count_escapes: UInt32[np.ndarray, "count_escape 2"]
    n_counts: Int64[np.ndarray, " cell"]
    cell_hash: UInt64[np.ndarray, " cell"]
    sketches: UInt64[np.ndarray, "cell 2"]

    @property
    def n_cells(self) -> int:
        return len(self.n_genes)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, item.name).nbytes for item in fields(self))


def gene_key64(keys: Sequence[str]) -> UInt64[np.ndarray, " gene"]:
    """A 64-bit name of each gene, the same in every store: xxh3 of the key's UTF-8 bytes."""
    return np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64)


def encode(
    rows: CountRows,
    column_to_store: Int32[np.ndarray, " column"],
    gene_keys: UInt64[np.ndarray, " gene"],
    dataset: int,
) -> EncodedCells:
    """Raw counts as bytes.

    ``column_to_store`` is the store gene of each column, all different; ``gene_keys`` are those of
    `gene_key64`. Counts must be whole: expected counts have no place in a store.
    """
    assert np.issubdtype(rows.counts.dtype, np.integer), "counts must be whole numbers"
    n, nnz = rows.n_cells, len(rows.counts)
    per_cell = [np.zeros(n, np.uint32) for _ in range(3)]
    gaps, counts = np.empty(nnz, np.uint8), np.empty(nnz, np.uint8)
    n_counts, cell_hash = np.empty(n, np.int64), np.empty(n, np.uint64)
    sketches = np.empty((n, N_BANDS), np.uint64)
    room = np.empty((max(nnz, 1), 2), np.uint32), np.empty((max(nnz, 1), 2), np.uint32)
    _encode(
        np.ascontiguousarray(rows.indptr, dtype=np.int64),
        np.ascontiguousarray(rows.indices, dtype=np.int32),
        np.ascontiguousarray(rows.counts, dtype=np.int32),
        np.ascontiguousarray(column_to_store, dtype=np.int32).view(np.uint32),
        gene_keys,
        *per_cell,
        gaps,
        counts,
        *room,
        n_counts,
        cell_hash,
        sketches,
    )
    _, n_gap_escapes, n_count_escapes = per_cell
    return EncodedCells(
        *per_cell,
        dataset=np.full(n, dataset, np.uint32),
        gaps=gaps,
        counts=counts,
        gap_escapes=room[0][: n_gap_escapes.sum()].copy(),
        count_escapes=room[1][: n_count_escapes.sum()].copy(),
        n_counts=n_counts,
        cell_hash=cell_hash,
        sketches=sketches,
    )


def take(cells: EncodedCells, order: Int[np.ndarray, " taken"]) -> EncodedCells:
    """Some cells, in this order."""
    order = np.asarray(order, dtype=np.int64)
    values = _ranges(cells.n_genes, order)
    gap, count = (
        _ranges(lengths, order) for lengths in (cells.n_gap_escapes, cells.n_count_escapes)
    )
    return EncodedCells(
        n_genes=cells.n_genes[order],
        n_gap_escapes=cells.n_gap_escapes[order],
        n_count_escapes=cells.n_count_escapes[order],
        dataset=cells.dataset[order],
        gaps=_copied(cells.gaps, *values),
        counts=_copied(cells.counts, *values),
        gap_escapes=_copied(cells.gap_escapes.reshape(-1, 2), *gap),
        count_escapes=_copied(cells.count_escapes.reshape(-1, 2), *count),
        n_counts=cells.n_counts[order],
        cell_hash=cells.cell_hash[order],
        sketches=cells.sketches[order],
    )


def parts_of(cells: EncodedCells, bounds: Int[np.ndarray, " bound"]) -> Iterator[EncodedCells]:
    """Cells ``bounds[i]:bounds[i + 1]`` for each i; views, nothing is copied."""

    def cuts(lengths: np.ndarray) -> list[int]:
        return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[bounds].tolist()

    of_cells, of_values = bounds.tolist(), cuts(cells.n_genes)
    of_gaps, of_counts = cuts(cells.n_gap_escapes), cuts(cells.n_count_escapes)
    for i in range(len(of_cells) - 1):
        mine, values = slice(*of_cells[i : i + 2]), slice(*of_values[i : i + 2])
        yield EncodedCells(
            n_genes=cells.n_genes[mine],
            n_gap_escapes=cells.n_gap_escapes[mine],
            n_count_escapes=cells.n_count_escapes[mine],
            dataset=cells.dataset[mine],
            gaps=cells.gaps[values],
            counts=cells.counts[values],
            gap_escapes=cells.gap_escapes[slice(*of_gaps[i : i + 2])],
            count_escapes=cells.count_escapes[slice(*of_counts[i : i + 2])],
            n_counts=cells.n_counts[mine],
            cell_hash=cells.cell_hash[mine],
            sketches=cells.sketches[mine],
        )


def concatenate(parts: Sequence[EncodedCells]) -> EncodedCells:
    """Cells of several as one."""
    if len(parts) == 1:
        return parts[0]
    joined = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(EncodedCells)
    }
    return EncodedCells(**joined)


def decode(cells: EncodedCells) -> CountRows:
    """The counts again, over the store's genes."""
    opened = OpenBlock(to_payload(cells))
    slots, places = np.zeros(cells.n_cells, np.int64), np.arange(cells.n_cells)
    rows, _ = decode_cells(np.array([opened.address]), opened.tables[None], slots, places)
    return CountRows(*rows, cell_index=places, dataset=cells.dataset.astype(np.int64))


class OpenBlock:
    """A decompressed block whose every length was checked, so that it can be read by address.

    Attributes
    ----------
    payload
        Its bytes; they must live as long as the address is used.
    address
        Where they are in memory.
    """

    def __init__(
        self,
        payload: bytes | UInt8[np.ndarray, " byte"],
        tables: Int64[np.ndarray, "4 bound"] | None = None,
    ) -> None:
        """Fill ``tables``, made here if None, which must have room for all cells and one more.

        Its rows: where each cell's values, gap escapes and count escapes start, with a last entry
        for the end; and the data set of each cell. Raises ValueError where a length is not as
        another says.
        """
        words = np.frombuffer(payload, "<u4", len(payload) // 4)
        if len(words) < HEADER_WORDS or payload_size(words[:HEADER_WORDS]) != len(payload):
            raise ValueError("its length does not fit its header")
        self.payload, self.n_cells = payload, int(words[0])
        self.tables = np.zeros((4, self.n_cells + 1), np.int64) if tables is None else tables
        if self.n_cells >= self.tables.shape[1]:
            raise ValueError(f"it has {self.n_cells} cells, more than a block may have")
        self.address = words.__array_interface__["data"][0]
        problem = _fill_tables(words, self.tables)
        if problem == LENGTHS_DIFFER:
            raise ValueError("its cells do not add up to its header")
        if problem == ESCAPE_OUTSIDE:
            raise ValueError("an escape lies outside its cell")
        if problem == TOO_LARGE:
            raise ValueError("it holds a gene or a count beyond int32")


def decode_cells(
    address: Int64[np.ndarray, " slot"],
    tables: Int64[np.ndarray, "slot 4 bound"],
    slots: Int64[np.ndarray, " cell"],
    places: Int64[np.ndarray, " cell"],
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """Cells ``places`` of the open blocks ``slots``: (indptr, indices, counts), largest gene.

    ``address`` and ``tables`` are those of each slot's `OpenBlock`, which must be alive.
    """
    starts = tables[slots, 0, places]
    indptr = np.concatenate([[0], np.cumsum(tables[slots, 0, places + 1] - starts)])
    indices, counts = (_POOL.empty(int(indptr[-1]), np.int32) for _ in range(2))
    largest = _decode(address, tables, slots, places, indptr, indices, counts)
    return (indptr, indices, counts), int(largest)


def to_payload(cells: EncodedCells) -> bytes:
    """A block before compression: header, numbers of each cell, escapes, gaps, counts."""
    nnz = len(cells.gaps)
    header = np.array(
        [cells.n_cells, nnz, len(cells.gap_escapes), len(cells.count_escapes)], dtype="<u4"
    )
    words = (
        header,
        cells.n_genes,
        cells.n_gap_escapes,
        cells.n_count_escapes,
        cells.dataset,
        cells.gap_escapes,
        cells.count_escapes,
    )
    parts = [np.ascontiguousarray(part, dtype="<u4").tobytes() for part in words]
    return b"".join([*parts, cells.gaps.tobytes(), cells.counts.tobytes()])


def payload_size(header: UInt32[np.ndarray, " 4"]) -> int:
    """Bytes of a payload whose first words are these."""
    n_cells, nnz, n_gaps, n_counts = (int(word) for word in header)
    return 4 * (HEADER_WORDS + CELL_WORDS * n_cells + 2 * n_gaps + 2 * n_counts) + 2 * nnz


def to_bytes(cells: EncodedCells) -> bytes:
    """All that is known of the cells, uncompressed: a payload, then totals, hashes, sketches."""
    return b"".join(
        [
            to_payload(cells),
            cells.n_counts.astype("<i8").tobytes(),
            cells.cell_hash.astype("<u8").tobytes(),
            cells.sketches.astype("<u8").tobytes(),
        ]
    )


def from_bytes(raw: bytes | memoryview) -> EncodedCells:
    """Undo `to_bytes`. The arrays are views of ``raw``."""
    n, nnz, n_gaps, n_counts = (int(word) for word in np.frombuffer(raw, "<u4", HEADER_WORDS))
    at = 4 * HEADER_WORDS

    def cut(dtype: str, count: int) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(raw, dtype, count, at)
        at += found.nbytes
        return found

    per_cell = [cut("<u4", n) for _ in range(CELL_WORDS)]
    gap_escapes = cut("<u4", 2 * n_gaps).reshape(-1, 2)
    count_escapes = cut("<u4", 2 * n_counts).reshape(-1, 2)
    gaps, counts = cut("u1", nnz), cut("u1", nnz)
    totals, hashes, sketches = cut("<i8", n), cut("<u8", n), cut("<u8", N_BANDS * n)
    return EncodedCells(
        *per_cell,
        gaps=gaps,
        counts=counts,
        gap_escapes=gap_escapes,
        count_escapes=count_escapes,
        n_counts=totals,
        cell_hash=hashes,
        sketches=sketches.reshape(-1, N_BANDS),
    )


@compiled
def _encode(
    indptr,
    indices,
    values,
    column_to_store,
    gene_keys,
    n_genes,
    n_gap_escapes,
    n_count_escapes,
    gaps,
    counts,
    gap_escapes,
    count_escapes,
    n_counts,
    cell_hash,
    sketches,
):
    words = n_words(len(gene_keys) + 1)
    bits = np.zeros(words, np.uint64)
    value_of = np.zeros(words << 6, np.int32)
    minima = np.empty(N_BANDS * BAND, np.uint64)
    n_gaps = n_counts_out = 0
    for i in range(len(indptr) - 1):
        start, n = indptr[i], indptr[i + 1] - indptr[i]
        total, folded = np.int64(0), ZERO
        minima[:] = ~ZERO
        for k in range(start, start + n):
            gene, value = column_to_store[np.uint64(indices[k])], values[k]
            set_bit(bits, gene)
            value_of[gene] = value
            total += value
            word = mix64(gene_keys[gene] + np.uint64(value) * GOLDEN)
            folded += word
            band = np.uint64(((word >> np.uint64(32)) * np.uint64(N_BANDS * BAND)) >> np.uint64(32))
            if word < minima[band]:
                minima[band] = word
        n_genes[i] = n
        n_gap_escapes[i], n_count_escapes[i] = _in_order(
            *(bits, value_of, start, gaps, counts),
            *(gap_escapes, n_gaps, count_escapes, n_counts_out),
        )
        n_gaps += n_gap_escapes[i]
        n_counts_out += n_count_escapes[i]
        n_counts[i] = total
        cell_hash[i] = mix64(folded ^ np.uint64(n))
        for band in range(N_BANDS):
            sketch = np.uint64(band)
            for j in range(BAND):
                sketch = mix64(sketch ^ minima[band * BAND + j])
            sketches[i, band] = sketch


@compiled
def _in_order(
    bits, value_of, start, gaps, counts, gap_escapes, n_gaps, count_escapes, n_counts_out
):
    """One cell's gaps and counts, gene by gene; its bits are cleared. How many escaped of each."""
    previous, place, n_gap, n_count = -1, 0, 0, 0
    for w in range(len(bits)):
        word = bits[w]
        bits[w] = ZERO
        while word != ZERO:
            lowest = word & (ZERO - word)
            gene = (w << 6) + _log2(lowest)
            gap, value = gene - previous - 1, value_of[gene]
            gaps[start + place], counts[start + place] = gap, value
            if gap > MOST_IN_A_BYTE:
                gaps[start + place] = 0
                gap_escapes[n_gaps + n_gap, 0] = place
                gap_escapes[n_gaps + n_gap, 1] = gap
                n_gap += 1
            if value > MOST_IN_A_BYTE:
                counts[start + place] = 0
                count_escapes[n_counts_out + n_count, 0] = place
                count_escapes[n_counts_out + n_count, 1] = value
                n_count += 1
            previous, place = gene, place + 1
            word ^= lowest
    return n_gap, n_count


@compiled
def _log2(power):
    """Which bit a power of two is."""
    return popcount(power - np.uint64(1))


def _build_pointer(typing_context, address):  # noqa: ARG001  (numba's signature)
    def build(context, builder, signature, arguments):  # noqa: ARG001
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), build


# An address as a pointer, for carray.
_pointer: Callable = intrinsic(_build_pointer)
_array_at: Callable = carray


@compiled
def _decode(address, tables, slots, places, indptr, indices, counts):
    """Fill the CSR arrays; the largest gene, by which a damaged block is known."""
    largest = np.int64(-1)
    for k in range(len(slots)):
        slot, i = slots[k], places[k]
        head = _array_at(_pointer(address[slot]), HEADER_WORDS, np.uint32)
        nnz, n_gap_escapes, n_count_escapes = (
            np.int64(head[1]),
            np.int64(head[2]),
            np.int64(head[3]),
        )
        gap_escapes = HEADER_WORDS + CELL_WORDS * np.int64(head[0])
        count_escapes = gap_escapes + 2 * n_gap_escapes
        values = 4 * (count_escapes + 2 * n_count_escapes)
        words = _array_at(_pointer(address[slot]), values // 4, np.uint32)
        first, n, out = tables[slot, 0, i], tables[slot, 0, i + 1] - tables[slot, 0, i], indptr[k]

        bytes_ = _array_at(_pointer(address[slot] + values + nnz + first), n, np.uint8)
        my_counts = counts[out : out + n]
        for j in range(n):
            my_counts[j] = bytes_[j]
        for e in range(tables[slot, 2, i], tables[slot, 2, i + 1]):
            at = count_escapes + 2 * e
            my_counts[words[at]] = words[at + 1]

        bytes_ = _array_at(_pointer(address[slot] + values + first), n, np.uint8)
        my_genes = indices[out : out + n]
        # the loop stands here twice because as a function of its own it takes twice as long
        gene, done = np.int32(-1), np.int64(0)
        for e in range(tables[slot, 1, i], tables[slot, 1, i + 1]):
            at = gap_escapes + 2 * e
            place = np.int64(words[at])
            for j in range(done, place):
                gene += np.int32(bytes_[j]) + np.int32(1)
                my_genes[j] = gene
            gene += np.int32(words[at + 1]) + np.int32(1)
            my_genes[place] = gene
            done = place + 1
        for j in range(done, n):
            gene += np.int32(bytes_[j]) + np.int32(1)
            my_genes[j] = gene
        largest = max(largest, np.int64(gene))
    return largest


@compiled
def _fill_tables(words, tables):
    """Starts of each cell's entries; whether lengths add up and escapes lie within their cells."""
    n_cells = np.int64(words[0])
    for row in range(3):
        at = 0
        for i in range(n_cells):
            tables[row, i] = at
            at += np.int64(words[HEADER_WORDS + row * n_cells + i])
        tables[row, n_cells] = at
        if at != words[row + 1]:
            return LENGTHS_DIFFER
    for i in range(n_cells):
        tables[3, i] = words[HEADER_WORDS + 3 * n_cells + i]
    at = HEADER_WORDS + CELL_WORDS * n_cells
    for kind in (1, 2):
        for i in range(n_cells):
            n, previous = tables[0, i + 1] - tables[0, i], np.int64(-1)
            # the largest gene is at most this, so gaps cannot add up to what int32 turns negative
            reached = (MOST_IN_A_BYTE + 1) * n
            for _ in range(tables[kind, i], tables[kind, i + 1]):
                place, value = np.int64(words[at]), np.int64(words[at + 1])
                reached = reached + value if kind == 1 else max(reached, value)
                if not previous < place < n:
                    return ESCAPE_OUTSIDE
                if reached > MOST:
                    return TOO_LARGE
                previous, at = place, at + 2
    return 0


def _ranges(
    lengths: np.ndarray, order: np.ndarray
) -> tuple[Int64[np.ndarray, " taken"], Int64[np.ndarray, " taken"]]:
    """Where each taken cell's entries start, and how many they are."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return (ends - lengths)[order], lengths[order].astype(np.int64)


def _copied(source: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    out = np.empty((int(length.sum()), *source.shape[1:]), source.dtype)
    width = out[0].size if len(out) else 1
    _copy_ranges(source.reshape(-1), start * width, length * width, out.reshape(-1))
    return out


@compiled
def _copy_ranges(source, start, length, out):
    at = 0
    for i in range(len(start)):
        out[at : at + length[i]] = source[start[i] : start[i] + length[i]]
        at += length[i]
