"""What scfm.tl.gene_embedding and scfm.tl.denoise share: genes chosen, settings.

in   a vocabulary and names; an opened input
out  positions of genes; a warning; what is kept in uns["scfm"]
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from scfm.data.gene_choice import find_genes
from scfm.data.gene_report import GeneReport
from scfm.errors import ScfmWarning
from scfm.model.base import CellModel
from scfm.tokens.pool import PoolMember
from scfm.tokens.target_depth import TargetDepth
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
