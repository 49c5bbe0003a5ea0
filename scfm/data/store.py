"""A store of cells, opened: a CellSource that reads any cells of it, checked, in bounded memory.

in   a store's folder or URL
out  raw counts in CSR rows over the store's genes; columns of obs; which gene was which column

Made by `scfm prepare` (scfm.data.prepare). Every block is checked against its checksum when it is
read; the layout is told in docs/store_format.md.
"""

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, Int32, Num

from scfm.data.block_cache import BlockCache
from scfm.data.blocks import OpenBlock, decode_cells
from scfm.data.counts import CountRows
from scfm.data.manifest import (
    INDEX,
    MANIFEST,
    STORE_GENE,
    Manifest,
    ShardEntry,
    StoreGenes,
    manifest_file,
    read_genes,
    read_manifest,
)
from scfm.data.order import SHUFFLED_LANES, Blocks
from scfm.data.ranges import open_folder
from scfm.data.shard import ShardReader
from scfm.data.soma_address import is_address
from scfm.data.store_obs import obs_frame
from scfm.errors import LabelError, ScfmError, StoreError

KEPT_BLOCKS = SHUFFLED_LANES + 80  # decompressed: those the order draws from, and some of a batch


def is_store(path: Any) -> bool:
    """Whether a path or URL is a store's folder."""
    if not isinstance(path, str | Path) or is_address(path):
        return False
    return open_folder(path).exists(MANIFEST)


