"""Any data a user may name -> a source with its genes matched, or a refusal that says why.

in   a path, a store or an AnnData, a vocabulary, how to read it
out  PoolMember (source + tokenizer + reports) and the GeneReport
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pandas as pd

from scfm.data.counts import CellSource, CountRows
from scfm.data.genes import GeneAlignment, GeneReport, align, require_coverage, require_genes
from scfm.data.quality import keep
from scfm.data.read import open_counts
from scfm.data.soma_address import is_address
from scfm.data.store import Store, is_store
from scfm.errors import DuplicateGeneError, GeneCoverageError, InputError, ScfmError
from scfm.tokens.collate import TokenConfig, Tokenizer
from scfm.tokens.masking import MaskConfig, MaskedTokenizer
from scfm.tokens.packed import CellTokenizer
from scfm.tokens.pool import PoolMember
from scfm.tokens.sentence import SentenceTokenizer
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.tables import Alignment, DatasetAlignment
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.word_labels import Labelled

if TYPE_CHECKING:
    from anndata import AnnData

TokenSettings = TokenConfig | MaskConfig | SentenceConfig  # each names a family's tokenizer

CELLS_SAMPLED = 512  # spread over the file, to measure coverage before the long work begins
BLOCKS_SAMPLED = 64  # spread over a store, all cells of each
FEW_SAMPLED = 64  # cells of a data set that the sampled blocks have not met
REFUSALS_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How count files are read and their genes matched."""

    species: Literal["auto", "human", "mouse"] = "auto"
    orthologs: bool = False  # mouse genes through one-to-one human orthologs
    duplicates: Literal["sum", "refuse", "rounded_mean"] = "sum"  # columns of one gene
    layer: str | None = None  # None: X, layers["counts"] or raw, whichever holds raw counts
    expected_counts: bool = False  # accept non-integer expected counts (RSEM)
    # share of the counts on genes the vocabulary knows; of sentences, of its genes that are there
    minimum_coverage: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_coverage <= 1:
            raise ValueError(
                f"input.minimum_coverage is a share in [0, 1], got {self.minimum_coverage}"
            )


def open_input(
    data: "str | Path | AnnData",
    vocab: GeneVocab,
    config: InputConfig,
    tokens: TokenSettings | None = None,
    *,
    backed: bool | None = None,
    manifest: int | None = None,
) -> tuple[PoolMember, GeneReport]:
    """Open, find the raw counts, match the genes, and hold the coverage to its minimum.

    Of a store every data set is matched by the names its own file had, so its cells become the very
    tokens they would have become from the file. The report is the data set's with the lowest
    coverage; all of them are in ``member.reports``. Coverage is measured on cells spread over the
    data.

    Parameters
    ----------
    backed
        As in scfm.data.read.open_counts.
    manifest
        Number of a store's earlier manifest to read.

    Raises
    ------
    InputError
        The counts are unusable.
    GeneCoverageError
        Too few of them fall on known genes; of a store, with the data sets at fault.
    """
    if not is_address(data) and is_store(data):
        assert isinstance(data, str | Path)
        return _open_store(Store(data, manifest=manifest), vocab, config, tokens)
    source = open_counts(
        data, layer=config.layer, expected_counts=config.expected_counts, backed=backed
    )
    alignment = _aligner(vocab, config)(source.var, source.name)
    spread = np.linspace(0, source.n_cells - 1, min(source.n_cells, CELLS_SAMPLED))
    sample = source.rows(spread.round().astype(np.int64))
    report = _floor(tokens)(alignment, sample, config.minimum_coverage)
    tokenizer = tokenizer_for(vocab, alignment, tokens, source, config.duplicates)
    return PoolMember(source, tokenizer, (report,)), report


def tokenizer_for(
    vocab: GeneVocab,
    alignments: Alignment | Sequence[DatasetAlignment],
    tokens: TokenSettings | None,
    source: CellSource | Labelled | None = None,
    duplicates: str = "sum",
) -> CellTokenizer:
    """The tokenizer of the family whose settings these are; the scfm family's without any.

    Sentences take a training example's words from the obs of ``source``, whose cells these are.
    """
    if isinstance(tokens, SentenceConfig):
        return SentenceTokenizer(vocab, alignments, tokens, source, duplicates)
    if isinstance(tokens, MaskConfig):
        return MaskedTokenizer(vocab, alignments, tokens, duplicates)
    return Tokenizer(vocab, alignments, tokens, duplicates)


def _floor(
    tokens: TokenSettings | None,
) -> Callable[[GeneAlignment, CountRows, float], GeneReport]:
    """What is held to the minimum: most of a cell's counts, or of the genes sentences are made of.

    The most variable genes hold a fifth of the counts where nothing is missing.
    """
    return require_genes if isinstance(tokens, SentenceConfig) else require_coverage


def _aligner(vocab: GeneVocab, config: InputConfig) -> Callable[[pd.DataFrame, str], GeneAlignment]:
    return lambda var, name: align(
        var,
        vocab.symbols,
        vocab.ensembl_ids,
        species=config.species,
        orthologs=config.orthologs,
        duplicates=config.duplicates,
        name=name,
    )


