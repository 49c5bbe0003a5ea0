"""Any data a user may name -> a source with its genes matched, or a refusal that says why.

in   a path or an AnnData, a vocabulary, how to read it
out  PoolMember (source + tokenizer) and the GeneReport
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from scfm.data.genes import GeneReport, align, require_coverage
from scfm.data.read import open_counts
from scfm.tokens.collate import TokenConfig, Tokenizer
from scfm.tokens.pool import PoolMember
from scfm.tokens.vocab import GeneVocab

if TYPE_CHECKING:
    from anndata import AnnData

CELLS_SAMPLED = 512  # spread over the file, to measure coverage before the long work begins


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How count files are read and their genes matched."""

    species: Literal["auto", "human", "mouse"] = "auto"
    orthologs: bool = False  # mouse genes through one-to-one human orthologs
    duplicates: Literal["sum", "refuse"] = "sum"  # columns of one gene
    layer: str | None = None  # None: X, layers["counts"] or raw, whichever holds raw counts
    expected_counts: bool = False  # accept non-integer expected counts (RSEM)
    minimum_coverage: float = 0.5  # share of the counts on genes the vocabulary knows

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_coverage <= 1:
            raise ValueError(
                f"input.minimum_coverage is a share in [0, 1], got {self.minimum_coverage}"
            )


def open_input(
    data: "str | Path | AnnData",
    vocab: GeneVocab,
    config: InputConfig,
    tokens: TokenConfig | None = None,
    *,
    backed: bool | None = None,
) -> tuple[PoolMember, GeneReport]:
    """Open, find the raw counts, match the genes, and hold the coverage to its minimum.

    Coverage is measured on up to 512 cells spread over the file. Raises InputError where the
    counts are unusable and GeneCoverageError where too few fall on known genes.
    """
    source = open_counts(
        data, layer=config.layer, expected_counts=config.expected_counts, backed=backed
    )
    alignment = align(
        source.var,
        vocab.symbols,
        vocab.ensembl_ids,
        species=config.species,
        orthologs=config.orthologs,
        duplicates=config.duplicates,
        name=source.name,
    )
    spread = np.linspace(0, source.n_cells - 1, min(source.n_cells, CELLS_SAMPLED))
    sample = source.rows(spread.round().astype(np.int64))
    report = require_coverage(alignment, sample, config.minimum_coverage)
    return PoolMember(source, Tokenizer(vocab, alignment, tokens or TokenConfig())), report
