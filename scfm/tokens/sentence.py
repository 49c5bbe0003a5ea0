"""CSR rows of raw counts -> sentences of cells, for inference and for training.

in   CountRows of a source, which of its columns is which gene; in training obs columns of words
out  CellBatch: words in the order they are said. A gene's value is its bin (1 to n_bins), that of
     any other word 0. In training the words to say (`is_target`) follow the prompt, <E> last

A model of sentences sees what was said before, so the order of words matters. It hangs on the cell
and its key alone, never on the batch or the order of the columns.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, NoReturn

import numpy as np
from jaxtyping import Float, Int, Int32, UInt64

from scfm.batch import CellBatch
from scfm.data.counts import CellSource, CountRows
from scfm.errors import ConfigError
from scfm.tokens.gather import csr_arrays, longest_row
from scfm.tokens.packed import CellTokenizer, as_batch, new_tokens
from scfm.tokens.sentence_cells import (
    REVERSED,
    SHUFFLED,
    SORTED,
    SentenceSettings,
    new_sentence_scratch,
    prompt_cells,
    training_cells,
)
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.tables import Alignment, DatasetAlignment
from scfm.tokens.target_depth import TargetDepth
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.word_labels import Labelled, word_ids
from scfm.tokens.words import Words

ORDERS = {"sorted": SORTED, "reversed": REVERSED, "shuffled": SHUFFLED}


class SentenceTokenizer(CellTokenizer):
    """The sentences of the scMulan family.

    ``source`` is where the cells come from: its obs columns are read, once, when a training example
    or a prompt with words of obs is first asked for.
    """

    n_specials: ClassVar[int] = 1  # the task word of `shown`, after the genes

    def __init__(
        self,
        vocab: GeneVocab,
        alignments: Alignment | Sequence[DatasetAlignment],
        config: SentenceConfig | None = None,
        source: CellSource | Labelled | None = None,
        duplicates: str = "sum",
    ):
        super().__init__(vocab, alignments, config or SentenceConfig(), duplicates)
        self.words, self.source = Words(vocab, self.config.types), source
        self._types = np.array([self.config.columns.index(c) for c in self.words.types], np.int64)

    def shown(
        self, rows: CountRows, target_depth: float | Float[np.ndarray, " cell"] | None = None
    ) -> CellBatch:
        """Prompts for annotation: all expressed genes in ``prompt_order``, then <PCT>."""
        if target_depth is not None:
            _refuse_depth()
        return self.prompts(rows, "annotate")

    def prompts(
        self,
        rows: CountRows,
        task: str,
        words: Mapping[str, str] | Sequence[str] = (),
    ) -> CellBatch:
        """Prompts for a task, of real cells.

        Parameters
        ----------
        task
            "annotate": genes, <PCT>. "generate": words, <SPToken1>. "complete": genes, words,
            <SPToken2>.
        words
            What is told of the cells: a text for each column, the same for all of them; or columns
            of their obs. Said in the order of ``config.columns`` (without these, the
            vocabulary's).

        Raises
        ------
        ConfigError
            No such task or word, or words where the task has none.
        LabelError
            The cells have no such obs column.
        """
        task_id = self.words.task_id(task)
        if len(words) and task == "annotate":
            raise ConfigError(
                "An annotation is asked for with genes alone; words were given: "
                f"{', '.join(words)}. Take task='complete' to tell some and ask for the others."
            )
        told = self._told(rows, words)
        indptr, indices, counts = csr_arrays(self._one_a_gene(rows))
        scratch = new_sentence_scratch(longest_row(indptr), self.n_genes, told.shape[1], counts)
        out = new_tokens(rows.n_cells, int(indptr[-1]) + (told.shape[1] + 1) * rows.n_cells)
        settings = self._settings(self.config.prompt_order)
        prompt_cells(
            *(indptr, indices, counts, self.tables, self._datasets(rows), told, task_id),
            *(task != "generate", settings, scratch, out),
        )
        return as_batch(out, rows)

    def training(self, rows: CountRows, keys: UInt64[np.ndarray, " cell"]) -> CellBatch:
        """Sentences with what is to be said after the prompt; see `SentenceConfig`.

        Raises LabelError where the cells lack a column of words.
        """
        assert len(keys) == rows.n_cells, "one key a cell"
        rows = self._whole(self._one_a_gene(rows), keys)
        words = self._labels[rows.cell_index].astype(np.int64)
        indptr, indices, counts = csr_arrays(rows)
        scratch = new_sentence_scratch(longest_row(indptr), self.n_genes, words.shape[1], counts)
        out = new_tokens(rows.n_cells, int(self.most_tokens(np.diff(indptr)).sum()))
        training_cells(
            *(indptr, indices, counts, self.tables, self._datasets(rows), words, self._types),
            *(self._settings(self.config.gene_order), scratch, out, np.ascontiguousarray(keys)),
        )
        return as_batch(out, rows, np.zeros(len(out.gene_ids), dtype=bool))

    def most_tokens(self, n_expressed: Int[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """Genes, words, the task word and <E>."""
        genes = np.minimum(np.minimum(n_expressed, self.config.max_genes), self.n_genes)
        return (genes + len(self.config.columns) + 2).astype(np.int64)

    def asked_for(self, cells: CellBatch, target_depth: TargetDepth) -> CellBatch:
        if target_depth.kind != "source":
            _refuse_depth()
        return cells

    @cached_property
    def _labels(self) -> Int32[np.ndarray, "cell column"]:
        """The words of all of the source's cells. Two threads may both make it: it is the same."""
        assert self.source is not None, "training needs the source whose cells these are"
        if not self.config.columns:
            raise ConfigError(
                "tokens.columns is empty: name the obs columns whose values a model is to say, "
                "such as --set tokens.columns='[tissue,cell_type]'."
            )
        return word_ids(self.source, self.words, self.config, self.config.columns)

    def _told(
        self, rows: CountRows, words: Mapping[str, str] | Sequence[str]
    ) -> Int[np.ndarray, "cell column"]:
        """Ids of the words a prompt tells of each cell."""
        columns = in_order(words, self.config.columns or tuple(self.words.columns))
        if not columns:
            return np.zeros((rows.n_cells, 0), dtype=np.int64)
        if isinstance(words, Mapping):
            ids = [self.words.id_of(column, words[column]) for column in columns]
            return np.tile(np.array(ids, dtype=np.int64), (rows.n_cells, 1))
        assert self.source is not None, "words of obs need the source whose cells these are"
        found = word_ids(self.source, self.words, self.config, columns)
        return found[rows.cell_index].astype(np.int64)

    def _settings(self, order: str) -> SentenceSettings:
        words, config = self.words, self.config
        return SentenceSettings(
            n_genes=self.n_genes,
            gene_start=self.vocab.gene_start,
            end_id=words.end_id,
            annotate_id=words.annotate_id,
            generate_id=words.generate_id,
            complete_id=words.complete_id,
            n_bins=config.n_bins,
            max_genes=config.max_genes,
            order=ORDERS[order],
            annotate_share=config.annotate_share,
            generate_share=config.generate_share,
        )


def in_order(named: Iterable[str], columns: Sequence[str]) -> list[str]:
    """The columns named, in the order of ``columns``; others after them, as given."""
    place = {column: number for number, column in enumerate(columns)}
    return sorted(named, key=lambda column: place.get(column, len(place)))


def _refuse_depth() -> NoReturn:
    raise ConfigError(
        "A model of family scmulan shows a cell as it is: no read depth can be asked of it. Leave "
        "target_depth out."
    )
