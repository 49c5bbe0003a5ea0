"""Writing a store: shards and data sets, then one manifest that makes them part of it.

in   EncodedCells and their obs, shard by shard; genes; data sets
out  files that nobody reads until ``commit``; then a new manifest, in one rename

An existing store is appended to: its files are never touched, so its readers are not disturbed.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from scfm.data.blocks import EncodedCells
from scfm.data.fingerprint import sha256
from scfm.data.lock import LOCK, Occupied, release_lock, take_lock
from scfm.data.manifest import (
    INDEX,
    MANIFEST,
    STORE_GENE,
    DatasetEntry,
    Manifest,
    ObsColumn,
    ShardEntry,
    StoreGenes,
    manifest_file,
    merged_obs,
    read_genes,
    read_manifest,
)
from scfm.data.ranges import LocalFolder
from scfm.data.shard import write_cells
from scfm.data.write import atomic_path, make_folder
from scfm.errors import OutputError
from scfm.version import __version__

BLOCK_CELLS = 64


class StoreWriter:
    """Puts files into a store's folder. One at a time: a second writer is refused.

    Attributes
    ----------
    folder
        The store.
    manifest
        What it holds already; None for a new one.
    genes
        Its genes so far.
    """

    def __init__(self, folder: Path, *, block_cells: int = BLOCK_CELLS) -> None:
        self.folder = make_folder(folder)
        self._lock = _locked(self.folder)
        try:
            for name in ("shards", "datasets", "genes", "manifests"):
                make_folder(self.folder / name)
            self.manifest: Manifest | None = None
            self.genes = StoreGenes()
            if (self.folder / MANIFEST).exists():
                files = LocalFolder(self.folder)
                self.manifest = read_manifest(files)
                self.genes = read_genes(files, self.manifest)
        except BaseException:
            self.close()
            raise
        self.block_cells = self.manifest.block_cells if self.manifest else block_cells

    @property
    def sequence(self) -> int:
        """Number of the manifest that the next commit writes."""
        return self.manifest.sequence + 1 if self.manifest else 1

    def shard_name(self, number: int) -> str:
        """A name that no earlier shard of the store has."""
        return f"{self.sequence:06d}-{number:05d}"

    def write_shard(
        self, name: str, cells: EncodedCells, obs: pa.Table, genes: StoreGenes
    ) -> ShardEntry:
        """Write the cells, over ``genes``, and their obs. Both whole or not at all."""
        assert len(obs) == cells.n_cells, "one row of obs a cell"
        about = {"n_genes": len(genes), "genes_sha256": genes.sha256}
        shards = self.folder / "shards"
        written = write_cells(
            shards / f"{name}.cells", cells, block_cells=self.block_cells, about=about
        )
        obs_path = shards / f"{name}.parquet"
        with atomic_path(obs_path) as temporary:
            pq.write_table(obs, temporary, compression="zstd")
        return ShardEntry(
            name=name,
            n_cells=written.n_cells,
            n_values=written.n_values,
            n_blocks=written.n_blocks,
            n_bytes=written.n_bytes,
            sha256=written.sha256,
            obs_bytes=obs_path.stat().st_size,
            obs_sha256=sha256(obs_path),
        )

    def write_dataset(
        self,
        id_: str,
        var: pd.DataFrame,
        store_gene: Int[np.ndarray, " column"],
        report: dict[str, Any],
    ) -> None:
        """Write a source file's var, with the store gene of each column, and its report."""
        frame = var.reset_index(names=INDEX)
        frame.columns = [str(name) for name in frame.columns]
        frame[STORE_GENE] = np.asarray(store_gene, dtype=np.int32)
        # columns of several types cannot be Parquet; names are what matters of them
        mixed = frame.select_dtypes(object).columns
        frame = frame.assign(**{name: frame[name].map(_text_or_none) for name in mixed})
        table = pa.Table.from_pandas(frame, preserve_index=False)
        name_of_index = json.dumps(None if var.index.name is None else str(var.index.name))
        table = table.replace_schema_metadata({"index_name": name_of_index})
        with atomic_path(self.folder / "datasets" / f"{id_}.parquet") as temporary:
            pq.write_table(table, temporary)
        with atomic_path(self.folder / "datasets" / f"{id_}.json") as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")

    def commit(
        self,
        *,
        genes: StoreGenes,
        shards: Sequence[ShardEntry],
        datasets: Sequence[DatasetEntry],
        obs: dict[str, ObsColumn],
        settings: dict[str, Any],
    ) -> Manifest:
        """Make new shards and data sets part of the store, beside those it has."""
        before = self.manifest
        if before:
            assert genes.hash_of_first(before.n_genes) == before.genes_sha256, "genes were moved"
        manifest = Manifest(
            sequence=self.sequence,
            previous=before.hash if before else "",
            made_by=f"scfm {__version__}",
            block_cells=self.block_cells,
            n_genes=len(genes),
            genes_sha256=genes.sha256,
            datasets=(*(before.datasets if before else ()), *map(self._hashed, datasets)),
            shards=(*(before.shards if before else ()), *shards),
            obs=merged_obs([before.obs, obs]) if before else dict(obs),
            settings=settings,
        )
        self._put(manifest.genes_file, genes.to_bytes())
        self._put(manifest_file(manifest.sequence), manifest.to_bytes())
        self._put(MANIFEST, manifest.to_bytes())
        self.manifest, self.genes = manifest, genes
        return manifest

    def close(self) -> None:
        """Let another writer in."""
        release_lock(self._lock)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hashed(self, entry: DatasetEntry) -> DatasetEntry:
        var, report = (sha256(self.folder / file) for file in (entry.var_file, entry.report_file))
        return replace(entry, var_sha256=var, report_sha256=report)

    def _put(self, file: str, data: bytes) -> None:
        with atomic_path(self.folder / file) as temporary:
            temporary.write_bytes(data)


def _locked(folder: Path) -> int:
    """The store's lock, held until it is let go or the process ends."""
    try:
        return take_lock(folder / LOCK)
    except Occupied as owner:
        raise OutputError(
            f"{folder} is being written by another scfm ({owner}). Wait for it to end, or choose "
            "another --out."
        ) from None


def _text_or_none(value: Any) -> str | None:
    return None if value is None or value != value else str(value)  # NaN differs from itself
