"""What scfm.tl.gene_embedding and scfm.tl.denoise share: genes chosen, depths watched, settings.

in   a vocabulary and names; an opened input; a stream of DecodedCells
out  positions of genes; warnings; what is kept in uns["scfm"]
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from scfm.data.gene_choice import find_genes
from scfm.data.gene_report import GeneReport
from scfm.errors import ScfmWarning
from scfm.model.base import CellModel
from scfm.tasks.decoding import DecodedCells
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import TargetDepth, warn_if_below
from scfm.tokens.vocab import GeneVocab
from scfm.tools.embedding import model_id
from scfm.version import __version__

NAMES_SHOWN = 5


def chosen_genes(vocab: GeneVocab, names: Sequence[str] | None) -> Int[np.ndarray, " gene"]:
    """Positions of the genes named, or of all. Raises ConfigError for unknown ones."""
    if names is None:
        return np.arange(vocab.n_genes)
    return find_genes(names, vocab.symbols, vocab.ensembl_ids)


def say_unmeasured(member: PoolMember, genes: Int[np.ndarray, " gene"]) -> None:
    """Warn of chosen genes that the data has no column for."""
    symbols = member.tokenizer.vocab.symbols
    absent = np.setdiff1d(genes, member.tokenizer.tables.measured)
    if len(absent):
        shown = ", ".join(symbols[gene] for gene in absent[:NAMES_SHOWN])
        warnings.warn(
            f"{len(absent):,} of the {len(genes):,} genes asked for are not measured in "
            f"{member.source.name} ({shown}{', ...' if len(absent) > NAMES_SHOWN else ''}); the "
            "model takes them for not expressed.",
            ScfmWarning,
            stacklevel=3,
        )


class Depths:
    """Depths of the cells that went by: S and T of each, kept to warn once at the end."""

    def __init__(self) -> None:
        self.source: list[np.ndarray] = []
        self.target: list[np.ndarray] = []

    def watch(self, decoded: Iterator[DecodedCells]) -> Iterator[DecodedCells]:
        for cells in decoded:
            self.source.append(cells.source_depth)
            self.target.append(cells.target_depth)
            yield cells

    def warn_if_below(self) -> None:
        """Warn where the depth asked for was below what was shown."""
        warn_if_below(np.concatenate(self.source), np.concatenate(self.target))


def decoder_settings(
    model: CellModel,
    member: PoolMember,
    report: GeneReport,
    target_depth: TargetDepth,
) -> dict[str, Any]:
    """What made a result: enough to make it again."""
    return {
        "scfm_version": __version__,
        "weights_sha256": model_id(model),
        "target_depth": str(target_depth),
        "counts_from": member.source.counts_from,
        "genes": report.to_dict(),
    }
