"""What `scfm prepare` will do, worked out before anything is written.

in   inputs, PrepareConfig, the genes of the reference vocabulary, the store they go into
out  Plan: every file opened, its counts found, its genes matched, its obs columns chosen; the
     store's genes in their order; or one refusal that names every file that cannot be used

A plan is kept beside the work it plans, as JSON, so that an interrupted conversion goes on with it
and a changed setting or file is noticed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from scfm.data import harmonise
from scfm.data.census import census_datasets
from scfm.data.gene_reading import VocabularyGenes
from scfm.data.gene_tables import Species
from scfm.data.genes import align, require_coverage
from scfm.data.harmonise import ObsMapping, Origin, Survey
from scfm.data.identity import GeneColumns, identify
from scfm.data.manifest import Manifest, ObsColumn, StoreGene, StoreGenes
from scfm.data.prepare_state import said_of_store, said_of_unfinished
from scfm.data.quality import QualityConfig
from scfm.data.rawness import EXPECTED_REMEDY
from scfm.data.read import CountsSource, open_counts
from scfm.data.soma_address import is_address
from scfm.errors import ConfigError, CountsError, InputError, ScfmError

# Of each file, for its coverage and for how often each gene is seen: runs of cells, over all of it
RUNS_SAMPLED, CELLS_A_RUN = 64, 8
SHARD_BYTES = 256 * 2**20  # of encoded cells: a shard is sorted in memory
RESERVED = (
    *("dataset", "row", "name", "cell_hash", "n_counts", "n_genes", "sketch_a", "sketch_b"),
)

OnProgress = Callable[[str, int, int], None]  # stage, done, of how many


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How count files become a store. Two conversions that differ in these are two stores."""

    quality: QualityConfig = field(default_factory=QualityConfig)
    mapping: ObsMapping = harmonise.DEFAULT
    obs: tuple[str, ...] = ()  # columns beside those of the mapping, under their own names
    species: Literal["auto", "human", "mouse"] = "auto"
    layer: str | None = None
    minimum_coverage: float = 0.5  # share of the counts on genes of the reference vocabulary
    duplicates: Literal["drop", "keep"] = "drop"
    seed: int = 0
    shard_cells: int = 65_536
    block_cells: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_coverage <= 1:
            raise ValueError(
                f"--minimum-coverage is a share in [0, 1], got {self.minimum_coverage}"
            )
        if self.shard_cells < 1 or self.block_cells < 1:
            raise ValueError("--shard-cells must be at least 1")
        for name in (*self.obs, *self.mapping.columns):
            if name in RESERVED:
                raise ConfigError(
                    f"A store has a column {name!r} of its own. Give the file's another name in a "
                    f"mapping file: columns: {{source_{name}: [{name}]}}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "mapping": self.mapping.to_dict(), "obs": list(self.obs)}


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One input that will go into the store.

    Attributes
    ----------
    id, name
        What its files in the store are called, and what people call it.
    path
        As it can be opened again.
    sha256, stamp
        What identifies its content; its size and time, by which a change is noticed at once.
    species, counts_from, n_cells, n_columns
        What was found in it.
    values_a_cell
        Expressed genes of a cell, on average over a sample.
    genes
        The report of its gene matching.
    origins
        Obs target -> its column, "=value", or None.
    n_missing
        Obs target -> cells without a value.
    not_kept
        Its obs columns that do not go into the store.
    """

    id: str
    name: str
    path: str
    sha256: str
    stamp: str
    species: Species
    counts_from: str
    n_cells: int
    n_columns: int
    values_a_cell: float
    genes: dict[str, Any]
    origins: dict[str, str | None] = field(default_factory=dict)
    n_missing: dict[str, int] = field(default_factory=dict)
    not_kept: list[str] = field(default_factory=list)

    @property
    def n_bytes(self) -> float:
        """Of its cells once encoded, about: two a value and some a cell."""
        return self.n_cells * (60 + 2.1 * self.values_a_cell)

    def origin(self, target: str) -> Origin:
        said = self.origins.get(target)
        if said is not None and said.startswith("="):
            return Origin(constant=said[1:])
        return Origin(column=said)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is decided before the first cell is written.

    Attributes
    ----------
    inputs
        The paths and addresses, as given and expanded, in order.
    settings
        The PrepareConfig.
    after
        Hash of the manifest that is appended to; "" for a new store.
    files
        What goes in, in order.
    refused
        Input -> why it cannot be used; left out on request.
    known
        Input -> the data set of the store, or the earlier input, that holds the very same bytes.
    genes
        Genes that the store does not have yet, in their order.
    obs
        Columns of the cells.
    n_buckets
        Parts of the shuffle.
    values_not_found
        Obs target -> values that the mapping renames and no file has.
    """

    inputs: list[str]
    settings: dict[str, Any]
    after: str
    files: list[PlannedFile]
    refused: dict[str, str]
    known: dict[str, str]
    genes: list[StoreGene]
    obs: dict[str, ObsColumn]
    n_buckets: int
    values_not_found: dict[str, list[str]] = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        return sum(file.n_cells for file in self.files)

    @property
    def n_bytes(self) -> float:
        """Of all cells once encoded, about."""
        return sum(file.n_bytes for file in self.files)

    def to_json(self) -> str:
        genes = [(g.key, g.symbol, g.ensembl_id, g.species) for g in self.genes]
        return json.dumps({**vars(self), "genes": genes}, default=asdict)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        found = json.loads(text)
        found["files"] = [PlannedFile(**file) for file in found["files"]]
        found["genes"] = [StoreGene(*gene) for gene in found["genes"]]
        found["obs"] = {
            name: ObsColumn(column["kind"], tuple(column["categories"]))
            for name, column in found["obs"].items()
        }
        return cls(**found)


@dataclass(frozen=True)
class _Looked:
    """What a look into one file brings, and what only the plan as a whole needs of it."""

    file: PlannedFile
    surveys: dict[str, Survey]


class _GeneTally:
    """Genes of all files, and about how many cells express each."""

    def __init__(self) -> None:
        self.genes: dict[str, StoreGene] = {}
        self.detected: dict[str, float] = {}

    def add(self, columns: GeneColumns, detected: Sequence[float]) -> None:
        rows = zip(columns.keys, columns.symbols, columns.ensembl_ids, columns.species, strict=True)
        for (key, *rest), n_cells in zip(rows, detected, strict=True):
            if key not in self.genes:
                self.genes[key] = StoreGene(key, *rest)
            self.detected[key] = self.detected.get(key, 0.0) + n_cells

    def ordered(self, store_genes: StoreGenes) -> list[StoreGene]:
        """Those new to the store: a species after the other, the most detected first.

        Small gaps between the genes of a cell are what makes a store small.
        """
        of_species: dict[str, float] = {}
        for key, gene in self.genes.items():
            of_species[gene.species] = of_species.get(gene.species, 0.0) + self.detected[key]
        new = [gene for gene in self.genes.values() if store_genes.position(gene.key) is None]
        new.sort(key=lambda g: (-of_species[g.species], g.species, -self.detected[g.key], g.key))
        return new


def expanded(inputs: Sequence[str]) -> list[str]:
    """Inputs as absolute paths; a selection of the Census as its datasets, one by one."""
    found: list[str] = []
    for given in inputs:
        found += census_datasets(given) if is_address(given) else [str(Path(given).absolute())]
    return found


def make_plan(
    inputs: Sequence[str],
    config: PrepareConfig,
    vocabulary: VocabularyGenes,
    ensembl_ids: Sequence[str],
    *,
    before: Manifest | None,
    store_genes: StoreGenes,
    skip_refused: bool,
    on_progress: OnProgress,
) -> Plan:
    """Look into every file. ``inputs`` are expanded already; nothing is written.

    Raises InputError that lists every file that cannot be used and why, unless they may be
    skipped; LabelError for an obs column that no file has; ConfigError for a mapping that names a
    file that is none of them.
    """
    names = _telling_names(inputs)
    in_store = [entry.name for entry in before.datasets] if before else []
    harmonise.require_files(config.mapping, names, in_store)
    looked, refused, known, tally = [], {}, {}, _GeneTally()
    seen = {entry.sha256: entry.name for entry in before.datasets} if before else {}
    match = partial(
        _look,
        config=config,
        vocabulary=vocabulary,
        ensembl_ids=ensembl_ids,
        store_obs=before.obs if before else {},
    )
    for number, (path, name) in enumerate(zip(inputs, names, strict=True)):
        on_progress("look", number, len(inputs))
        try:
            found, columns, detected = match(path, name)
        except ScfmError as error:
            refused[path] = reason_of(error, path)
            continue
        if found.file.sha256 in seen:
            known[path] = seen[found.file.sha256]
            continue
        seen[found.file.sha256] = name
        looked.append(found)
        tally.add(columns, detected)
    on_progress("look", len(inputs), len(inputs))
    if refused and not (skip_refused and (looked or known)):
        raise InputError(refusal(refused, len(inputs)))
    obs, looked = _obs_columns(looked, config, before)
    files = [one.file for one in looked]
    return Plan(
        inputs=list(inputs),
        settings=config.to_dict(),
        after=before.hash if before else "",
        files=files,
        refused=refused,
        known=known,
        genes=tally.ordered(store_genes),
        obs=obs,
        n_buckets=_n_buckets(files, config.shard_cells),
        values_not_found=_values_not_found(looked, config.mapping),
    )


def open_planned(path: str, config: PrepareConfig) -> CountsSource:
    """Open an input the way every pass over it does: by rows, its empty cells included."""
    return open_counts(path, layer=config.layer, keep_empty=True, backed=True)


def stamp_of(path: str) -> str:
    """Size and time of a file, or of all files of a folder; "" for an address and what is gone."""
    found = Path(path)
    if is_address(path) or not found.exists():
        return ""
    members = sorted(p for p in found.rglob("*") if p.is_file()) if found.is_dir() else [found]
    lines = []
    for member in members:
        status = member.stat()
        lines.append(f"{member.relative_to(found)} {status.st_size} {status.st_mtime_ns}")
    text = "\n".join(lines)
    return text if len(lines) == 1 else hashlib.sha256(text.encode()).hexdigest()


def obs_values(obs: pd.DataFrame, origin: Origin) -> pd.Series | None:
    """A file's values of a target; None where it has none."""
    if origin.constant is not None:
        return harmonise.constant(origin.constant, len(obs))
    if origin.column is None:
        return None
    place = [str(name) for name in obs.columns].index(origin.column)
    return obs.iloc[:, place].reset_index(drop=True)


def refusal(refused: Mapping[str, str], n_inputs: int) -> str:
    """What to say of inputs that cannot be used."""
    some = f"{len(refused)} of {n_inputs} inputs" if n_inputs > 1 else "The input"
    lines = "\n".join(f"  {path}: {reason}" for path, reason in refused.items())
    remedy = "Mend them, or leave them out: the same command with --skip-refused."
    if len(refused) == n_inputs:
        remedy = "There is nothing to make a store of."
    return f"{some} cannot go into a store; nothing was written.\n{lines}\n{remedy}"


def _look(
    path: str,
    name: str,
    *,
    config: PrepareConfig,
    vocabulary: VocabularyGenes,
    ensembl_ids: Sequence[str],
    store_obs: Mapping[str, ObsColumn],
) -> tuple[_Looked, GeneColumns, list[float]]:
    said = None if is_address(path) else said_of_store(path) or said_of_unfinished(path)
    if said:
        raise InputError(f"{path}: {said}")
    with open_planned(path, config) as source:
        stamp = stamp_of(path)
        alignment = align(
            source.var,
            vocabulary.symbols,
            ensembl_ids,
            species=config.species,
            orthologs=True,
            name=name,
        )
        rows = source.rows(_spread(source.n_cells))
        report = require_coverage(alignment, rows, config.minimum_coverage)
        species: Species = "mouse" if report.species == "mouse" else "human"
        columns = identify(source.var, species, vocabulary)
        sha256 = source.fingerprint()
        obs = source.obs
        origins = harmonise.find_origins(
            [str(column) for column in obs.columns], name, config.mapping.also(config.obs)
        )
        surveys = {}
        for target, origin in origins.items():
            values = obs_values(obs, origin)
            if values is not None:
                # a store that was made with numbers goes on with numbers
                is_number = target in store_obs and store_obs[target].kind not in harmonise.TEXT
                surveys[target] = harmonise.survey(
                    values,
                    config.mapping.values.get(target, {}),
                    as_text=config.mapping.is_text(target) and not is_number,
                )
        taken = {origin.column for origin in origins.values()}
        file = PlannedFile(
            id=f"{_slug(name)}-{sha256[:8]}",
            name=name,
            path=path,
            sha256=sha256,
            stamp=stamp,
            species=species,
            counts_from=source.counts_from,
            n_cells=source.n_cells,
            n_columns=len(source.var),
            values_a_cell=len(rows.counts) / rows.n_cells,
            genes=report.to_dict(),
            origins={
                target: str(origin) if origin != Origin() else None
                for target, origin in origins.items()
            },
            not_kept=[str(column) for column in obs.columns if column not in taken],
        )
    seen = np.bincount(rows.indices, minlength=file.n_columns)
    return _Looked(file, surveys), columns, (seen * (file.n_cells / rows.n_cells)).tolist()


def _spread(n_cells: int) -> np.ndarray:
    starts = np.linspace(0, max(n_cells - CELLS_A_RUN, 0), RUNS_SAMPLED).astype(np.int64)
    cells = np.unique(starts[:, None] + np.arange(CELLS_A_RUN))
    return cells[cells < n_cells]


def _obs_columns(
    looked: list[_Looked], config: PrepareConfig, before: Manifest | None
) -> tuple[dict[str, ObsColumn], list[_Looked]]:
    """The store's columns of cells, and the files with what they lack of them."""
    store_obs = before.obs if before else {}
    columns: dict[str, ObsColumn] = {}
    for target in config.mapping.also(config.obs).columns:
        having = [one for one in looked if target in one.surveys]
        if not having:
            continue
        kinds: list[harmonise.Kind] = [one.surveys[target].kind for one in having]
        is_text = target in store_obs and store_obs[target].kind in harmonise.TEXT
        if is_text or harmonise.widest(kinds) in harmonise.TEXT:
            for one in having:
                if one.surveys[target].kind not in harmonise.TEXT:
                    one.surveys[target] = _surveyed_as_text(one.file, target, config)
        surveys = [one.surveys[target] for one in having]
        columns[target] = harmonise.unified(surveys, store_obs.get(target), target)
    if looked:
        others = sorted({column for one in looked for column in one.file.not_kept})
        harmonise.require_columns(config.mapping, {*columns, *store_obs}, others, config.obs)
    finished = []
    for one in looked:
        lacking = {
            target: one.surveys[target].n_missing if target in one.surveys else one.file.n_cells
            for target in columns
        }
        origins = {target: one.file.origins[target] for target in columns}
        finished.append(replace(one, file=replace(one.file, origins=origins, n_missing=lacking)))
    return columns, finished


def _values_not_found(looked: list[_Looked], mapping: ObsMapping) -> dict[str, list[str]]:
    absent = {}
    for target, renames in mapping.values.items():
        surveys = [one.surveys[target] for one in looked if target in one.surveys]
        absent[target] = sorted(renames.keys() - set().union(*(one.renamed for one in surveys)))
    return {target: values for target, values in absent.items() if values}


def _surveyed_as_text(file: PlannedFile, target: str, config: PrepareConfig) -> Survey:
    """Numbers that stand beside text in another file are text as well."""
    with open_planned(file.path, config) as source:
        values = obs_values(source.obs, file.origin(target))
    assert values is not None, target
    return harmonise.survey(values, config.mapping.values.get(target, {}), as_text=True)


def _n_buckets(files: Sequence[PlannedFile], shard_cells: int) -> int:
    """Enough that a shard is several buckets, should most cells be dropped; one a shard if many."""
    n_cells = sum(file.n_cells for file in files)
    n_bytes = sum(file.n_bytes for file in files)
    n_shards = max(1, -(-n_cells // shard_cells), int(-(-n_bytes // SHARD_BYTES)))
    return n_shards * min(max(1024 // n_shards, 1), 8)


def _telling_names(inputs: Sequence[str]) -> list[str]:
    """Each input by the last parts of its path that set it apart from the others."""
    parts = [[given] if is_address(given) else list(Path(given).parts) for given in inputs]
    names = []
    for own in parts:
        same = [other for other in parts if other != own]
        n = next(
            (n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in same)),
            len(own),
        )
        names.append("/".join(own[-n:]))
    return names


def _slug(name: str) -> str:
    stem = re.sub(r"\.(h5ad|h5|zarr|zarr\.zip|loom|mtx|mtx\.gz)$", "", name)
    return re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[-48:] or "cells"


def reason_of(error: ScfmError, path: str) -> str:
    """An error's first paragraph without the path that stands before it."""
    return in_words_of_prepare(error).partition("\n")[0].removeprefix(f"{path}: ")


def in_words_of_prepare(error: ScfmError) -> str:
    """What an error says, without advice that no store can follow."""
    if not isinstance(error, CountsError):
        return str(error)
    return str(error).replace(
        EXPECTED_REMEDY,
        "A store holds whole counts. If these are expected counts (RSEM), round them into another "
        "file: adata.X = adata.X.round(); adata.write_h5ad(...).",
    )
