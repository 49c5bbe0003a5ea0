"""Real cells, and the same cells as if sequenced less deeply.

in   any data a user may name, a model's vocabulary, how many cells
out  RealCells: raw counts on the vocabulary's measured genes; thin: binomially thinned counts
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from scfm.data.blocked import in_blocks
from scfm.data.counts import CountRows
from scfm.data.genes import GeneReport
from scfm.errors import InputError
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.tables import GeneTables
from scfm.tokens.vocab import GeneVocab

if TYPE_CHECKING:
    from anndata import AnnData

SHARES = (0.01, 0.05, 0.1, 0.2)  # of the counts, as in Hao et al. 2024
LEAST_CELLS = 10


@dataclass(frozen=True)
class RealCells:
    """Cells as measured, as if only the model's genes had been.

    Attributes
    ----------
    counts
        Raw counts, cells by genes.
    genes
        Position of each column among the vocabulary's genes, ascending.
    judged
        Rows that are judged; the others are there for methods that look at many cells.
    labels
        Code of each cell's label, -1 for none; None where no labels were asked for.
    """

    name: str
    counts: sp.csr_matrix
    genes: Int[np.ndarray, " gene"]
    judged: Int[np.ndarray, " judged"]
    labels: Int[np.ndarray, " cell"] | None
    label_names: tuple[str, ...]
    report: GeneReport
    n_available: int

    @property
    def n_cells(self) -> int:
        return len(self.counts.indptr) - 1


def sample_cells(
    data: "str | Path | AnnData",
    vocab: GeneVocab,
    tokens: Any,
    *,
    label_key: str | None,
    n_judged: int,
    n_context: int,
    seed: int,
    config: InputConfig,
) -> RealCells:
    """Cells drawn without replacement: ``n_context`` (or all), ``n_judged`` of them judged.

    ``tokens`` is the model's ``token_config``, by which its vocabulary is understood.

    Raises what opening data raises; LabelError for a column that is not there; InputError where
    fewer than ten cells have counts on the model's genes.
    """
    member, report = open_input(data, vocab, config, tokens)
    source, rng = member.source, np.random.default_rng(seed)
    drawn = rng.choice(source.n_cells, min(n_context, source.n_cells), replace=False)
    drawn = np.sort(drawn)
    codes, names = (None, []) if label_key is None else in_blocks(source).column(label_key)
    counts = on_vocabulary(source.rows(drawn), member.tokenizer.tables, vocab.n_genes)
    has_counts = np.asarray(counts.sum(1)).ravel() > 0
    if has_counts.sum() < LEAST_CELLS:
        raise InputError(
            f"{source.name}: {has_counts.sum()} of the {len(drawn):,} cells looked at have counts "
            f"on the model's genes; wanted at least {LEAST_CELLS} to judge. Give more cells."
        )
    measured = np.unique(member.tokenizer.tables.measured).astype(np.int64)
    n_cells = int(has_counts.sum())
    return RealCells(
        name=source.name,
        counts=counts[has_counts][:, measured],
        genes=measured,
        judged=np.sort(rng.choice(n_cells, min(n_judged, n_cells), replace=False)),
        labels=None if codes is None else codes[drawn][has_counts].astype(np.int64),
        label_names=tuple(names),
        report=report,
        n_available=source.n_cells,
    )


def on_vocabulary(rows: CountRows, tables: GeneTables, n_genes: int) -> sp.csr_matrix:
    """Counts by the vocabulary's genes; columns of one gene add up, others are dropped."""
    row_of = np.repeat(np.arange(rows.n_cells), np.diff(rows.indptr))
    dataset = np.zeros(rows.n_cells, np.int64) if rows.dataset is None else rows.dataset
    gene = tables.slots[tables.table_of[dataset][row_of], rows.indices].astype(np.int64)
    used = gene < n_genes
    entries = (rows.counts[used].astype(np.int64), (row_of[used], gene[used]))
    return sp.csr_matrix(entries, shape=(rows.n_cells, n_genes))


def thin(counts: sp.csr_matrix, share: float, rng: np.random.Generator) -> sp.csr_matrix:
    """Every molecule kept with probability ``share``: Binomial(count, share), gene by gene."""
    thinned = counts.copy()
    thinned.data = rng.binomial(np.asarray(counts.data, dtype=np.int64), share)
    thinned.eliminate_zeros()
    return thinned
