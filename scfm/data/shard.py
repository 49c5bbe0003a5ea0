"""One file of a store: compressed blocks of cells, and an index of them at its end.

in   EncodedCells in their final order; or the file, and which blocks are wanted
out  a .cells file, written whole or not at all; or payloads of blocks whose checksums are right

The layout is told in docs/store_format.md.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from jaxtyping import Int64
from numcodecs.zstd import Zstd

from scfm.data.blocks import EncodedCells, OpenBlock, parts_of, to_payload
from scfm.data.buffers import BufferPool
from scfm.data.ranges import ByteRange, Folder
from scfm.data.write import atomic_path
from scfm.errors import StoreError

MAGIC, END_MAGIC = b"SCFMCEL1", b"SCFMEND1"
_POOL = BufferPool(kept=32)
TAIL = struct.Struct("<QQQ8s")  # offset and length of the index, its xxh3, END_MAGIC
INDEX = np.dtype(
    [
        ("offset", "<u8"),
        ("xxh3", "<u8"),  # of the compressed bytes
        ("n_bytes", "<u4"),  # compressed
        ("n_payload", "<u4"),  # decompressed
        ("n_cells", "<u4"),
        ("n_values", "<u4"),
    ]
)


@dataclass(frozen=True)
class ShardFile:
    """What a manifest says of a .cells file."""

    n_cells: int
    n_values: int
    n_blocks: int
    n_bytes: int
    sha256: str


def new_compressor() -> zstandard.ZstdCompressor:
    """zstd level 1, looking for few matches: gaps and counts hardly repeat, so those it finds cost
    time and bytes (1,214 for 1,281 bytes a cell, decoded 1.17 times as fast)."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, hash_log=6, min_match=7)
    return zstandard.ZstdCompressor(compression_params=parameters)


def write_cells(
    path: Path, cells: EncodedCells, *, block_cells: int, about: dict[str, Any]
) -> ShardFile:
    """Write one .cells file. ``about`` goes into its index: the number of genes and their hash.

    Raises OutputError; nothing then is there under the name.
    """
    compressor, digest = new_compressor(), hashlib.sha256()
    index = np.zeros(-(-cells.n_cells // block_cells), INDEX)
    with atomic_path(path) as temporary, temporary.open("wb") as file:

        def put(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        put(MAGIC)
        bounds = np.append(np.arange(0, cells.n_cells, block_cells), cells.n_cells)
        for number, block in enumerate(parts_of(cells, bounds)):
            payload = to_payload(block)
            data = compressor.compress(payload)
            hash_ = xxhash.xxh3_64_intdigest(data)
            sizes = (len(data), len(payload), block.n_cells, len(block.gaps))
            index[number] = (file.tell(), hash_, *sizes)
            put(data)
        offset = file.tell()
        described = json.dumps(about, sort_keys=True).encode()
        footer = struct.pack("<II", len(index), len(described)) + described + index.tobytes()
        put(footer)
        put(TAIL.pack(offset, len(footer), xxhash.xxh3_64_intdigest(footer), END_MAGIC))
        n_bytes = file.tell()
    return ShardFile(cells.n_cells, len(cells.gaps), len(index), n_bytes, digest.hexdigest())


class ShardReader:
    """The index of one .cells file, and its blocks."""

    def __init__(self, folder: Folder, file: str, expected_bytes: int) -> None:
        self.folder, self.file = folder, file
        self.where = f"{folder.name}/{file}"
        found = folder.size(file)
        if found != expected_bytes:
            kind = "truncated" if found < expected_bytes else "longer than it was written"
            raise self._damaged(f"is {kind}: {found:,} bytes, its manifest says {expected_bytes:,}")
        end = folder.read([(file, max(found - TAIL.size, 0), found)])[0]
        if len(end) < TAIL.size:
            raise self._damaged("is no file of cells")
        offset, length, digest, magic = TAIL.unpack(end)
        if magic != END_MAGIC or offset + length + TAIL.size != found:
            raise self._damaged("has no index at its end")
        footer = folder.read([(file, offset, offset + length)])[0]
        if xxhash.xxh3_64_intdigest(footer) != digest:
            raise self._damaged("has a damaged index")
        n_blocks, n_described = struct.unpack_from("<II", footer)
        self.about = json.loads(footer[8 : 8 + n_described])
        self.n_genes, self.genes_sha256 = int(self.about["n_genes"]), self.about["genes_sha256"]
        self.index = np.frombuffer(footer, INDEX, n_blocks, 8 + n_described)
        self._codec = Zstd()

    def range_of(self, block: int) -> ByteRange:
        """Where a block's compressed bytes lie."""
        entry = self.index[block]
        return self.file, int(entry["offset"]), int(entry["offset"]) + int(entry["n_bytes"])

    def opened(
        self, block: int, compressed: bytes, tables: Int64[np.ndarray, "4 bound"]
    ) -> OpenBlock:
        """A block decompressed, its tables filled in.

        Raises StoreError where a bit of it is not as it was written.
        """
        entry = self.index[block]
        if xxhash.xxh3_64_intdigest(compressed) != entry["xxh3"]:
            raise self._damaged(f"is damaged: block {block:,} does not match its checksum")
        payload = _POOL.empty(int(entry["n_payload"]), np.uint8)
        try:
            self._codec.decode(compressed, payload)
            opened = OpenBlock(payload, tables)
        except (ValueError, RuntimeError) as error:  # numcodecs knows only RuntimeError
            raise self._damaged(f"is damaged: block {block:,}: {error}") from None
        if opened.n_cells != entry["n_cells"]:
            raise self._damaged(f"is damaged: block {block:,} has other cells than its index says")
        return opened

    def require_genes(self, largest: int) -> None:
        """StoreError for a gene beyond those that the shard was written over."""
        if largest >= self.n_genes:
            raise self._damaged(f"names gene {largest:,} of {self.n_genes:,}")

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{self.where} {what}. Copy the store again, or make it anew from its sources; what "
            f"else is damaged: scfm prepare --verify {self.folder.name}"
        )