def _open_store(
    store: Store, vocab: GeneVocab, config: InputConfig, tokens: TokenSettings | None
) -> tuple[PoolMember, GeneReport]:
    if store.n_cells == 0:
        raise InputError(f"{store.name} holds no cells. Add some: scfm prepare CELLS --out ...")
    aligned = _all_aligned(store, _aligner(vocab, config))
    reports, refusals = [], {}
    samples = _samples(store)
    for number, (alignment, _) in enumerate(aligned):
        if isinstance(alignment, ScfmError):
            refusals[number] = alignment
            continue
        try:  # every data set is looked at before any is refused
            if number in samples:
                report = _floor(tokens)(alignment, samples[number], config.minimum_coverage)
            else:  # all of its cells were dropped
                report = alignment.report
        except (GeneCoverageError, InputError) as error:
            refusals[number] = error
            continue
        reports.append(report)
    if refusals:
        raise _refusal(store, refusals)
    alignments = [
        DatasetAlignment(alignment.column_to_gene, alignment.measured, has_column)
        for alignment, has_column in aligned
        if isinstance(alignment, GeneAlignment)
    ]
    tokenizer = tokenizer_for(vocab, alignments, tokens, store, config.duplicates)
    worst = min(reports, key=lambda report: report.counts_covered or 0.0)
    # a cached_property is a property, which the checker of types does not know
    return PoolMember(cast(CellSource, store), tokenizer, tuple(reports)), worst


def _all_aligned(
    store: Store, aligner: Callable[[pd.DataFrame, str], GeneAlignment]
) -> list[tuple[GeneAlignment | ScfmError, np.ndarray]]:
    """Each data set's alignment over the store's genes (or why there is none), and its genes.

    Files of one study mostly have the very same columns: those are matched once.
    """
    known: dict[bytes, GeneAlignment | ScfmError] = {}
    found = []
    for number, entry in enumerate(store.manifest.datasets):
        var, store_gene = store.dataset_var(number)
        name = f"{entry.name} in {store.name}"
        signature = _signature(var)
        if signature not in known:
            try:
                known[signature] = aligner(var, name)
            except (GeneCoverageError, DuplicateGeneError) as error:
                known[signature] = error
        alignment = known[signature]
        has_column = np.zeros(len(store.genes), dtype=bool)
        has_column[store_gene] = True
        if isinstance(alignment, GeneAlignment):
            column_to_gene = np.full(len(store.genes), -1, dtype=np.int32)
            column_to_gene[store_gene] = alignment.column_to_gene
            alignment = replace(
                alignment,
                column_to_gene=column_to_gene,
                report=replace(alignment.report, name=name),
            )
        found.append((alignment, has_column))
    return found


def _signature(var: pd.DataFrame) -> bytes:
    """Two tables of genes that differ in a name have different ones."""
    columns = [var.index, *(var[column] for column in var.columns)]
    texts = ["\x1f".join(map(str, [*var.columns])), *("\x1f".join(map(str, c)) for c in columns)]
    return hashlib.sha256("\x1e".join(texts).encode()).digest()


def _samples(store: Store) -> dict[int, CountRows]:
    """Some cells of every data set that has any."""
    n_blocks = len(store.blocks.first)
    spread = np.linspace(0, n_blocks - 1, min(n_blocks, BLOCKS_SAMPLED)).round().astype(np.int64)
    first, size = store.blocks.first[spread], store.blocks.n_cells[spread]
    rows = store.rows(
        np.concatenate([np.arange(f, f + n) for f, n in zip(first, size, strict=True)])
    )
    assert rows.dataset is not None
    samples = {int(d): keep(rows, rows.dataset == d) for d in np.unique(rows.dataset)}
    unmet = [
        number
        for number, entry in enumerate(store.manifest.datasets)
        if entry.n_cells and number not in samples
    ]
    if unmet:
        dataset = store.numbers("dataset")
        for number in unmet:
            samples[number] = store.rows(np.flatnonzero(dataset == number)[:FEW_SAMPLED])
    return samples


def _refusal(store: Store, refusals: dict[int, ScfmError]) -> GeneCoverageError:
    """One message for all data sets that cannot be used."""
    datasets = store.manifest.datasets
    if len(datasets) == 1:
        return GeneCoverageError(str(refusals[0]))
    named = {number: (datasets[number].name, str(error)) for number, error in refusals.items()}
    # data sets of equal columns share one error, which names the first of them
    lines = [f"- {text}" if name in text else f"- {name}: {text}" for name, text in named.values()]
    more = len(lines) - REFUSALS_SHOWN
    return GeneCoverageError(
        f"{len(refusals):,} of the {len(datasets):,} data sets in {store.name} cannot be used with "
        "this model's genes:\n"
        + "\n".join(lines[:REFUSALS_SHOWN] + ([f"- and {more:,} more"] if more > 0 else []))
    )
