"""Several data sets in one source: each cell is read by its own alignment, tables are shared."""

from dataclasses import replace

import numpy as np
import pytest

from scfm.tokens.collate import Tokenizer
from scfm.tokens.rng import cell_keys
from scfm.tokens.tables import DatasetAlignment, GeneTables

N_GENES, N_COLUMNS = 280, 300


def dataset(column_to_gene, has_column) -> DatasetAlignment:
    genes = np.where(has_column, column_to_gene, -1).astype(np.int32)
    return DatasetAlignment(genes, np.unique(genes[genes >= 0]), np.asarray(has_column))


@pytest.fixture
def datasets(rng) -> list[DatasetAlignment]:
    """Two that agree where both have a column, one that contradicts them, one like the first."""
    genes = np.where(rng.random(N_COLUMNS) < 0.9, rng.permutation(N_COLUMNS) % 290, -1)
    genes[genes >= N_GENES] = -1
    one, other = rng.random(N_COLUMNS) < 0.7, rng.random(N_COLUMNS) < 0.7
    contradiction = np.where(genes >= 0, (genes + 1) % N_GENES, -1)
    return [
        *(dataset(genes, one), dataset(genes, other)),
        *(dataset(contradiction, one), dataset(genes, one)),
    ]


def test_tables_are_shared_where_data_sets_agree(datasets):
    tables = GeneTables.of(datasets, N_GENES)
    assert tables.table_of.tolist() == [0, 0, 1, 0]
    assert tables.list_of.tolist() == [0, 1, 2, 0]
    assert tables.n_datasets == 4
    for number, alignment in enumerate(datasets):
        slots = tables.slots[tables.table_of[number]][alignment.has_column].astype(int)
        theirs = alignment.column_to_gene[alignment.has_column]
        np.testing.assert_array_equal(slots, np.where(theirs < 0, N_GENES, theirs))
        bounds = tables.bounds[tables.list_of[number] :][:2]
        np.testing.assert_array_equal(tables.measured[slice(*bounds)], alignment.measured)


@pytest.mark.parametrize("kind", ["shown", "training"])
def test_a_cell_is_read_by_its_own_data_sets_alignment(datasets, cells, vocab_of, rows_of, kind):
    """Oracle: a tokenizer of that data set alone."""
    of_cell = np.arange(len(cells)) % len(datasets)
    has_column = np.stack([alignment.has_column for alignment in datasets])
    rows = replace(rows_of(cells * has_column[of_cell]), dataset=of_cell)
    keys = cell_keys(0, 3, rows.cell_index)
    extra = {"shown": (), "training": (keys,)}[kind]
    together = getattr(Tokenizer(vocab_of(N_GENES), datasets), kind)(rows, *extra)
    for i, number in enumerate(of_cell):
        alone = Tokenizer(vocab_of(N_GENES), datasets[number])
        row = replace(rows.part(i, i + 1), dataset=None)
        theirs = getattr(alone, kind)(row, *(keys[i : i + 1] for _ in extra))
        mine = slice(together.offsets[i], together.offsets[i + 1])
        for name in ("gene_ids", "values", "is_target", "target_values"):
            np.testing.assert_array_equal(getattr(together, name)[mine], getattr(theirs, name))
        for name in ("library_size", "source_depth", "target_depth"):
            assert getattr(together, name)[i] == getattr(theirs, name)[0]


def test_zeros_are_drawn_from_the_cells_own_measured_genes(datasets, cells, vocab_of, rows_of):
    of_cell = np.arange(len(cells)) % len(datasets)
    has_column = np.stack([alignment.has_column for alignment in datasets])
    rows = replace(rows_of(cells * has_column[of_cell]), dataset=of_cell)
    vocab = vocab_of(N_GENES)
    batch = Tokenizer(vocab, datasets).training(rows, cell_keys(0, 0, rows.cell_index))
    for i, number in enumerate(of_cell):
        mine = slice(batch.offsets[i] + 3, batch.offsets[i + 1])
        genes = batch.gene_ids[mine] - vocab.gene_start
        assert np.isin(genes, datasets[number].measured).all()
        assert (batch.is_target[mine] & (batch.target_values[mine] == 0)).any()


def test_a_data_set_without_an_alignment_is_our_fault(datasets, cells, vocab_of, rows_of):
    rows = replace(rows_of(cells), dataset=np.full(len(cells), 4))
    with pytest.raises(AssertionError):
        Tokenizer(vocab_of(N_GENES), datasets).shown(rows)
