"""The names a file gives its columns -> what each means for a vocabulary.

in   var, the vocabulary's symbols and Ensembl ids
out  read_names: what the names in each column of var mean, best column first, in one species;
     settle: the meaning of every column of the data, once the names are weighed against each other

The rules of the look-up are told in scfm.data.genes, which reports on the result.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from scfm.data.gene_tables import ENSEMBL_ID, GeneNames, Species, gene_names

# what a name means, where it is no position in the vocabulary
OUTSIDE, AMBIGUOUS, UNRECOGNISED = -1, -2, -3

_MADE_UNIQUE = re.compile(r"(.+)[-.]\d{1,2}", re.ASCII)


class VocabularyGenes:
    """Positions of a vocabulary's genes, by its own names and as genes of the tables."""

    def __init__(self, symbols: Sequence[str], ensembl_ids: Sequence[str]) -> None:
        assert len(symbols) == len(ensembl_ids), (len(symbols), len(ensembl_ids))
        self.symbols = symbols
        self.by_symbol = {symbol: position for position, symbol in enumerate(symbols)}
        self.by_id = {gene_id: position for position, gene_id in enumerate(ensembl_ids) if gene_id}
        self.by_gene: dict[str, int] = {}
        human = gene_names("human")
        approved = [human.approved.get(symbol) for symbol in symbols]
        # a vocabulary may hold an old name beside the approved one: the approved one is the gene
        older = [
            human.by_id.get(gene_id) or human.other_names.get(symbol, ("", None))[1]
            for symbol, gene_id in zip(symbols, ensembl_ids, strict=True)
        ]
        for genes in (approved, older):
            for position, gene in enumerate(genes):
                if gene is not None and (genes is approved or approved[position] is None):
                    self.by_gene.setdefault(gene, position)

    def meaning(self, name: str, names: GeneNames) -> int:
        """Position of the gene that ``name`` means, or OUTSIDE, AMBIGUOUS, UNRECOGNISED."""
        is_human = names.species == "human"
        if is_human and name in self.by_symbol:
            return self.by_symbol[name]
        if name.startswith("ENS") and (match := ENSEMBL_ID.fullmatch(name)):
            name = match[1]
            if is_human and name in self.by_id:
                return self.by_id[name]
            gene = names.by_id.get(name)
        else:
            gene = names.approved.get(name) or names.other_names.get(name, ("", None))[1]
        if gene is not None:
            return self.by_gene.get(gene, OUTSIDE)
        if name in names.unpaired:
            return OUTSIDE
        return AMBIGUOUS if name in names.ambiguous else UNRECOGNISED


@dataclass(frozen=True)
class Reading:
    """One column of names, read as the genes of one species.

    ``unique[codes]`` are the names of the columns; ``meanings`` belong to ``unique``.
    """

    place: str
    species: Species
    codes: Int[np.ndarray, " column"]
    unique: list[str]
    meanings: Int[np.ndarray, " name"]

    @property
    def names(self) -> Shaped[np.ndarray, " column"]:
        return np.array(self.unique, dtype=object)[self.codes]

    @property
    def recognised(self) -> int:
        """Names that are one known gene."""
        return int((self.meanings >= OUTSIDE).sum())

    @property
    def rank(self) -> tuple[int, int]:
        return self.recognised, int((self.meanings >= 0).sum())

    @property
    def kind(self) -> str:
        """Ensembl ids (with version) or symbols: what most of the names are."""
        matches = [ENSEMBL_ID.fullmatch(name) for name in self.unique if name]
        ids = [match for match in matches if match]
        if 2 * len(ids) <= len(matches):
            return "symbols"
        has_version = 2 * sum(match[2] is not None for match in ids) > len(ids)
        return "Ensembl ids with version" if has_version else "Ensembl ids"


@dataclass(frozen=True)
class Columns:
    """What every column is called and means; ``sources`` says where the names were read."""

    names: Shaped[np.ndarray, " column"]
    meanings: Int[np.ndarray, " column"]
    sources: str


def read_names(var: pd.DataFrame, vocabulary: VocabularyGenes, species: str) -> list[Reading]:
    """The columns of names that are worth reading, best first, all as genes of one species."""
    wanted: tuple[Species, ...] = ("human", "mouse")
    columns = _name_columns(var)
    readings = [
        Reading(
            place=place,
            species=one,
            codes=codes,
            unique=unique,
            meanings=np.array(
                [vocabulary.meaning(name, gene_names(one)) for name in unique], dtype=np.int64
            ),
        )
        for one in wanted
        if species in ("auto", one)
        for place, codes, unique in columns
    ]
    # the sort is stable: where they tie, human before mouse and the index before other columns
    readings.sort(key=lambda reading: reading.rank, reverse=True)
    best = readings[0]
    return [
        reading
        for reading in readings
        if reading.species == best.species and 2 * reading.recognised >= best.recognised
    ]


def settle(readings: list[Reading], vocabulary: VocabularyGenes) -> Columns:
    """Meaning of every column, once the names of the data are weighed against each other.

    Columns that the best reading does not recognise, or finds ambiguous, take their meaning from
    the next one, unless it is a gene that another column is already.
    """
    first, *others = readings
    meanings, names = _within(first, vocabulary), first.names
    sources = f"{first.kind} in {first.place}"
    for other in others:
        theirs = _within(other, vocabulary)
        is_open = (meanings <= AMBIGUOUS) & (theirs >= OUTSIDE)
        is_filled = is_open & ~np.isin(theirs, meanings[meanings >= 0])
        if is_filled.any():
            meanings = np.where(is_filled, theirs, meanings)
            names = np.where(is_filled, other.names, names)
            sources += f", {is_filled.sum():,} by {other.place}"
    return Columns(names, meanings, sources)


def _name_columns(var: pd.DataFrame) -> list[tuple[str, np.ndarray, list[str]]]:
    """The index and the string columns: place, code of each row, and the unique names."""
    columns = [("var.index", var.index.to_series())]
    columns += [(f"var[{label!r}]", column) for label, column in var.items()]
    found = []
    for place, column in columns:
        values = column.astype(object)
        if place == "var.index" or any(isinstance(value, str) for value in values):
            names = [value if isinstance(value, str) else "" for value in values]
            codes, unique = pd.factorize(np.array(names, dtype=object))
            found.append((place, codes, list(unique)))
    return found


def _within(reading: Reading, vocabulary: VocabularyGenes) -> Int[np.ndarray, " column"]:
    """Meaning of every column by one reading: spare aliases and names made unique seen to."""
    meanings = _without_spare_aliases(reading, vocabulary)
    settled = meanings.copy()
    code_of = {name: code for code, name in enumerate(reading.unique)}
    for code in np.flatnonzero(meanings == UNRECOGNISED):
        made_unique = _MADE_UNIQUE.fullmatch(reading.unique[code])
        if made_unique and made_unique[1] in code_of:
            settled[code] = meanings[code_of[made_unique[1]]]
    return settled[reading.codes]


def _without_spare_aliases(
    reading: Reading, vocabulary: VocabularyGenes
) -> Int[np.ndarray, " name"]:
    """An alias of a gene that the data also names by another name becomes ambiguous."""
    meanings = reading.meanings.copy()
    other_names = gene_names(reading.species).other_names
    is_alias = np.array(
        [
            other_names.get(name, ("", ""))[0] == "alias" and name not in vocabulary.by_symbol
            for name in reading.unique
        ],
        dtype=bool,
    )
    is_spare = is_alias & (meanings >= 0) & np.isin(meanings, meanings[~is_alias])
    meanings[is_spare] = AMBIGUOUS
    return meanings
