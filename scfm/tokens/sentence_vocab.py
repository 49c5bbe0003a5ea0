"""The vocabulary of a model of sentences: genes, and the words its data have for cells.

in   PoolMembers opened with GeneVocab.human(), SentenceConfig
out  GeneVocab: <E>, genes in alphabetical order, words column by column, the task words
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from scfm.errors import ConfigError, LabelError
from scfm.tokens.pool import PoolMember
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.variable_genes import variable_genes
from scfm.tokens.vocab import SPECIAL, GeneVocab
from scfm.tokens.word_labels import column_of, says_something
from scfm.tokens.words import END, TASK_WORDS

MOST_WORDS = 4096  # of a column; of more, it is no kind of cell but something of each cell


def sentence_vocab(members: Sequence[PoolMember], config: SentenceConfig) -> GeneVocab:
    """Genes and words of some data, as ``config`` wants them.

    Parameters
    ----------
    members
        Files and stores as `scfm.tokens.inputs.open_input` opens them with `GeneVocab.human`.

    Raises
    ------
    LabelError
        The data lack a column that words are wanted of.
    ConfigError
        A column without a value that says something, or with too many.
    """
    positions = _gene_positions(members, config)
    human = GeneVocab.human()
    symbols = tuple(human.symbols[p] for p in positions)
    words = _words(members, config, taken={END, *TASK_WORDS.values(), *symbols})
    tasks = tuple(TASK_WORDS.values())
    return GeneVocab(
        symbols=symbols,
        ensembl_ids=tuple(human.ensembl_ids[p] for p in positions),
        specials_before=(END,),
        specials_after=(*(token for token, _, _ in words), *tasks),
        kinds=(*(kind for _, kind, _ in words), *(SPECIAL for _ in tasks)),
        ontology_ids=(*(term for _, _, term in words), *("" for _ in tasks)),
    )


def _gene_positions(
    members: Sequence[PoolMember], config: SentenceConfig
) -> Int[np.ndarray, " gene"]:
    if config.genes == "human":
        return np.arange(GeneVocab.human().n_genes)
    return variable_genes(members, config.n_genes)


def _words(
    members: Sequence[PoolMember], config: SentenceConfig, taken: set[str]
) -> list[tuple[str, str, str]]:
    """(token, columns it belongs to, ontology id) of every word, column by column."""
    found: list[_Word] = []
    for column in config.columns:
        for text, term in _values(members, config, column):
            same = [word for word in found if word.is_also(text, term)]
            if same:
                same[0].columns.append(column)
                same[0].term = same[0].term or term
            else:
                found.append(_Word(text, term, [column]))
    texts = [word.text for word in found]
    return [
        # a gene of that name, or another column's word of another id
        (
            word.token(texts.count(word.text) > 1 or word.text in taken),
            ",".join(word.columns),
            word.term,
        )
        for word in found
    ]


@dataclass
class _Word:
    text: str
    term: str  # ontology id, "" where there is none
    columns: list[str]

    def is_also(self, text: str, term: str) -> bool:
        """Whether another column's value is this word: the same text, and no other id."""
        return self.text == text and (self.term == term or not (self.term and term))

    def token(self, is_taken: bool) -> str:
        must = is_taken or self.text.startswith("#")
        return f"{self.columns[0]}:{self.text}" if must else self.text


def _values(
    members: Sequence[PoolMember], config: SentenceConfig, column: str
) -> list[tuple[str, str]]:
    """(text, ontology id) of a column's words, in order of the text.

    The names of one id are one word, called by its commonest name; a name of several ids belongs
    to that which it mostly comes with.
    """
    counts = _counted(members, config, column)
    counts = {text: terms for text, terms in counts.items() if says_something(text, config)}
    if not counts:
        raise ConfigError(
            f"tokens.columns names {column!r}, which has no value that says something. Leave it "
            "out."
        )
    if len(counts) > MOST_WORDS:
        raise ConfigError(
            f"tokens.columns names {column!r}, which has {len(counts):,} different values; a "
            f"column of words may have {MOST_WORDS:,}. Does it name every cell?"
        )
    names_of: dict[str, dict[str, int]] = {}
    alone = []
    for text, terms in counts.items():
        term = _commonest({term: n for term, n in terms.items() if term})
        if term:
            names_of.setdefault(term, {})[text] = sum(terms.values())
        else:
            alone.append((text, ""))
    return sorted(alone + [(_commonest(names), term) for term, names in names_of.items()])


def _counted(
    members: Sequence[PoolMember], config: SentenceConfig, column: str
) -> dict[str, dict[str, int]]:
    """Cells by text and ontology id, "" where there is none."""
    found: dict[str, dict[str, int]] = {}
    terms_of = _terms(members, config.ontology[column]) if column in config.ontology else None
    for number, member in enumerate(members):
        codes, texts = column_of(member.source, column)
        term_codes, terms = terms_of[number] if terms_of else (np.full(len(codes), -1), [])
        pairs, n_cells = np.unique(np.stack([codes, term_codes]), axis=1, return_counts=True)
        for (text, term), n in zip(pairs.T.tolist(), n_cells.tolist(), strict=True):
            if text >= 0:
                own = found.setdefault(texts[text].strip(), {})
                term = terms[term] if term >= 0 and ":" in terms[term] else ""
                own[term] = own.get(term, 0) + n
    return found


def _terms(members: Sequence[PoolMember], column: str) -> list[tuple[np.ndarray, list[str]]]:
    """A column of ontology ids of each member, empty where it has none; one of them must."""
    found, missing = [], []
    for member in members:
        try:
            found.append(column_of(member.source, column))
        except LabelError as error:
            missing.append(error)
            found.append((np.full(member.source.n_cells, -1), []))
    if len(missing) == len(members):
        raise missing[0]
    return found


def _commonest(counts: dict[str, int]) -> str:
    """The key counted most often, the first of them in order; "" of none."""
    return min(counts, key=lambda key: (-counts[key], key)) if counts else ""