class Store:
    """The cells of a store: a scfm.data.counts.CellSource over its genes.

    Cells are numbered shard by shard. Several threads may use it, one at a time.

    Attributes
    ----------
    name
        The folder or URL.
    manifest
        What it holds; ``manifest.hash`` names every byte of it.
    genes
        Its genes in order.
    blocks
        How its cells lie, for scfm.data.order.
    """

    counts_from = "store"
    format = "store"

    def __init__(self, path: str | Path, *, manifest: int | None = None) -> None:
        """Open a store; ``manifest`` is the number of an earlier one. No shard is read yet.

        Raises MissingFileError, StoreError.
        """
        self._path, self._sequence = path, manifest
        self.folder = open_folder(path)
        self.name = self.folder.name
        self.manifest: Manifest = read_manifest(self.folder, manifest)
        self.genes: StoreGenes = read_genes(self.folder, self.manifest)
        self.n_cells = self.manifest.n_cells
        sizes = [_block_sizes(shard, self.manifest.block_cells) for shard in self.manifest.shards]
        n_cells = np.concatenate([np.zeros(0, np.int64), *sizes])
        self.blocks = Blocks(np.cumsum(n_cells) - n_cells, n_cells)
        self._first_block = np.concatenate([[0], np.cumsum([len(part) for part in sizes])]).astype(
            np.int64
        )
        self._readers: dict[int, ShardReader] = {}
        self._fewest_genes = len(self.genes)  # of the shards read so far
        self._known_genes = {len(self.genes): self.genes.sha256}
        self._lock = threading.Lock()
        self.keep_blocks(KEPT_BLOCKS)

    def keep_blocks(self, n: int) -> None:
        """How many decompressed blocks to keep (about 0.25 MB each)."""
        n_blocks = len(self.blocks.n_cells)
        self._cache = BlockCache(n_blocks, self.manifest.block_cells, n, self._read_blocks)

    @cached_property
    def var(self) -> pd.DataFrame:
        """One row a gene of the store: symbol, ensembl_id, species; the index is its key."""
        columns = {
            "symbol": [gene.symbol for gene in self.genes.genes],
            "ensembl_id": [gene.ensembl_id for gene in self.genes.genes],
            "species": [gene.species for gene in self.genes.genes],
        }
        return pd.DataFrame(columns, index=pd.Index(self.genes.keys, name="key"))

    @cached_property
    def obs(self) -> pd.DataFrame:
        """All columns of all cells, in memory. `column` and `numbers` read one."""
        tables = [self.obs_table(shard, None) for shard in self.manifest.shards]
        table = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
        obs = obs_frame(table)
        names = names_once([dataset.name for dataset in self.manifest.datasets])
        codes = table.column("dataset").to_numpy()
        obs["dataset"] = pd.Categorical.from_codes(codes, names)
        if not obs.index.is_unique:  # cells of several files may be called alike
            obs.index = obs.index + "-" + obs["dataset"].astype(str)
        return obs

    def rows(self, cell_index: Int[np.ndarray, " cell"]) -> CountRows:
        """These cells, in this order; ``dataset`` says which data set each is from.

        Raises StoreError where a block is damaged; IndexError.
        """
        cell_index = np.asarray(cell_index, dtype=np.int64)
        if cell_index.size and not 0 <= cell_index.min() <= cell_index.max() < self.n_cells:
            raise IndexError(f"{self.name} has cells 0 to {self.n_cells - 1}.")
        block = np.searchsorted(self.blocks.first, cell_index, side="right") - 1
        with self._lock:
            if len(cell_index) > self._cache.keep:
                wanted = np.unique(block)
                if len(wanted) > self._cache.keep:
                    return self._in_pieces(cell_index, block, wanted)
            return self._decoded(cell_index, block)

    def chunks(self, n_cells: int) -> Iterator[CountRows]:
        """All cells in the store's order, ``n_cells`` at a time."""
        for first in range(0, self.n_cells, n_cells):
            yield self.rows(np.arange(first, min(first + n_cells, self.n_cells)))

    def column(self, name: str) -> tuple[Int32[np.ndarray, " cell"], list[str]]:
        """A column of obs as codes, -1 where it is missing, and the categories they stand for.

        ``"dataset"`` gives the source files. Raises LabelError where there is no such column.
        """
        if name == "dataset":
            datasets = names_once([dataset.name for dataset in self.manifest.datasets])
            return self.numbers("dataset").astype(np.int32), datasets
        if name not in self.manifest.obs:
            raise self._no_column(name)
        texts = [
            self.obs_table(shard, [name]).column(name).cast(pa.string()).combine_chunks()
            for shard in self.manifest.shards
        ]
        categories = list(self.manifest.obs[name].categories)
        if not categories:  # of numbers and free text the manifest lists none
            found = {value for part in texts for value in part.unique().to_pylist()}
            categories = sorted(found - {None})
        codes = [pd.Index(categories).get_indexer(part.to_pandas()) for part in texts]
        return np.concatenate([np.zeros(0, np.int32), *codes]).astype(np.int32), categories

    def numbers(self, name: str) -> Num[np.ndarray, " cell"]:
        """A numeric column of obs, such as n_counts, n_genes, cell_hash, row."""
        parts = []
        for shard in self.manifest.shards:
            column = self.obs_table(shard, [name]).column(name)
            if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                raise LabelError(f"{self.name}: obs column {name!r} holds no numbers.")
            parts.append(column.to_numpy())
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def dataset_var(self, number: int) -> tuple[pd.DataFrame, Int32[np.ndarray, " column"]]:
        """A source file's var as it was, and the store gene of each of its columns."""
        entry = self.manifest.datasets[number]
        table = pq.read_table(io.BytesIO(self._whole(entry.var_file, entry.var_sha256)))
        frame: pd.DataFrame = table.to_pandas()
        store_gene = frame.pop(STORE_GENE).to_numpy(np.int32)
        index_name = json.loads((table.schema.metadata or {}).get(b"index_name", b"null"))
        is_gene = (store_gene >= 0) & (store_gene < len(self.genes))
        if not is_gene.all() or len(np.unique(store_gene)) < len(store_gene):
            raise self._damaged(entry.var_file, "names genes twice or genes that are none")
        return frame.set_index(INDEX).rename_axis(index_name), store_gene

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Check every file: (file, what is wrong with it or None), one after the other."""
        yield from self._problems_of_manifests()
        for number, shard in enumerate(self.manifest.shards):
            yield shard.cells_file, self._problem_of_cells(number)
            yield shard.obs_file, self._problem_of_obs(shard)
        for entry in self.manifest.datasets:
            yield entry.var_file, self._problem_of(entry.var_file, entry.var_sha256)
            yield entry.report_file, self._problem_of(entry.report_file, entry.report_sha256)

    def _decoded(self, cell_index: np.ndarray, block: np.ndarray) -> CountRows:
        cache = self._cache
        slots = cache.slots(block)
        places = cell_index - self.blocks.first[block]
        csr, largest = decode_cells(cache.address, cache.tables, slots, places)
        if largest >= self._fewest_genes:
            self._require_known_genes(block, csr)
        dataset = cache.tables[slots, 3, places]
        if dataset.max(initial=0) >= len(self.manifest.datasets):
            raise self._damaged(
                "manifest.json", f"lists {len(self.manifest.datasets)} data sets, cells are of more"
            )
        return CountRows(*csr, cell_index, dataset)

    def _require_known_genes(self, block: np.ndarray, csr: tuple) -> None:
        """Each cell's largest gene is one of those its shard was written over."""
        indptr, indices, _ = csr
        for k in np.flatnonzero(np.diff(indptr)):
            shard = int(np.searchsorted(self._first_block, block[k], side="right")) - 1
            self._reader(shard).require_genes(int(indices[indptr[k + 1] - 1]))

    def _in_pieces(self, cells: np.ndarray, block: np.ndarray, wanted: np.ndarray) -> CountRows:
        """More blocks than are kept: sorted by block, some at a time, and put back in order."""
        order = np.argsort(block, kind="stable")
        cuts = np.searchsorted(block[order], wanted[self._cache.keep :: self._cache.keep])
        parts = [self._decoded(cells[part], block[part]) for part in np.split(order, cuts)]
        back = np.argsort(order, kind="stable")
        lengths = np.concatenate([np.diff(part.indptr) for part in parts])
        starts = (np.cumsum(lengths) - lengths)[back]
        lengths = lengths[back]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        place = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
        dataset = np.concatenate([part.dataset for part in parts if part.dataset is not None])
        return CountRows(
            indptr,
            np.concatenate([part.indices for part in parts])[place],
            np.concatenate([part.counts for part in parts])[place],
            cells,
            dataset[back],
        )

    def _read_blocks(self, blocks: list[int]) -> list[Callable[[np.ndarray], OpenBlock]]:
        """The blocks' compressed bytes, all of which have come, each with what opens it."""
        shards = np.searchsorted(self._first_block, blocks, side="right") - 1
        placed = [
            (self._reader(int(shard)), block - int(self._first_block[shard]))
            for block, shard in zip(blocks, shards, strict=True)
        ]
        data = self.folder.read([reader.range_of(block) for reader, block in placed])
        return [
            partial(reader.opened, block, compressed)
            for (reader, block), compressed in zip(placed, data, strict=True)
        ]

    def _reader(self, number: int) -> ShardReader:
        if number not in self._readers:
            shard = self.manifest.shards[number]
            reader = ShardReader(self.folder, shard.cells_file, shard.n_bytes)
            self._require_our_genes(reader)
            index = reader.index
            if len(index) != shard.n_blocks or index["n_cells"].sum() != shard.n_cells:
                raise StoreError(
                    f"{reader.where} holds other cells than the manifest says. Were files of two "
                    "stores mixed? Copy the store again."
                )
            self._readers[number] = reader
            self._fewest_genes = min(self._fewest_genes, reader.n_genes)
        return self._readers[number]

    def _require_our_genes(self, reader: ShardReader) -> None:
        """A shard was written over the first genes of the store's list, whatever came later."""
        n, found = reader.n_genes, reader.genes_sha256
        if n not in self._known_genes and n <= len(self.genes):
            self._known_genes[n] = self.genes.hash_of_first(n)
        if self._known_genes.get(n) != found:
            raise StoreError(
                f"{reader.where} was written over another list of {n:,} genes than that of its "
                f"manifest ({len(self.genes):,} genes): its counts would go to wrong genes. Were "
                "files of two stores mixed? Copy the store again."
            )

    def obs_table(self, shard: ShardEntry, columns: list[str] | None) -> pa.Table:
        """The obs of one shard: these columns, or all (None). A column it lacks is null."""
        raw = self._whole(shard.obs_file, shard.obs_sha256)
        try:
            file = pq.ParquetFile(io.BytesIO(raw))
            wanted = columns or list(file.schema_arrow.names)
            present = [name for name in wanted if name in file.schema_arrow.names]
            table = file.read(columns=present)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(shard.obs_file, f"cannot be read ({error})") from error
        if len(table) != shard.n_cells:
            what = f"has {len(table):,} rows for {shard.n_cells:,} cells"
            raise self._damaged(shard.obs_file, what)
        for name in wanted:
            if name not in present:
                if name not in self.manifest.obs:
                    raise self._no_column(name)
                table = table.append_column(name, pa.nulls(len(table), pa.string()))
        return table

    def _whole(self, file: str, digest: str) -> bytes:
        """A small file's bytes, which must be those that the manifest lists."""
        raw = self.folder.read_whole(file)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise self._damaged(file, "does not match its sha256")
        return raw

    def _damaged(self, file: str, what: str) -> StoreError:
        return StoreError(
            f"{self.name}/{file} {what}. Copy the store again; what else is damaged: scfm prepare "
            f"--verify {self.name}"
        )

    def _no_column(self, name: str) -> LabelError:
        listed = ", ".join(["dataset", *self.manifest.obs])
        return LabelError(f"{self.name} has no obs column {name!r}; there is: {listed}.")

    def _problem_of_cells(self, number: int) -> str | None:
        shard = self.manifest.shards[number]
        try:
            self._reader(number)
            digest, at = hashlib.sha256(), 0
            while at < shard.n_bytes:
                stop = min(at + 2**24, shard.n_bytes)
                digest.update(self.folder.read([(shard.cells_file, at, stop)])[0])
                at = stop
            first = int(self._first_block[number])
            with self._lock:
                for block in range(first, first + shard.n_blocks):
                    cells = self.blocks.first[block] + np.arange(self.blocks.n_cells[block])
                    rows = self._decoded(cells, np.full(len(cells), block))
                    if rows.counts.min(initial=1) < 1:
                        return f"block {block - first:,} holds counts below 1"
        except ScfmError as error:
            return str(error)
        return None if digest.hexdigest() == shard.sha256 else "does not match its sha256"

    def _problem_of_obs(self, shard: ShardEntry) -> str | None:
        try:
            self.obs_table(shard, None)
        except ScfmError as error:
            return str(error)
        return None

    def _problem_of(self, file: str, digest: str) -> str | None:
        try:
            self._whole(file, digest)
        except ScfmError as error:
            return str(error)
        return None

    def _problems_of_manifests(self) -> Iterator[tuple[str, str | None]]:
        """This manifest's own copy, and those before it, each named by the one after."""
        digest = self.manifest.hash
        for sequence in range(self.manifest.sequence, 0, -1):
            file = manifest_file(sequence)
            problem = self._problem_of(file, digest)
            yield file, problem
            if problem:
                return
            digest = read_manifest(self.folder, sequence).previous

    def __reduce__(self):
        return _reopened, (self._path, self._sequence)


def _reopened(path: str | Path, sequence: int | None) -> Store:
    return Store(path, manifest=sequence)


def names_once(names: list[str]) -> list[str]:
    """The names, later ones of the same made different."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _block_sizes(shard: ShardEntry, block_cells: int) -> Int[np.ndarray, " block"]:
    first = np.arange(0, shard.n_cells, block_cells, dtype=np.int64)
    return np.minimum(block_cells, shard.n_cells - first)
