"""Cells of a store -> h5ad, as the source file held them.

in   a Store, and which of its data sets; None for the only one, or for all of several
out  an h5ad file: one data set with its own genes, rows and names in their old order, less the
     cells that `scfm prepare` dropped; or the whole store, in its order, over its genes

Counts come back bit for bit, as int32. The store has shuffled the cells, so each pass through it
gathers the next rows of the file, as many as fit into a budget; memory does not grow with the data.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from jaxtyping import Int

from scfm.data.compiled import compiled
from scfm.data.counts import CellSource, CountRows
from scfm.data.store import Store, names_once
from scfm.data.store_obs import obs_frame
from scfm.data.write import SafeFile, put, write_h5ad_from
from scfm.errors import InputError, OutputError, StoreError

BUDGET = 384 * 2**20  # bytes of counts gathered in one pass
BYTES_A_VALUE = 8
CELLS_AT_ONCE = 1024


def export(
    store: Store, out: str | Path, *, dataset: str | None = None, budget: int = BUDGET
) -> CellSource:
    """Write a data set of a store, or all of it, as h5ad; returns what was written.

    Parameters
    ----------
    store
        An open store, local or remote.
    out
        The file; written whole or not at all.
    dataset
        The name of a source file, or its id. None: the only one, or the whole store.
    budget
        Bytes of counts to hold. A data set of more than that takes several passes.

    Raises
    ------
    InputError
        No such data set.
    StoreError
        A block is damaged. Nothing is written then.
    OutputError
        ``out`` does not end in .h5ad; no space, no permission.
    """
    if Path(out).suffix != ".h5ad":
        raise OutputError(f"Cannot write {out}: the output is an h5ad file. Give it that ending.")
    if dataset is None and len(store.manifest.datasets) == 1:
        dataset = store.manifest.datasets[0].id
    source: CellSource = (
        _Whole(store) if dataset is None else ExportedDataset(store, dataset, budget)
    )
    found: dict[str, Any] = {"store": store.name, "manifest": store.manifest.hash}
    if isinstance(source, ExportedDataset):
        entry = source.entry
        found |= {"file": entry.name, "sha256": entry.sha256, "counts_from": entry.counts_from}

    def provenance(file: SafeFile) -> None:
        put(file, "uns/scfm_store", found)

    write_h5ad_from(source, out, provenance, chunk_cells=CELLS_AT_ONCE)
    return source


class ExportedDataset:
    """One data set of a store as its file was: a scfm.data.counts.CellSource.

    Attributes
    ----------
    entry
        What the manifest says of it.
    cells
        (cell,) numbers in the store, in the order of the file's rows.
    source_rows
        (cell,) row of the file; the dropped ones are missing.
    """

    def __init__(self, store: Store, dataset: str, budget: int = BUDGET) -> None:
        number = _find(store, dataset)
        self.store, self.budget = store, budget
        self.entry = store.manifest.datasets[number]
        self.name, self.counts_from = self.entry.name, self.entry.counts_from
        self.var, store_gene = store.dataset_var(number)
        self._column_of = np.full(len(store.genes), -1, dtype=np.int32)
        self._column_of[store_gene] = np.arange(len(store_gene), dtype=np.int32)
        cells, table = _cells_of(store, number)
        order = np.argsort(table.column("row").to_numpy(), kind="stable")
        table = table.take(pa.array(order))
        self.cells, self.source_rows = cells[order], table.column("row").to_numpy()
        self.n_cells = len(cells)
        lengths = table.column("n_genes").to_numpy().astype(np.int64)
        self._indptr = np.concatenate([[0], np.cumsum(lengths)])
        self.obs = obs_frame(table)

    def rows(self, cell_index: Int[np.ndarray, " cell"]) -> CountRows:
        """These rows of what is left of the file, in this order."""
        return self._gathered(np.asarray(cell_index, dtype=np.int64))

    def chunks(self, n_cells: int) -> Iterator[CountRows]:
        """All rows in the file's order, at most ``n_cells`` at a time."""
        first = 0
        a_pass = self.budget // 2 // BYTES_A_VALUE  # whoever takes chunks still holds the last pass
        while first < self.n_cells:
            limit = self._indptr[first] + a_pass
            last = int(np.searchsorted(self._indptr, limit, side="right")) - 1
            last = min(max(last, first + 1), self.n_cells)
            gathered = self._gathered(np.arange(first, last))
            for start in range(0, last - first, n_cells):
                yield gathered.part(start, min(start + n_cells, last - first))
            first = last

    def _gathered(self, cell_index: np.ndarray) -> CountRows:
        """One pass: the store is read in its own order, every row goes where it belongs."""
        lengths = np.diff(self._indptr)[cell_index]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        indices = np.empty(indptr[-1], dtype=np.int32)
        counts = np.empty(indptr[-1], dtype=np.int32)
        cells = self.cells[cell_index]
        order = np.argsort(cells, kind="stable")
        for first in range(0, len(order), CELLS_AT_ONCE):
            places = order[first : first + CELLS_AT_ONCE]
            rows = self.store.rows(cells[places])
            fits = np.array_equal(np.diff(rows.indptr), lengths[places])
            if not fits or not _scatter(
                rows.indptr,
                rows.indices,
                rows.counts,
                indptr[places],
                self._column_of,
                indices,
                counts,
            ):
                raise StoreError(
                    f"{self.store.name}: cells of {self.name} hold other genes than their file "
                    "had. Copy the store again; what else is damaged: scfm prepare --verify "
                    f"{self.store.name}"
                )
        matrix = sp.csr_matrix((counts, indices, indptr), (len(cells), len(self.var)))
        matrix.sort_indices()
        return CountRows(
            indptr=matrix.indptr.astype(np.int64, copy=False),
            indices=matrix.indices.astype(np.int32, copy=False),
            counts=matrix.data,
            cell_index=cell_index,
        )


