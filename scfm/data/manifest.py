"""What is in a store: one JSON that lists every file with its hash.

in   entries of shards and data sets, the list of genes, the obs columns
out  Manifest, its JSON and its hash; StoreGenes and their file

A store changes for its readers at one moment only, when ``manifest.json`` is replaced; every
manifest it ever had stays under ``manifests/``. The format is told in docs/store_format.md.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from scfm.data.ranges import Folder
from scfm.errors import StoreError

FORMAT, VERSION = "scfm-store", 1
MANIFEST = "manifest.json"
INDEX, STORE_GENE = "__index__", "__store_gene__"  # columns beside those of a file's own var


@dataclass(frozen=True)
class StoreGene:
    """A gene of a store; ``key`` names it uniquely: its Ensembl id, else its name."""

    key: str
    symbol: str
    ensembl_id: str  # without version, "" where unknown
    species: str


class StoreGenes:
    """Genes of a store in their order. New ones are only ever put at the end."""

    def __init__(self, genes: Iterable[StoreGene] = ()) -> None:
        self.genes = tuple(genes)
        self._position = {gene.key: place for place, gene in enumerate(self.genes)}
        assert len(self._position) == len(self.genes), "two genes of one key"

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def keys(self) -> list[str]:
        return [gene.key for gene in self.genes]

    def position(self, key: str) -> int | None:
        """Place of a gene, None where it is not in the store."""
        return self._position.get(key)

    def extended(self, more: Iterable[StoreGene]) -> "StoreGenes":
        """With those of ``more`` that are not there yet at the end."""
        new = {gene.key: gene for gene in more if gene.key not in self._position}
        return StoreGenes([*self.genes, *new.values()])

    @cached_property
    def sha256(self) -> str:
        return self.hash_of_first(len(self))

    def hash_of_first(self, n: int) -> str:
        """sha256 (hex) of the lines of the first ``n`` genes: how a shard names its genes."""
        return hashlib.sha256(self._text(n).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """Tab-separated: key, symbol, Ensembl id, species."""
        return self._text(len(self)).encode()

    def _text(self, n: int) -> str:
        return "".join(
            f"{g.key}\t{g.symbol}\t{g.ensembl_id}\t{g.species}\n" for g in self.genes[:n]
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> "StoreGenes":
        lines = raw.decode().split("\n")[:-1]
        return cls(StoreGene(*line.split("\t")) for line in lines)


@dataclass(frozen=True)
class ShardEntry:
    """One shard: ``shards/NAME.cells`` and ``shards/NAME.parquet``."""

    name: str
    n_cells: int
    n_values: int  # expressed genes of all cells
    n_blocks: int
    n_bytes: int
    sha256: str
    obs_bytes: int
    obs_sha256: str

    @property
    def cells_file(self) -> str:
        return f"shards/{self.name}.cells"

    @property
    def obs_file(self) -> str:
        return f"shards/{self.name}.parquet"


@dataclass(frozen=True)
class DatasetEntry:
    """One source file in the store: ``datasets/ID.parquet`` (its var) and ``datasets/ID.json``."""

    id: str
    name: str
    path: str
    sha256: str
    species: str
    counts_from: str
    n_read: int
    n_cells: int  # kept
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> cells
    var_sha256: str = ""  # filled in by the writer, as is the next
    report_sha256: str = ""

    @property
    def var_file(self) -> str:
        return f"datasets/{self.id}.parquet"

    @property
    def report_file(self) -> str:
        return f"datasets/{self.id}.json"


@dataclass(frozen=True)
class ObsColumn:
    """A column of the cells' table."""

    kind: Literal["category", "integer", "number", "boolean", "string"]
    categories: tuple[str, ...] = ()  # sorted


