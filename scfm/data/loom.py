"""Loom files -> Container, by h5py alone: loompy is not needed.

A loom matrix is dense, genes x cells, in 64 x 64 chunks; it is read by blocks of cells.
Source: https://linnarssonlab.org/loompy/format/
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scfm.data.container import Candidate, Container
from scfm.data.matrices import DenseRows
from scfm.errors import UnreadableFileError

# loompy's own names first, then those that scanpy and others write.
GENE_KEYS = ("Gene", "var_names", "gene_names", "gene_name", "gene_symbol", "Accession")
CELL_KEYS = ("CellID", "obs_names", "cell_names", "barcode")


def is_loom(file: h5py.File) -> bool:
    return isinstance(file.get("matrix"), h5py.Dataset) and "row_attrs" in file


def open_loom(file: h5py.File, path: Path) -> Container:
    """/matrix as X, /layers under their names, row_attrs as var, col_attrs as obs."""
    stored: dict[str, Any] = {"X": file["matrix"]}
    layers: Any = file.get("layers", {})
    for name in sorted(layers, key=lambda name: name != "counts"):  # "counts" first
        stored[name] = layers[name]

    def read_var() -> pd.DataFrame:
        return _table(file["row_attrs"], GENE_KEYS, stored["X"].shape[0])

    def opener(matrix: Any):
        return lambda: DenseRows(matrix, by_gene=True)

    return Container(
        name=str(path),
        format="loom",
        path=path,
        candidates=[
            Candidate(key if key == "X" else f"layers['{key}']", key, opener(matrix), read_var)
            for key, matrix in stored.items()
        ],
        read_obs=lambda: _table(file["col_attrs"], CELL_KEYS, stored["X"].shape[1]),
        close=file.close,
    )


def _table(group: Any, index_keys: tuple[str, ...], length: int) -> pd.DataFrame:
    """Attributes with one value a row; the first of ``index_keys`` that is there is the index."""
    columns = {}
    for key, stored in group.items():
        if isinstance(stored, h5py.Dataset) and stored.shape == (length,):
            values = stored[:]
            if values.dtype.kind in "SO":
                texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
                values = np.array(texts, dtype=object)
            columns[key] = values
    table = pd.DataFrame(columns, index=pd.RangeIndex(length).astype(str))
    named = [key for key in index_keys if key in columns]
    if not named and index_keys is GENE_KEYS:
        raise UnreadableFileError(
            f"Its row_attrs name no genes: one of {', '.join(GENE_KEYS)} is needed, "
            f"found {', '.join(columns) or 'nothing'}."
        )
    return table.set_index(pd.Index(table.pop(named[0]).to_numpy())) if named else table
