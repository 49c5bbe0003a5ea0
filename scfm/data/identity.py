"""Which gene each column of a file is, for a store of many files: a key that files share.

in   var, its species
out  GeneColumns: one key a column, no two alike, with symbol, Ensembl id and species beside it

A key is the gene's Ensembl id of today without version, where the tables of its species know the
column by an id, its symbol, or an older name that no other column claims; else the name as it
stands. A second column of one gene gets "KEY#2": nothing is summed, so that every column of every
file can be given back. Which of a model's genes a column is, scfm.data.genes decides from the
file's own names when the store is read; keys only line the files up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from jaxtyping import Bool

from scfm.data.gene_reading import Reading, VocabularyGenes, read_names
from scfm.data.gene_tables import ENSEMBL_ID, Species, gene_names, gene_table

_UNPRINTABLE = str.maketrans("\t\n\r\x00", "    ")  # a table of genes has one line a gene


@dataclass(frozen=True)
class GeneColumns:
    """The columns of one file as genes; the four lists are parallel.

    Attributes
    ----------
    keys
        What the store calls each column; all differ.
    symbols
        Symbol of today where the gene is known, else the file's own name, "" where that is an id.
    ensembl_ids
        Without version; "" where unknown.
    species
        "human" or "mouse".
    """

    keys: list[str]
    symbols: list[str]
    ensembl_ids: list[str]
    species: list[str]

    @property
    def is_mito(self) -> Bool[np.ndarray, " column"]:
        """Genes of the mitochondrial genome, which have "MT-" or "mt-" before their symbol."""
        return np.array([symbol[:3].upper() == "MT-" for symbol in self.symbols], dtype=bool)


@dataclass(frozen=True)
class _OwnGenes:
    """One species' names -> its own Ensembl ids of today."""

    by_id: dict[str, str]  # former and present ids
    by_symbol: dict[str, str]
    by_other_name: dict[str, str]  # previous symbols and aliases of exactly one gene
    symbols: dict[str, str]  # by id


def identify(var: pd.DataFrame, species: Species, vocabulary: VocabularyGenes) -> GeneColumns:
    """Give every column of a file its key.

    ``vocabulary`` decides nothing here but which columns of ``var`` hold names worth reading, as in
    scfm.data.genes.align.
    """
    readings = read_names(var, vocabulary, species)
    ids = _settled(readings, _own_genes(species))
    names = _names_as_they_stand(var, readings)
    species_of = ["mouse" if i.startswith("ENSMUSG") else "human" if i else species for i in ids]
    symbols = [
        _own_genes("mouse" if one == "mouse" else "human").symbols.get(gene_id) or _plain(name)
        for gene_id, one, name in zip(ids, species_of, names, strict=True)
    ]
    keys = list(_all_different(i or name for i, name in zip(ids, names, strict=True)))
    return GeneColumns(keys, symbols, ids, species_of)


def _settled(readings: list[Reading], own: _OwnGenes) -> list[str]:
    """Ensembl id of every column, "" where none is known."""
    ids = [""] * len(readings[0].codes)
    for reading in readings:
        claimed = set(ids)
        found = [_present_id(name, own) for name in reading.unique]
        for column, code in enumerate(reading.codes):
            # within one reading a gene may be there twice; a second reading only fills gaps
            if not ids[column] and found[code] not in claimed:
                ids[column] = found[code]
    # an older name beside the present one is probably another gene: only unclaimed ones are used
    claimed = set(ids)
    for reading in readings:
        for column, code in enumerate(reading.codes):
            gene_id = own.by_other_name.get(reading.unique[code], "")
            if not ids[column] and gene_id not in claimed:
                ids[column] = gene_id
                claimed.add(gene_id)
    return ids


def _present_id(name: str, own: _OwnGenes) -> str:
    """The Ensembl id that a name is, or that it is the present symbol of."""
    if name.startswith("ENS") and (match := ENSEMBL_ID.fullmatch(name)):
        return own.by_id.get(match[1], match[1])
    return own.by_symbol.get(name, "")


def _names_as_they_stand(var: pd.DataFrame, readings: list[Reading]) -> list[str]:
    """The best column of names; the index where that has none."""
    index = [str(name) for name in var.index]
    chosen = zip(readings[0].names, index, strict=True)
    return [(best or other).translate(_UNPRINTABLE).strip() or "unnamed" for best, other in chosen]


def _plain(name: str) -> str:
    return "" if ENSEMBL_ID.fullmatch(name) else name


def _all_different(keys: Iterator[str]) -> Iterator[str]:
    used: set[str] = set()
    for key in keys:
        number, candidate = 1, key
        while candidate in used:
            number += 1
            candidate = f"{key}#{number}"
        used.add(candidate)
        yield candidate


@cache
def _own_genes(species: Species) -> _OwnGenes:
    table = gene_table(species)
    pairs = list(zip(table["ensembl_id"], table["symbol"], strict=True))
    symbols = {gene_id: symbol for gene_id, symbol in pairs if gene_id}
    by_id = {gene_id: gene_id for gene_id in symbols}
    # where several genes bear one symbol the first one stands for it: approved genes come first
    by_symbol = {symbol: gene_id for gene_id, symbol in reversed(pairs) if symbol and gene_id}
    by_other_name: dict[str, str] = {}
    if species == "human":
        former = zip(table["former_id"], table["ensembl_id"], strict=True)
        by_id = {old: new for old, new in former if old and new} | by_id
        for name, (_, gene) in gene_names("human").other_names.items():
            gene_id = by_symbol.get(gene) or by_id.get(gene, "")
            if gene_id:
                by_other_name[name] = gene_id
    return _OwnGenes(by_id, by_symbol, by_other_name, symbols)
