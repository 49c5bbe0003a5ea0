"""Small count matrices for the tokens' tests, dense where the reference wants them dense."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from scfm.data.counts import CountRows
from scfm.tokens.vocab import GeneVocab


@dataclass(frozen=True)
class ColumnGenes:
    """What a Tokenizer needs of an alignment."""

    column_to_gene: np.ndarray
    measured: np.ndarray

    @classmethod
    def of(cls, column_to_gene) -> "ColumnGenes":
        genes = np.asarray(column_to_gene, dtype=np.int32)
        return cls(genes, np.unique(genes[genes >= 0]).astype(np.int32))


def to_rows(dense, cell_index=None) -> CountRows:
    """CSR rows of a dense (cells x columns) matrix of counts."""
    dense = np.atleast_2d(dense)
    cell, column = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=len(dense)))])
    dtype = np.int32 if np.issubdtype(dense.dtype, np.integer) else np.float32
    if cell_index is None:
        cell_index = np.arange(len(dense))
    return CountRows(
        indptr, column.astype(np.int32), dense[cell, column].astype(dtype), np.asarray(cell_index)
    )


def make_vocab(n_genes: int) -> GeneVocab:
    """A vocabulary of so many genes."""
    names = tuple(f"GENE{i}" for i in range(n_genes))
    return GeneVocab(symbols=names, ensembl_ids=("",) * n_genes)


@pytest.fixture
def rows_of() -> Callable[..., CountRows]:
    return to_rows


@pytest.fixture
def vocab_of() -> Callable[[int], GeneVocab]:
    return make_vocab


@pytest.fixture
def columns() -> Callable[..., ColumnGenes]:
    return ColumnGenes.of


@pytest.fixture
def cells(rng) -> np.ndarray:
    """40 cells x 300 columns, over-dispersed: about 2,500 counts a cell, a few of them large."""
    depth = rng.uniform(800, 4000, (40, 1))
    share = rng.dirichlet(np.full(300, 0.15))
    return rng.poisson(depth * share * rng.gamma(2, 0.5, (40, 300)))
