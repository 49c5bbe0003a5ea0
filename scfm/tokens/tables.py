"""Which column is which gene, for the cells of one or of many data sets in one source.

in   an alignment, or one a data set, each with the columns that data set has
out  GeneTables: a few tables of slots and a few lists of measured genes that data sets share

Columns mean the same gene in most data sets of a store, so hundreds of data sets need one table: a
data set joins a table where they agree on all columns both have. No cell asks for the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from scfm.tokens.gather import column_slots


@runtime_checkable
class Alignment(Protocol):
    """What a tokenizer needs of scfm.data.genes.GeneAlignment.

    Attributes
    ----------
    column_to_gene
        For each column of the source its position among the vocabulary's genes, -1 where unused.
    measured
        The positions that occur there, ascending.
    """

    @property
    def column_to_gene(self) -> Int[np.ndarray, " column"]: ...

    @property
    def measured(self) -> Int[np.ndarray, " measured"]: ...


@dataclass(frozen=True)
class DatasetAlignment:
    """An alignment of one data set in a source whose columns are the union over many.

    Attributes
    ----------
    column_to_gene, measured
        As in `Alignment`, over all columns of the source.
    has_column
        Columns that this data set has; its cells have no counts in others.
    """

    column_to_gene: Int[np.ndarray, " column"]
    measured: Int[np.ndarray, " measured"]
    has_column: Bool[np.ndarray, " column"]


class GeneTables(NamedTuple):
    """What the kernels look up for a cell of data set ``d``.

    Attributes
    ----------
    slots
        (table, column) uint32: the gene of each column, ``n_genes`` where there is none. The
        cell's row is ``slots[table_of[d]]``.
    table_of
        (data set) int64.
    measured
        int32: lists of measured genes one after the other; the cell's is number ``list_of[d]``.
    bounds
        (list + 1) int64: where the lists begin and end.
    list_of
        (data set) int64.
    """

    slots: np.ndarray
    table_of: np.ndarray
    measured: np.ndarray
    bounds: np.ndarray
    list_of: np.ndarray

    @classmethod
    def of(cls, alignments: Alignment | Sequence[DatasetAlignment], n_genes: int) -> "GeneTables":
        """Tables of one alignment, or of one a data set in the order of their codes."""
        if not isinstance(alignments, Sequence):
            tables, table_of = [column_slots(alignments.column_to_gene, n_genes)], [0]
            lists, list_of = [_measured(alignments)], [0]
        else:
            assert alignments, "an alignment of nothing"
            merged, table_of = _merged(alignments)
            tables = [column_slots(column_to_gene, n_genes) for column_to_gene in merged]
            lists, list_of = _distinct([_measured(alignment) for alignment in alignments])
        return cls(
            slots=np.stack(tables),
            table_of=np.array(table_of, dtype=np.int64),
            measured=np.concatenate(lists),
            bounds=np.concatenate([[0], np.cumsum([len(some) for some in lists])]).astype(np.int64),
            list_of=np.array(list_of, dtype=np.int64),
        )

    @property
    def n_datasets(self) -> int:
        return len(self.table_of)


def _measured(alignment: Alignment) -> Int[np.ndarray, " measured"]:
    genes = np.ascontiguousarray(alignment.measured, dtype=np.int32)
    used = alignment.column_to_gene[alignment.column_to_gene >= 0]
    assert np.isin(used, genes).all(), "a column's gene is not among the measured"
    return genes


def _merged(alignments: Sequence[DatasetAlignment]) -> tuple[list[np.ndarray], list[int]]:
    """Tables in which no data set's columns contradict it, and each data set's table."""
    tables: list[np.ndarray] = []
    filled: list[np.ndarray] = []  # columns whose gene a table's data sets have settled
    table_of = []
    for alignment in alignments:
        theirs, has_column = alignment.column_to_gene, alignment.has_column
        agreeing = (
            number
            for number, ours in enumerate(tables)
            if (ours == theirs)[filled[number] & has_column].all()
        )
        number = next(agreeing, len(tables))
        if number == len(tables):
            tables.append(np.full(len(theirs), -1, dtype=np.int32))
            filled.append(np.zeros(len(theirs), dtype=bool))
        tables[number][has_column] = theirs[has_column]
        filled[number] |= has_column
        table_of.append(number)
    return tables, table_of


def _distinct(lists: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """Each list once, and which of them every one is."""
    numbers: dict[bytes, int] = {}
    list_of = [numbers.setdefault(some.tobytes(), len(numbers)) for some in lists]
    return [np.frombuffer(raw, dtype=np.int32) for raw in numbers], list_of
