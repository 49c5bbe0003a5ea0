"""10x Genomics' own files -> Container: the HDF5 and the mtx folder of Cell Ranger 2 and 3+.

Both hold genes x cells by column, which is cells x genes by row. HDF5 is read in row chunks; the
mtx folder is text and is read into memory (about 24 bytes a value while reading, 8 after).
Source: https://www.10xgenomics.com/support/software/cell-ranger/latest/analysis/outputs
"""

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

from scfm.data.container import Candidate, Container
from scfm.data.matrices import SparseRows, from_scipy
from scfm.errors import InputError, ScfmWarning, UnreadableFileError

GENES = "Gene Expression"
LEGACY_KEYS = {"barcodes", "genes", "gene_names", "data", "indices", "indptr", "shape"}


def is_tenx_h5(file: h5py.File) -> bool:
    matrix = file.get("matrix")
    return (isinstance(matrix, h5py.Group) and "features" in matrix) or bool(_genomes(file))


def open_tenx_h5(file: h5py.File, path: Path) -> Container:
    """Cell Ranger 3's "matrix" group, or Cell Ranger 2's, one for each genome."""
    genomes = _genomes(file)
    if genomes:
        keys = genomes if len(genomes) > 1 else ["X"]
        groups: list[Any] = [file[genome] for genome in genomes]
        candidates = [
            Candidate(key, key, _opener(group), _legacy_var(group))
            for key, group in zip(keys, groups, strict=True)
        ]
    else:
        groups = [file["matrix"]]
        var = _read_features(groups[0]["features"])
        is_kept = genes_only(var, str(path))
        candidates = [Candidate("X", "X", _opener(groups[0]), lambda: var, is_kept)]
    return Container(
        name=str(path),
        format="10x h5",
        path=path,
        candidates=candidates,
        read_obs=lambda: pd.DataFrame(index=pd.Index(_text(groups[0]["barcodes"]))),
        close=file.close,
        must_choose=len(candidates) > 1,
    )


def _genomes(file: h5py.File) -> list[str]:
    """Names of Cell Ranger 2's groups."""
    return [
        key
        for key, group in file.items()
        if isinstance(group, h5py.Group) and set(group.keys()) >= LEGACY_KEYS
    ]


def _opener(group: Any):
    def opened() -> SparseRows:
        n_genes, n_cells = (int(n) for n in group["shape"][:])
        rows = SparseRows(group["indptr"], group["indices"], group["data"], n_columns=n_genes)
        if rows.shape[0] != n_cells:
            raise UnreadableFileError(f"It states {n_cells:,} cells and holds {rows.shape[0]:,}.")
        return rows

    return opened


def _legacy_var(group: Any):
    def read() -> pd.DataFrame:
        names = pd.Index(_text(group["gene_names"]))
        return pd.DataFrame({"gene_ids": _text(group["genes"])}, index=names)

    return read


def _read_features(group: Any) -> pd.DataFrame:
    """The features group: name as index, id as gene_ids, the rest under its own name."""
    columns = {"gene_ids": "id", "feature_types": "feature_type"}
    taken = {*columns.values(), "name", "_all_tag_keys"}
    n_features = len(group["name"])
    columns |= {
        key: key
        for key, stored in group.items()
        if key not in taken and isinstance(stored, h5py.Dataset) and stored.shape == (n_features,)
    }
    table = {name: _text(group[key]) for name, key in columns.items()}
    return pd.DataFrame(table, index=pd.Index(_text(group["name"])))


def _text(stored: h5py.Dataset) -> np.ndarray:
    values = stored[:]
    if values.dtype.kind in "SO":
        return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], object)
    return values


def genes_only(var: pd.DataFrame, name: str) -> np.ndarray | None:
    """Which features are genes, where antibodies, guides or peaks are among them; None: all are."""
    is_gene = (var["feature_types"] == GENES).to_numpy()
    if is_gene.all():
        return None
    others = var.loc[~is_gene, "feature_types"].value_counts().items()
    listed = ", ".join(f"{count:,} {kind!r}" for kind, count in others)
    if not is_gene.any():
        raise InputError(
            f"{name}: has no {GENES!r} features, only {listed}. "
            "Give the file that holds the RNA counts of these cells."
        )
    warnings.warn(
        f"{name}: only its {is_gene.sum():,} {GENES!r} features are used; left out: {listed}.",
        ScfmWarning,
        stacklevel=2,
    )
    return is_gene


def find_mtx(path: Path) -> Path | None:
    """The one matrix file of a folder; of several, InputError says to name one."""
    found = sorted([*path.glob("*matrix.mtx"), *path.glob("*matrix.mtx.gz")])
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise InputError(
            f"{path}: holds {len(found)} matrices ({listed}). "
            f"Name the one to read, for example {found[0]}."
        )
    return found[0] if found else None


def open_mtx(matrix_file: Path, path: Path) -> Container:
    """matrix.mtx with its barcodes.tsv and features.tsv (or genes.tsv), gzipped or not.

    A prefix before "matrix.mtx", as GEO puts it, is expected before the others' names too.
    """
    prefix = matrix_file.name.split("matrix.mtx")[0]
    features = _table(matrix_file.parent, [f"{prefix}features.tsv", f"{prefix}genes.tsv"])
    barcodes = _table(matrix_file.parent, [f"{prefix}barcodes.tsv"])
    var = pd.DataFrame(index=pd.Index(features.iloc[:, min(1, features.shape[1] - 1)]))
    var.index.name = None
    var["gene_ids"] = features[0].to_numpy()
    if features.shape[1] > 2:
        var["feature_types"] = features[2].to_numpy()
    is_kept = genes_only(var, str(path)) if "feature_types" in var else None

    def opened() -> SparseRows:
        genes_by_cells: Any = scipy.io.mmread(matrix_file)
        if genes_by_cells.shape != (len(features), len(barcodes)):
            raise UnreadableFileError(
                f"{matrix_file.name} is {genes_by_cells.shape[0]:,} x {genes_by_cells.shape[1]:,} "
                f"but there are {len(features):,} features and {len(barcodes):,} barcodes."
            )
        return from_scipy(sp.csr_matrix(genes_by_cells.T))

    return Container(
        name=str(path),
        format="10x mtx",
        path=path,
        candidates=[Candidate("X", "X", opened, lambda: var, is_kept)],
        read_obs=lambda: pd.DataFrame(index=pd.Index(barcodes[0].to_numpy())),
    )


def _table(folder: Path, names: list[str]) -> pd.DataFrame:
    for name in names:
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return pd.read_csv(file, sep="\t", header=None, dtype=str, na_filter=False)
    raise UnreadableFileError(
        f"{folder}: holds a matrix.mtx but no {' or '.join(names)} (or .gz) beside it. "
        "Copy the whole folder that Cell Ranger wrote."
    )
