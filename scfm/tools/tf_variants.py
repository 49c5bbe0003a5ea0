"""A VCF, a model of TF binding -> a table of what each variant does to each TF in each group.

in   VCF, FASTA; for models that read accessibility the regions and groups of cells, or bigWigs
out  TSV (.tsv, .tsv.gz) or parquet: one row a variant, group and TF
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from scfm.data.allele_windows import longest_allele
from scfm.data.genome import Genome
from scfm.data.genome_regions import GenomeRegions
from scfm.data.region_examples import RegionExamples
from scfm.data.signal_tracks import Tracks
from scfm.data.vcf import VariantFile, read_vcf
from scfm.data.write import atomic_path, check_writable
from scfm.errors import ConfigError, InputError
from scfm.model.dna import BindingModel
from scfm.tasks.tf_names import find_tfs
from scfm.tasks.tf_variants import (
    NoSignal,
    RegionSurroundings,
    Surroundings,
    TrackSurroundings,
    VariantConfig,
    VariantScores,
    score_variants,
)
from scfm.tools.tf_prediction import as_binding
from scfm.tools.tf_store import NO_GROUP

ENDINGS = (".tsv", ".tsv.gz", ".parquet")


@dataclass(frozen=True)
class VariantEffects:
    """What was written: variants, rows, and alleles of the file left out, by reason."""

    n_variants: int
    n_rows: int
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        told = ", ".join(f"{n:,} {reason}" for reason, n in self.left_out.items())
        return f"{self.n_variants:,} variants, {self.n_rows:,} rows" + (
            f"; left out: {told}" if told else ""
        )


def score_vcf(
    vcf: str | Path,
    model: BindingModel | str | Path,
    fasta: str | Path,
    out: str | Path,
    *,
    regions: RegionExamples | None = None,
    tracks: Mapping[str, Any] | None = None,
    tfs: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    config: VariantConfig | None = None,
    device: str = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VariantEffects:
    """Score every variant of a file; ``out`` appears when all rows are there.

    Columns: chrom, pos (1-based, left-aligned), id, ref, alt, group, tf, ref_logit, alt_logit,
    delta (alternative minus reference), max_abs_delta (of the variant, over these groups and TFs),
    p (share of random changes of its kind with as large a delta).

    Parameters
    ----------
    regions
        Opened with this FASTA: accessibility and embeddings of groups of cells.
    tracks
        bigWigs of a model without groups of cells.
    tfs, groups
        Which; None: all.

    Raises InputError (REF that disagrees, naming the row), ConfigError (an unknown TF or group, an
    ending that is no table's), OutputError.
    """
    out, config = Path(out), config or VariantConfig()
    if not str(out).endswith(ENDINGS):
        raise ConfigError(f"{out.name} is no table's name; wanted one ending in .tsv or .parquet.")
    check_writable(out)
    model = as_binding(model, device)
    chosen = np.arange(len(model.tasks)) if tfs is None else find_tfs(tfs, model.tasks)
    genome = Genome.open(fasta)
    around = surroundings_of(model, genome, regions, tracks or {})
    names, codes = _groups(around, groups)
    found = _that_fit(read_vcf(vcf, genome), model.config.length, config.shifts, vcf)
    scores = score_variants(
        model, found.variants, genome, around, groups=codes, config=config, on_progress=on_progress
    )
    tasks = [model.tasks[i] for i in chosen]
    tables = (_table(some, names, tasks, chosen) for some in scores)
    with atomic_path(out) as path:
        n_rows = _write(tables, path)
    return VariantEffects(len(found.variants), n_rows, found.left_out)


def _that_fit(
    found: VariantFile, length: int, shifts: Sequence[int], vcf: str | Path
) -> VariantFile:
    """Without alleles longer than the model's window takes; InputError where none is left."""
    longest = longest_allele(length, shifts)
    kept = tuple(v for v in found.variants if max(len(v.ref), len(v.alt)) <= longest)
    if not kept:
        raise InputError(
            f"{vcf}: no allele fits into the model's window of {length:,} bases moved by "
            f"{min(shifts)}, which takes {max(longest, 0):,} at most. Move the windows less "
            "(--shift 0), or take a model of longer windows."
        )
    n_long = len(found.variants) - len(kept)
    more = {f"longer than the {longest:,} bases that the window takes": n_long} if n_long else {}
    return VariantFile(kept, {**found.left_out, **more})


def surroundings_of(
    model: BindingModel,
    genome: Genome,
    regions: RegionExamples | None,
    tracks: Mapping[str, Any],
) -> Surroundings:
    """Where the model's accessibility comes from. Raises InputError where it does not."""
    n_tracks = model.config.n_tracks
    if not n_tracks and not model.config.d_cell:
        return NoSignal()
    if isinstance(regions, GenomeRegions):
        found, n_there = RegionSurroundings(regions, genome), len(regions.tracks)
    elif tracks:
        found, n_there = TrackSurroundings(Tracks(tracks, genome.names), genome), len(tracks)
    else:
        found, n_there = NoSignal(), 0
    if n_there != n_tracks:
        raise InputError(
            f"The model reads {n_tracks} rows of accessibility and {n_there} were given. Name what "
            "it was trained with: --regions DATA --group-key COLUMN, or --track NAME=FILE.bw."
        )
    return found


def _groups(around: Surroundings, wanted: Sequence[str] | None) -> tuple[list[str], list[int]]:
    if not around.groups:
        if wanted:
            raise ConfigError(f"There are no groups of cells, so none is called {wanted[0]!r}.")
        return [NO_GROUP], [-1]
    unknown = [name for name in wanted or () if name not in around.groups]
    if unknown:
        raise ConfigError(
            f"There is no group {unknown[0]!r}; there are {', '.join(around.groups[:10])}."
        )
    names = list(wanted or around.groups)
    return names, [around.groups.index(name) for name in names]


def _table(
    scores: VariantScores,
    groups: Sequence[str],
    tasks: Sequence[str],
    chosen: Int[np.ndarray, " task"],
) -> pd.DataFrame:
    """Rows by variant, then group, then TF."""
    shape = (len(scores.variants), len(groups), len(tasks))
    variant, group, task = (axis.ravel() for axis in np.indices(shape))
    delta = scores.delta[:, :, chosen]
    largest = np.abs(delta).max(axis=(1, 2)) if delta.size else np.zeros(len(scores.variants))
    of = scores.variants
    return pd.DataFrame(
        {
            "chrom": np.array([v.chrom for v in of], dtype=object)[variant],
            "pos": np.array([v.start + 1 for v in of], dtype=np.int64)[variant],
            "id": np.array([v.name for v in of], dtype=object)[variant],
            "ref": np.array([v.ref for v in of], dtype=object)[variant],
            "alt": np.array([v.alt for v in of], dtype=object)[variant],
            "group": np.array(groups, dtype=object)[group],
            "tf": np.array(tasks, dtype=object)[task],
            "ref_logit": scores.reference[:, :, chosen].ravel().astype(np.float32),
            "alt_logit": scores.alternative[:, :, chosen].ravel().astype(np.float32),
            "delta": delta.ravel().astype(np.float32),
            "max_abs_delta": largest[variant].astype(np.float32),
            "p": scores.p[:, :, chosen].ravel(),
        }
    )


def _write(tables: Iterator[pd.DataFrame], path: Path) -> int:
    return _as_parquet(tables, path) if path.suffix == ".parquet" else _as_text(tables, path)


def _as_text(tables: Iterator[pd.DataFrame], path: Path) -> int:
    import gzip

    n_rows = 0
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        for table in tables:
            table.to_csv(
                file, sep="\t", index=False, header=n_rows == 0, float_format="%.6g", na_rep=""
            )
            n_rows += len(table)
    return n_rows


def _as_parquet(tables: Iterator[pd.DataFrame], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_rows, writer = 0, None
    try:
        for table in tables:
            rows = pa.Table.from_pandas(table, preserve_index=False)
            writer = writer or pq.ParquetWriter(path, rows.schema)
            writer.write_table(rows)
            n_rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return n_rows
