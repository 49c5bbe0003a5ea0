"""Many files of raw counts -> one shuffled store. What is done is never done again.

in   files in any format, or a store to add to; thresholds, a mapping of obs columns
out  a new manifest of the store, or an error that says what to mend; nothing in between is visible

First all files are looked at (scfm.data.prepare_plan). Then each is read once, in chunks, its cells
judged, encoded and written in buckets (scfm.data.runs). Then bucket after bucket is put in its
final order, without duplicates, as shards (scfm.data.shuffle). Last, one rename makes them part of
the store. All of it is kept in STORE/.prepare until then, so a killed conversion goes on where it
was: files and shards that are done are not done again.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int32, UInt64

from scfm.data import harmonise
from scfm.data.blocks import concatenate, encode, gene_key64, take
from scfm.data.gene_reading import VocabularyGenes
from scfm.data.identity import identify
from scfm.data.manifest import MANIFEST, DatasetEntry, Manifest, ShardEntry, StoreGenes
from scfm.data.prepare_plan import (
    SHARD_BYTES,
    OnProgress,
    Plan,
    PlannedFile,
    PrepareConfig,
    expanded,
    in_words_of_prepare,
    make_plan,
    obs_values,
    open_planned,
    reason_of,
)
from scfm.data.prepare_state import WORK
from scfm.data.prepare_work import (
    begin,
    interrupted,
    kept_on_failure,
    refuse_foreign,
    require_room,
    require_unchanged,
    sweep,
    write_json,
)
from scfm.data.quality import judge_cells, keep
from scfm.data.read import CountsSource
from scfm.data.runs import Run, RunWriter, bucket_sizes, gather, run_bytes_for
from scfm.data.shuffle import known_pieces, settle, shard_groups, shard_table, write_known
from scfm.data.store_writer import StoreWriter
from scfm.errors import ConfigError, InputError

_ARROW = {
    "category": pa.int32(),
    "string": pa.string(),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
}


@dataclass(frozen=True)
class Prepared:
    """What a conversion came to.

    Attributes
    ----------
    manifest
        The store now.
    added
        Names of the data sets that are new in it.
    refused, known
        Inputs left out: why they cannot be used; which data set has the same content.
    """

    manifest: Manifest
    added: list[str]
    refused: dict[str, str]
    known: dict[str, str]


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    config: PrepareConfig,
    *,
    symbols: Sequence[str],
    ensembl_ids: Sequence[str],
    skip_refused: bool = False,
    restart: bool = False,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Prepared:
    """Convert files into a store, or add them to one; go on with an interrupted conversion.

    Parameters
    ----------
    inputs
        Paths and addresses that scfm.data.read.open_counts knows. Where cells are duplicates, the
        earlier input wins.
    out
        The store's folder: new, a store, or a conversion that was interrupted.
    symbols, ensembl_ids
        Genes of the vocabulary that coverage is measured against; the store keeps all genes.
    skip_refused
        Leave out inputs that cannot be used instead of refusing all.
    restart
        Forget an interrupted conversion and begin anew.
    on_progress
        Called with a stage ("look", "read", "shuffle"), what is done of it, and its total.

    Raises
    ------
    InputError
        Inputs that cannot be used, each named with its reason, before anything is written; a
        value later in a file that is no count; a file that changed since the conversion began.
    ConfigError
        The conversion that was interrupted had other settings or inputs.
    OutputError
        Another scfm writes to the store; no space, no permission. What is done is kept.
    """
    out, paths = Path(out), expanded([str(given) for given in inputs])
    if not paths:
        raise ConfigError("Nothing to prepare: name at least one file.")
    refuse_foreign(out)
    vocabulary = VocabularyGenes(symbols, ensembl_ids)

    def planned(before: Manifest | None, genes: StoreGenes) -> Plan:
        return make_plan(
            paths,
            config,
            vocabulary,
            ensembl_ids,
            before=before,
            store_genes=genes,
            skip_refused=skip_refused,
            on_progress=on_progress,
        )

    is_new = not (out / MANIFEST).exists() and not (out / WORK).exists()
    plan = planned(None, StoreGenes()) if is_new else None  # a refusal leaves no folder behind
    with StoreWriter(out, block_cells=config.block_cells) as writer, kept_on_failure(out):
        work = out / WORK
        if restart:
            shutil.rmtree(work, ignore_errors=True)
        found = interrupted(work, writer, paths, config)
        plan = found or plan or planned(writer.manifest, writer.genes)
        if not plan.files:
            assert writer.manifest, "a new store of nothing"
            return Prepared(writer.manifest, [], plan.refused, plan.known)
        if not found:
            require_room(plan, out)
            begin(work, plan)
        conversion = _Conversion(work, plan, config, writer, vocabulary, on_progress)
        for number, file in enumerate(plan.files):
            conversion.read(number, file, skip_refused)
        shards = conversion.shuffle()
        prepared = conversion.commit(shards)
        sweep(out, writer)
    return prepared


class _Conversion:
    """One conversion at work. Every step leaves a file that says that it is done."""

    def __init__(
        self,
        work: Path,
        plan: Plan,
        config: PrepareConfig,
        writer: StoreWriter,
        vocabulary: VocabularyGenes,
        on_progress: OnProgress,
    ) -> None:
        self.work, self.plan, self.config, self.writer = work, plan, config, writer
        self.vocabulary, self.on_progress = vocabulary, on_progress
        self.genes = writer.genes.extended(plan.genes)
        self.gene_keys: UInt64[np.ndarray, " gene"] = gene_key64(self.genes.keys)
        self.cells_read = 0

    def read(self, number: int, file: PlannedFile, skip_refused: bool) -> None:
        """Read one file into runs, unless that is done."""
        folder = self._folder(file)
        if not (folder / "done.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                done = self._read(number, file)
            except InputError as error:
                if not skip_refused:
                    raise type(error)(self._half_way(error)) from error
                shutil.rmtree(folder)
                folder.mkdir()
                done = {"refused": reason_of(error, file.path)}
            write_json(folder / "done.json", done)
        self.cells_read += file.n_cells
        self.on_progress("read", self.cells_read, self.plan.n_cells)

    def _read(self, number: int, file: PlannedFile) -> dict[str, Any]:
        runs = RunWriter(
            self._folder(file),
            n_buckets=self.plan.n_buckets,
            seed=self.config.seed,
            run_bytes=run_bytes_for(self.plan.n_bytes),
        )
        require_unchanged(file, self.config)
        dropped: dict[str, int] = {}
        n_kept = 0
        with open_planned(file.path, self.config) as source:
            columns = identify(source.var, file.species, self.vocabulary)
            places = [self.genes.position(key) for key in columns.keys]
            store_gene: Int32[np.ndarray, " column"] = np.array(places, dtype=np.int32)
            is_mito, obs = columns.is_mito, self._obs(source, file)
            for rows in source.blocks():
                judged = judge_cells(rows, is_mito, self.config.quality)
                for reason, n_cells in judged.dropped().items():
                    dropped[reason] = dropped.get(reason, 0) + n_cells
                kept = keep(rows, judged.is_kept)
                if kept.n_cells:
                    cells = encode(kept, store_gene, self.gene_keys, number)
                    runs.add(cells, obs.take(pa.array(kept.cell_index)))
                n_kept += kept.n_cells
                done = self.cells_read + int(rows.cell_index[-1]) + 1
                self.on_progress("read", done, self.plan.n_cells)
            runs.flush()
            self.writer.write_dataset(file.id, source.var, store_gene, {})
        require_unchanged(file, self.config)
        return {"n_cells": n_kept, "dropped": dropped}

    def _obs(self, source: CountsSource, file: PlannedFile) -> pa.Table:
        """The chosen columns of all of a file's cells, with their rows and names."""
        frame: pd.DataFrame = source.obs
        columns = {
            "row": pa.array(np.arange(source.n_cells)),
            "name": pa.array(frame.index.astype(str), pa.string()),
        }
        for target, column in self.plan.obs.items():
            values = obs_values(frame, file.origin(target))
            renames = self.config.mapping.values.get(target, {})
            columns[target] = (
                pa.nulls(source.n_cells, _ARROW[column.kind])
                if values is None
                else harmonise.as_arrow(values, renames, column)
            )
        return pa.table(columns)

    def shuffle(self) -> list[dict[str, Any]]:
        """Write the shards that are not written yet; what was written of each, and duplicates."""
        runs = [
            Run(path)
            for file in self.plan.files
            for path in sorted(self._folder(file).glob("*.run"))
        ]
        sizes = bucket_sizes(runs, self.plan.n_buckets)
        groups = shard_groups(sizes, self.config.shard_cells, SHARD_BYTES)
        self._write_known()
        records, done, total = [], 0, int(sizes[0].sum())
        self.on_progress("shuffle", 0, max(total, 1))
        for number, (first, last) in enumerate(groups):
            name = self.writer.shard_name(number)
            path = self.work / "shards" / f"{name}.json"
            if not path.exists():
                write_json(path, self._shard(name, runs, first, last))
            records.append(json.loads(path.read_text()))
            done += int(sizes[0, first:last].sum())
            self.on_progress("shuffle", done, total)
        return records

    def _shard(self, name: str, runs: list[Run], first: int, last: int) -> dict[str, Any]:
        """Write one shard, of buckets ``first:last``."""
        numbers = self._dataset_numbers()
        drop = self.config.duplicates == "drop"
        kept, tables, duplicates = [], [], []
        # bucket by bucket: equal cells are in one bucket, and buckets follow each other in order
        for bucket in range(first, last):
            found = gather(runs, bucket)
            if not found:
                continue
            cells = replace(found[0], dataset=numbers[found[0].dataset])
            known = known_pieces(self.work / "known", bucket, self.plan.n_buckets)
            settled = settle(cells, self.config.seed, known, drop_duplicates=drop)
            duplicates += [[a, b, n] for (a, b), n in settled.duplicates.items()]
            if len(settled.order):
                kept.append(take(cells, settled.order))
                tables.append(found[1].take(pa.array(settled.order)))
        entry = None
        if kept:
            cells = concatenate(kept)
            kept.clear()
            table = shard_table(cells, pa.concat_tables(tables), self.plan.obs)
            entry = asdict(self.writer.write_shard(name, cells, table, self.genes))
        return {"entry": entry, "duplicates": duplicates}

    def _write_known(self) -> None:
        """What the store holds already, by hash, so that its cells are not added again."""
        folder, done = self.work / "known", self.work / "known.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            shards = self.writer.manifest.shards if self.writer.manifest else ()
            files = [self.writer.folder / shard.obs_file for shard in shards]
            write_known(folder, files, self.config.seed)
            write_json(done, len(files))

    def commit(self, records: list[dict[str, Any]]) -> Prepared:
        """Make the shards part of the store."""
        before = self.writer.manifest
        shards = [ShardEntry(**record["entry"]) for record in records if record["entry"]]
        if not shards and not before:
            message = self._nothing_left()
            shutil.rmtree(self.work)  # there is nothing in it to go on with
            raise InputError(message)
        duplicates: dict[tuple[int, int], int] = {}
        for record in records:
            for a, b, n in record["duplicates"]:
                duplicates[a, b] = duplicates.get((a, b), 0) + n
        numbers, found = self._dataset_numbers(), self._done()
        names = [entry.name for entry in before.datasets] if before else []
        names += [file.name for file, done in found if "refused" not in done]
        entries, refused = [], dict(self.plan.refused)
        for number, (file, done) in enumerate(found):
            if "refused" in done:
                refused[file.path] = done["refused"]
                continue
            copies = {
                names[a]: n for (a, b), n in sorted(duplicates.items()) if b == numbers[number]
            }
            entries.append(self._entry(file, done, copies))
        settings = {
            **self.plan.settings,
            "added": [entry.name for entry in entries],
            "refused": {Path(path).name: reason for path, reason in refused.items()},
            "values_not_found": self.plan.values_not_found,
        }
        history = before.settings.get("prepare", []) if before else []
        manifest = self.writer.commit(
            genes=self.genes,
            shards=shards,
            datasets=entries,
            obs=self.plan.obs,
            settings={"prepare": [*history, settings]},
        )
        return Prepared(manifest, [entry.name for entry in entries], refused, self.plan.known)

    def _entry(
        self, file: PlannedFile, done: dict[str, Any], copies: dict[str, int]
    ) -> DatasetEntry:
        """One data set of the store; writes the report that lies beside its var."""
        dropped, n_cells = dict(done["dropped"]), done["n_cells"]
        if copies and self.config.duplicates == "drop":
            dropped["duplicate"] = sum(copies.values())
            n_cells -= dropped["duplicate"]
        entry = DatasetEntry(
            id=file.id,
            name=file.name,
            path=file.path,
            sha256=file.sha256,
            species=file.species,
            counts_from=file.counts_from,
            n_read=file.n_cells,
            n_cells=n_cells,
            dropped=dropped,
        )
        report = {
            "n_read": file.n_cells,
            "n_cells": n_cells,
            "dropped": dropped,
            "duplicates_of": copies,
            "n_columns": file.n_columns,
            "values_a_cell": round(file.values_a_cell, 1),
            "genes": file.genes,
            "obs": {
                target: {"from": file.origins.get(target), "missing": n_missing}
                for target, n_missing in file.n_missing.items()
            },
            "obs_not_kept": file.not_kept,
        }
        write_json(self.writer.folder / entry.report_file, report, indent=1)
        return entry

    def _done(self) -> list[tuple[PlannedFile, dict[str, Any]]]:
        return [
            (file, json.loads((self._folder(file) / "done.json").read_text()))
            for file in self.plan.files
        ]

    def _dataset_numbers(self) -> np.ndarray:
        """Number in the store of each planned file: one that was refused half way has none."""
        is_in = np.array(["refused" not in done for _, done in self._done()])
        start = len(self.writer.manifest.datasets) if self.writer.manifest else 0
        return (start + np.cumsum(is_in) - is_in).astype(np.uint32)

    def _folder(self, file: PlannedFile) -> Path:
        return self.work / "files" / file.id

    def _half_way(self, error: InputError) -> str:
        n_done = sum((self._folder(file) / "done.json").exists() for file in self.plan.files)
        return (
            f"{in_words_of_prepare(error)}\nNothing is in the store yet; {n_done} of "
            f"{len(self.plan.files)} files are done and kept. Go on without this file: the same "
            "command with --skip-refused. Or mend it and begin anew: the same command with "
            "--restart."
        )

    def _nothing_left(self) -> str:
        dropped: dict[str, int] = {}
        for _, done in self._done():
            for reason, n in done.get("dropped", {}).items():
                dropped[reason] = dropped.get(reason, 0) + n
        listed = ", ".join(f"{n:,} by {reason}" for reason, n in dropped.items())
        return (
            f"No cell is left of {self.plan.n_cells:,}: dropped were {listed or 'none'}. Nothing "
            "was written; loosen the thresholds (--min-genes, --min-counts, --max-mito)."
        )
