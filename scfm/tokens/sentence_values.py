"""Sentences from what is given by hand: log-normalised values, or the words of a prompt.

in   CSR of log-normalised values; or words by column and bins by gene
out  CellBatch for inference: prompts, as scfm.tokens.sentence makes them of counts
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from scfm.batch import CellBatch
from scfm.data.gene_choice import find_genes
from scfm.errors import ConfigError, CountsError
from scfm.tokens.sentence import in_order
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.value_bins import value_bins
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.words import Words

LARGEST = 10.0  # log1p(1e4) = 9.2: counts per 10,000 cannot be more


def prompts_from_values(
    indptr: Int[np.ndarray, " bound"],
    genes: Int[np.ndarray, " expressed"],
    values: Float[np.ndarray, " expressed"],
    vocab: GeneVocab,
    config: SentenceConfig | None = None,
    task: str = "annotate",
) -> CellBatch:
    """Prompts of cells whose values are log1p of counts per 10,000 already.

    Parameters
    ----------
    genes
        Positions among the vocabulary's genes, ascending within a cell.
    values
        In nats, above 0.
    task
        "annotate" or "complete": genes and the task's word.

    Raises
    ------
    CountsError
        A value is not above 0, is no number, or larger than any logarithm of a share can be.
    """
    config = config or SentenceConfig()
    task_id, n_cells = Words(vocab).task_id(task), len(indptr) - 1
    if task == "generate":
        raise ConfigError("A prompt for generation has no cell to begin with; take prompt_of.")
    _check_values(values)
    bins = value_bins(indptr, values, config.n_bins)
    cell = np.repeat(np.arange(n_cells), np.diff(indptr))
    said = np.lexsort((-genes if config.prompt_order == "reversed" else genes, cell))
    offsets = indptr + np.arange(n_cells + 1)
    is_gene = np.ones(offsets[-1], dtype=bool)
    is_gene[offsets[1:] - 1] = False
    ids, shown = np.full(len(is_gene), task_id, np.int64), np.zeros(len(is_gene), np.float32)
    ids[is_gene], shown[is_gene] = vocab.gene_start + genes[said], bins[said]
    totals = np.bincount(cell, weights=np.expm1(values.astype(np.float64)), minlength=n_cells)
    return _prompts(ids, shown, offsets, totals)


def prompt_of(
    words: Mapping[str, str | Sequence[str]],
    genes: Mapping[str, int],
    vocab: GeneVocab,
    task: str = "generate",
    *,
    columns: Sequence[str] = (),
    n_bins: int = 10,
    n_cells: int = 1,
) -> CellBatch:
    """A prompt of words and genes, ``n_cells`` times.

    For "generate" the words, <SPToken1>, then the genes with their bins; for the other tasks genes
    come first.

    Parameters
    ----------
    words
        The word of each column: its text or its ontology id.
    genes
        Bin of each gene, 0 (not expressed) to ``n_bins``; symbols, other names or Ensembl ids.
    columns
        The order in which words are said; without it the vocabulary's.

    Raises
    ------
    ConfigError
        A word or gene the vocabulary does not know (with the nearest), two words of one column, a
        gene twice, a bin that there is not.
    """
    known = Words(vocab)
    said = _word_ids(words, known, in_order(words, columns or tuple(known.columns)))
    gene_ids, bins = _gene_ids(genes, vocab, n_bins)
    parts = [(said, [0] * len(said)), ([known.task_id(task)], [0]), (gene_ids, bins)]
    if task != "generate":
        parts = [parts[2], parts[0], parts[1]]
    ids = np.concatenate([np.array(part, np.int64) for part, _ in parts])
    values = np.concatenate([np.array(part, np.float32) for _, part in parts])
    offsets = np.arange(n_cells + 1) * len(ids)
    return _prompts(np.tile(ids, n_cells), np.tile(values, n_cells), offsets, np.zeros(n_cells))


def _word_ids(
    words: Mapping[str, str | Sequence[str]], known: Words, columns: Sequence[str]
) -> list[int]:
    """Ids of a prompt's words, each once."""
    said: list[int] = []
    for column in columns:
        texts = [words[column]] if isinstance(words[column], str) else words[column]
        ids = {known.id_of(column, str(text)) for text in texts}
        if len(ids) > 1:
            named = " and ".join(repr(known.text_of(word)) for word in sorted(ids))
            raise ConfigError(
                f"The prompt contradicts itself: {column} is {named}. Name one of them."
            )
        said += [word for word in ids if word not in said]
    return said


def _gene_ids(
    genes: Mapping[str, int], vocab: GeneVocab, n_bins: int
) -> tuple[list[int], list[int]]:
    if not genes:
        return [], []
    positions = find_genes(list(genes), vocab.symbols, vocab.ensembl_ids)
    for name, value in genes.items():
        if not 0 <= value <= n_bins:
            raise ConfigError(
                f"The prompt gives gene {name} the bin {value}; wanted a whole number from 0 (not "
                f"expressed) to {n_bins} (as the cell's most expressed gene)."
            )
    return [vocab.gene_start + int(p) for p in positions], list(genes.values())


def _prompts(
    ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, totals: np.ndarray
) -> CellBatch:
    depth = np.log10(np.maximum(totals, 1)).astype(np.float32)
    return CellBatch(
        gene_ids=ids,
        values=values,
        offsets=offsets.astype(np.int32),
        is_target=np.zeros(len(ids), dtype=bool),
        target_values=np.zeros(len(ids), dtype=np.float32),
        library_size=totals.astype(np.float32),
        source_depth=depth,
        target_depth=depth,
        cell_index=np.arange(len(totals), dtype=np.int64),
    )


def _check_values(values: np.ndarray) -> None:
    n_wrong = int((~(values > 0) | ~np.isfinite(values)).sum())
    if n_wrong:
        raise CountsError(
            f"{n_wrong:,} of {len(values):,} values are not above 0 or no number. Wanted log1p of "
            "counts per 10,000, not scaled ones."
        )
    if values.max(initial=0) >= LARGEST:
        raise CountsError(
            f"The largest value is {values.max():,.6g}; log1p of counts per 10,000 is below "
            f"{LARGEST:.0f}. For raw counts take scfm.tl.annotate."
        )