class _Whole:
    """All cells of a store in its order, with the source's name and row beside each."""

    def __init__(self, store: Store) -> None:
        self.store, self.name, self.counts_from = store, store.name, store.counts_from
        self.n_cells, self.var = store.n_cells, store.var
        _, table = _cells_of(store, None)
        self.obs = obs_frame(table)
        names = names_once([dataset.name for dataset in store.manifest.datasets])
        codes = table.column("dataset").to_numpy()
        self.obs["dataset"] = pd.Categorical.from_codes(codes, names)
        self.obs["dataset_row"] = table.column("row").to_numpy()

    def rows(self, cell_index: Int[np.ndarray, " cell"]) -> CountRows:
        return self.store.rows(cell_index)

    def chunks(self, n_cells: int) -> Iterator[CountRows]:
        return self.store.chunks(n_cells)


def _find(store: Store, dataset: str) -> int:
    """Position of a data set, by the name of its file or its id."""
    entries = store.manifest.datasets
    names = names_once([entry.name for entry in entries])
    for known in (names, [entry.id for entry in entries]):
        if dataset in known:
            return known.index(dataset)
    raise InputError(
        f"{store.name} has no data set {dataset!r}; there is: {', '.join(names)}. Without a name "
        "all of the store is exported."
    )


def _cells_of(store: Store, number: int | None) -> tuple[np.ndarray, pa.Table]:
    """Numbers in the store, and the table, of a data set's cells; shard by shard."""
    cells, tables, first = [np.zeros(0, dtype=np.int64)], [], 0
    for shard in store.manifest.shards:
        table = store.obs_table(shard, None)
        place = np.arange(len(table))
        if number is not None:
            place = np.flatnonzero(table.column("dataset").to_numpy() == number)
            table = table.take(pa.array(place))
        cells.append(place + first)
        tables.append(table)
        first += shard.n_cells
    if not tables:
        raise InputError(f"{store.name} holds no cells: there is nothing to export.")
    table = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    return np.concatenate(cells), table


@compiled
def _scatter(indptr, indices, counts, starts, column_of, out_indices, out_counts):
    """Put rows at ``starts`` under their file's columns; False where a gene has no column."""
    for cell in range(len(starts)):
        place = starts[cell]
        for i in range(indptr[cell], indptr[cell + 1]):
            column = column_of[indices[i]]
            if column < 0:
                return False
            out_indices[place] = column
            out_counts[place] = counts[i]
            place += 1
    return True
