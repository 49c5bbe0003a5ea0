"""What obs says of cells -> word ids.

in   a source's obs columns, the words of a vocabulary, SentenceConfig
out  for each cell and column the id of its word, or -1
"""

import warnings
from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

from scfm.data.counts import CellSource
from scfm.data.split import group_codes
from scfm.errors import LabelError, ScfmWarning
from scfm.tokens.sentence_cells import NO_ID
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.words import Words

NAMES_SHOWN = 3


@runtime_checkable
class Labelled(Protocol):
    """A source that answers for its obs columns one by one: a store."""

    def column(self, name: str) -> tuple[Int[np.ndarray, " cell"], list[str]]: ...


def column_of(
    source: CellSource | Labelled, name: str
) -> tuple[Int[np.ndarray, " cell"], list[str]]:
    """An obs column as codes, -1 where it has no value, and texts. LabelError without it."""
    if isinstance(source, Labelled):
        return source.column(name)
    return group_codes(source.obs, name, source.name)


def says_something(text: str, config: SentenceConfig) -> bool:
    """Whether a value is not one of ``no_word``, in any letter case."""
    return text.strip().casefold() not in {value.casefold() for value in config.no_word}


def word_ids(
    source: CellSource | Labelled, words: Words, config: SentenceConfig, columns: Sequence[str]
) -> Int32[np.ndarray, "cell column"]:
    """Each cell's words, one of each column; -1 where the value is none.

    A value is looked up by its ontology id where the column has one, else by its text. Raises
    LabelError for a column the cells do not have, ConfigError for one without words; warns of
    values that are no word.
    """
    found = [_ids_of_column(source, words, config, column) for column in columns]
    return np.stack(found, axis=1)


def _ids_of_column(
    source: CellSource | Labelled, words: Words, config: SentenceConfig, column: str
) -> Int32[np.ndarray, " cell"]:
    codes, texts = column_of(source, column)
    found = [words.find(column, text) if says_something(text, config) else None for text in texts]
    ids = _taken(found, codes)
    if column in config.ontology:
        by_ontology = _ids_by_ontology(source, words, column, config.ontology[column], len(codes))
        ids = np.where(by_ontology == NO_ID, ids, by_ontology)
    _warn_of_unknown(source, column, codes, texts, ids, config)
    return ids


def _ids_by_ontology(
    source: CellSource | Labelled, words: Words, column: str, of_ids: str, n_cells: int
) -> Int32[np.ndarray, " cell"]:
    """Words by the ids in another column; none where these cells have no such column."""
    try:
        codes, terms = column_of(source, of_ids)
    except LabelError:  # ids help where they are there; the names alone will do
        return np.full(n_cells, NO_ID, np.int32)
    return _taken([words.find(column, term) if ":" in term else None for term in terms], codes)


def _taken(found: list[int | None], codes: np.ndarray) -> Int32[np.ndarray, " cell"]:
    ids = [NO_ID if word is None else word for word in found]
    return np.array([*ids, NO_ID], dtype=np.int32)[codes]


def _warn_of_unknown(
    source: CellSource | Labelled,
    column: str,
    codes: np.ndarray,
    texts: list[str],
    ids: np.ndarray,
    config: SentenceConfig,
) -> None:
    n_cells = np.bincount(codes[(ids == NO_ID) & (codes >= 0)], minlength=len(texts))
    unknown = [t for t, n in zip(texts, n_cells, strict=True) if n and says_something(t, config)]
    if unknown:
        of_them = np.isin(texts, unknown)
        shown = ", ".join(map(repr, unknown[:NAMES_SHOWN]))
        name = cast(CellSource, source).name
        warnings.warn(
            f"{n_cells[of_them].sum():,} cells of {name} have values of {column} that are no word "
            f"of the model ({shown}{', ...' if len(unknown) > NAMES_SHOWN else ''}): nothing is "
            "said of it for them. Rename the values as vocab.tsv spells them, or leave them.",
            ScfmWarning,
            stacklevel=2,
        )
