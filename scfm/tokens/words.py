"""The words of a vocabulary: which obs columns they belong to, and what a user may call them.

in   a GeneVocab that has words
out  Words: ids by column and text, or a refusal with the nearest words; ids of the task words

A word is the value of an obs column. One that two columns share ("B cell" of a coarse and of a fine
type) is one token of both. One that is spelled like another token (a gene) is "column:value" in the
vocabulary, and the value alone to the user.
"""

import difflib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from scfm.errors import ConfigError, ModelError
from scfm.tokens.vocab import SPECIAL, GeneVocab

END, ANNOTATE, GENERATE, COMPLETE = "<E>", "<PCT>", "<SPToken1>", "<SPToken2>"
TASK_WORDS = {"annotate": ANNOTATE, "generate": GENERATE, "complete": COMPLETE}
NEAREST = 3


class Words:
    """What a vocabulary's words mean.

    Attributes
    ----------
    columns
        The ids of each obs column's words, ascending; columns in the order that prompts have.
    types
        The columns that name a cell's type, coarse first; a column may be there twice, where its
        words serve for both. Not the vocabulary's to say: it comes with the model.
    """

    def __init__(self, vocab: GeneVocab, types: Sequence[str] = ()):
        if not vocab.kinds:
            raise ModelError(
                f"This vocabulary knows {vocab.n_genes:,} genes and no words for what a cell is "
                "(organ, cell_type, ...), which annotation and generation by words need. Take a "
                "model of family scmulan."
            )
        self.vocab = vocab
        self.columns = _columns(vocab)
        self.types = tuple(types)
        for column in self.types:
            self._require(column)

    @property
    def end_id(self) -> int:
        """<E>: nothing more is to be said."""
        return self.vocab.id_of(END)

    @property
    def annotate_id(self) -> int:
        """<PCT>: the cell's types follow."""
        return self.vocab.id_of(ANNOTATE)

    @property
    def generate_id(self) -> int:
        """<SPToken1>: genes follow."""
        return self.vocab.id_of(GENERATE)

    @property
    def complete_id(self) -> int:
        """<SPToken2>: words not yet said follow."""
        return self.vocab.id_of(COMPLETE)

    def task_id(self, task: str) -> int:
        """The word that asks for a task: "annotate", "generate" or "complete"."""
        if task not in TASK_WORDS:
            raise ConfigError(f"task is {task!r}; known are {', '.join(TASK_WORDS)}.")
        return self.vocab.id_of(TASK_WORDS[task])

    def is_gene(self, ids: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Which of these ids are genes."""
        start = self.vocab.gene_start
        return (ids >= start) & (ids < start + self.vocab.n_genes)

    def type_ids(self, column: str) -> tuple[int, ...]:
        """Ids of a type column's words."""
        return self._require(column)

    def text_of(self, word_id: int) -> str:
        """A word as the data spell it: without the column put before one spelled like a gene."""
        token = self.vocab.tokens[word_id]
        for column in self._columns_of(word_id):
            value = token.removeprefix(f"{column}:")
            if value != token and not _may_be_token(value, self.vocab):
                return value
        return token

    def ontology_id_of(self, word_id: int) -> str:
        """A word's ontology id ("CL:0000236"), "" where none is known."""
        place = word_id - self._first
        return self.vocab.ontology_ids[place] if self.vocab.ontology_ids else ""

    def find(self, column: str, text: str) -> int | None:
        """Id of a column's word by its text, its ontology id, or its text in any one letter case.

        None where there is none, or several in other letter cases. Raises ConfigError for a column
        without words.
        """
        self._require(column)
        names, text = self._names[column], text.strip()
        return names.get(text, names.get(text.casefold()))

    def id_of(self, column: str, text: str) -> int:
        """The same; ConfigError that names the nearest words where there is none."""
        found = self.find(column, text)
        if found is None:
            raise ConfigError(self._unknown(column, text))
        return found

    @property
    def _first(self) -> int:
        """Id of the first special token after the genes."""
        return self.vocab.gene_start + self.vocab.n_genes

    @cached_property
    def _names(self) -> dict[str, dict[str, int]]:
        """By column, every name a word may be called by; exact texts before other letter cases."""
        return {column: self._names_of(ids) for column, ids in self.columns.items()}

    def _names_of(self, ids: tuple[int, ...]) -> dict[str, int]:
        exact = {self.text_of(i): i for i in ids} | {self.vocab.tokens[i]: i for i in ids}
        ontology = {self.ontology_id_of(i): i for i in ids if self.ontology_id_of(i)}
        folded: dict[str, set[int]] = {}
        for name, word_id in (exact | ontology).items():
            folded.setdefault(name.casefold(), set()).add(word_id)
        in_any_case = {name: min(ids) for name, ids in folded.items() if len(ids) == 1}
        return in_any_case | ontology | exact

    def _columns_of(self, word_id: int) -> list[str]:
        place = word_id - self._first
        kind = self.vocab.kinds[place] if place >= 0 else SPECIAL
        return [] if kind == SPECIAL else kind.split(",")

    def _require(self, column: str) -> tuple[int, ...]:
        if column not in self.columns:
            raise ConfigError(
                f"The model has no words of {column!r}; it has words of "
                f"{', '.join(self.columns)}. Name one of these."
            )
        return self.columns[column]

    def _unknown(self, column: str, text: str) -> str:
        own = [self.text_of(i) for i in self.columns[column]]
        same = [name for name in own if name.casefold() == text.casefold()]
        near = same or nearest_texts(text, own)
        elsewhere = [c for c in self.columns if c != column and self.find(c, text) is not None]
        hint = f" {text!r} is a word of {' and '.join(elsewhere)}." if elsewhere else ""
        which = f"the nearest are {', '.join(map(repr, near))}" if near else f"such as {own[0]!r}"
        return (
            f"{text!r} is none of the {len(own):,} words of {column} that the model knows; "
            f"{which}.{hint} Its vocab.tsv lists them all."
        )


def nearest_texts(text: str, known: Sequence[str]) -> list[str]:
    """The known texts that look most like ``text``: in letters, or as part of one another."""
    folded = {name.casefold(): name for name in known}
    wanted = text.casefold()
    near = difflib.get_close_matches(wanted, folded, n=NEAREST, cutoff=0.6)
    parts = sorted((n for n in folded if wanted and wanted in n and n not in near), key=len)
    return [folded[name] for name in (near + parts)[:NEAREST]]


def _columns(vocab: GeneVocab) -> dict[str, tuple[int, ...]]:
    """Ids by column. A word stands with the first of its columns, so these come as in prompts.

    A column whose words are all another's, too, comes after the others that they name before it.
    """
    first = vocab.gene_start + vocab.n_genes
    found: dict[str, list[int]] = {}
    block: dict[str, tuple[int, int]] = {}
    for place, kind in enumerate(vocab.kinds):
        for nth, column in enumerate(kind.split(",") if kind != SPECIAL else ()):
            found.setdefault(column, []).append(first + place)
            if nth == 0:
                block.setdefault(column, (place, 0))
    for kind in vocab.kinds:
        for nth, column in enumerate(kind.split(",") if kind != SPECIAL else ()):
            if column not in block or block[column][1]:  # shared words only
                others = kind.split(",")[:nth]
                after = (max(block[other][0] for other in others), nth)
                block[column] = max(block.get(column, after), after)
    return {column: tuple(found[column]) for column in sorted(found, key=lambda c: block[c])}


def _may_be_token(text: str, vocab: GeneVocab) -> bool:
    """Whether a word could stand in this vocabulary without its column before it."""
    taken = text in vocab.specials_before or text in vocab.symbols or text in TASK_WORDS.values()
    return not taken and not text.startswith("#")