@dataclass(frozen=True)
class Manifest:
    """All of a store at one moment."""

    sequence: int
    previous: str  # hash of the manifest before; "" for the first
    made_by: str
    block_cells: int
    n_genes: int
    genes_sha256: str
    datasets: tuple[DatasetEntry, ...]
    shards: tuple[ShardEntry, ...]
    obs: dict[str, ObsColumn]
    settings: dict[str, Any]

    @property
    def n_cells(self) -> int:
        return sum(shard.n_cells for shard in self.shards)

    @property
    def n_values(self) -> int:
        return sum(shard.n_values for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Of all shards, obs included."""
        return sum(shard.n_bytes + shard.obs_bytes for shard in self.shards)

    @property
    def genes_file(self) -> str:
        return f"genes/{self.genes_sha256[:16]}.tsv"

    @property
    def hash(self) -> str:
        """sha256 (hex) of the JSON: names every byte of the store."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        found = {
            "format": FORMAT,
            "version": VERSION,
            "n_cells": self.n_cells,
            "n_values": self.n_values,
            **asdict(self),
        }
        return (json.dumps(found, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> "Manifest":
        """Undo `to_bytes`; StoreError for what is no manifest or one of a later version."""
        try:
            found = json.loads(raw)
            kind, version = found.pop("format"), found.pop("version")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StoreError(
                f"{where} is no manifest of a store. Is it cut short? Copy the store again, or "
                "make it anew: scfm prepare"
            ) from None
        if kind != FORMAT or version != VERSION:
            raise StoreError(
                f"{where} is of format {kind!r} version {version!r}; this scfm reads {FORMAT!r} "
                f"version {VERSION}. Use the scfm that made it, or make the store anew."
            )
        stated = [found.pop(name, None) for name in ("n_cells", "n_values")]
        try:
            manifest = _READER.validate_json(json.dumps(found), strict=True)
            problem = manifest.contradiction()
            if stated != [manifest.n_cells, manifest.n_values]:
                problem = "n_cells or n_values is not the sum over the shards"
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if problem:
            raise StoreError(f"{where} was altered or damaged ({problem}). Copy the store again.")
        return manifest

    def contradiction(self) -> str | None:
        """What no store can say of itself, in words."""
        names = [shard.name for shard in self.shards] + [entry.id for entry in self.datasets]
        strange = [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]
        if strange:  # a name such as ../other would lead out of the store
            return f"{strange[0]!r} is no name of a file"
        if self.block_cells < 1 or any(shard.n_cells < 0 for shard in self.shards):
            return "a number of cells is below its least"
        for shard in self.shards:
            if shard.n_blocks != -(-shard.n_cells // self.block_cells):
                return f"shard {shard.name} has other blocks than its cells need"
        return None


_READER = TypeAdapter(Manifest)


def read_manifest(folder: Folder, sequence: int | None = None) -> Manifest:
    """The newest manifest of a store, or an earlier one by its number."""
    file = MANIFEST if sequence is None else manifest_file(sequence)
    return Manifest.from_bytes(folder.read_whole(file), f"{folder.name}/{file}")


def read_genes(folder: Folder, manifest: Manifest) -> StoreGenes:
    """The genes that a manifest names; StoreError where the file is another one."""
    raw = folder.read_whole(manifest.genes_file)
    found = hashlib.sha256(raw).hexdigest()
    if found != manifest.genes_sha256:
        raise StoreError(
            f"{folder.name}/{manifest.genes_file} was altered: its genes hash to {found[:12]}..., "
            f"the manifest says {manifest.genes_sha256[:12]}... Copy the store again."
        )
    return StoreGenes.from_bytes(raw)


def manifest_file(sequence: int) -> str:
    """Where a manifest is kept for ever."""
    return f"manifests/{sequence:06d}.json"


def merged_obs(parts: Sequence[dict[str, ObsColumn]]) -> dict[str, ObsColumn]:
    """Columns of several as one; a column of two kinds becomes text."""
    merged: dict[str, ObsColumn] = {}
    for part in parts:
        for name, column in part.items():
            before = merged.get(name)
            if before is None or before == column:
                merged[name] = column
            elif before.kind == column.kind:
                categories = sorted({*before.categories, *column.categories})
                merged[name] = ObsColumn(column.kind, tuple(categories))
            else:
                raise StoreError(
                    f"The obs column {name!r} holds {before.kind} values in some files and "
                    f"{column.kind} values in others. Name them apart in the mapping file."
                )
    return merged
