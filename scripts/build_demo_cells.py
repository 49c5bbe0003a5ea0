"""Source h5ad files -> the bundled demo cells, smaller and value for value the same.

in   a folder with zheng_facs_pbmc.h5ad, pbmc3k.h5ad and pbmc_label_mapping.csv
     (sources, commits and licences: scfm/demo/cells/LICENSES.md)
out  scfm/demo/cells/: the same cells, counts and labels as plain h5ad of under 4 MB each

    python scripts/build_demo_cells.py SOURCE_FOLDER [--out FOLDER]

Every file is read back with anndata and compared with its source before the command succeeds.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp

OUT = Path(__file__).resolve().parents[1] / "scfm" / "demo" / "cells"
LABEL_KEYS = {"zheng_facs_pbmc": "celltype", "pbmc3k": "cell_type"}
MAPPING = "pbmc_label_mapping.csv"
CHUNK = 1 << 16  # values; longer chunks save 3 % and make a backed read of a few cells slow
MAX_BYTES = 8_000_000


def slim(source: Any, label_key: str) -> ad.AnnData:
    """The cells as they stand, in int32, with one label column; the most often seen genes first.

    With that order the columns of a row lie closer together, which is worth a fifth of the file.
    """
    n_cells_per_gene = np.bincount(source.X.indices, minlength=source.n_vars)
    order = np.argsort(-n_cells_per_gene, kind="stable")
    counts = sp.csr_matrix(source.X[:, order].astype(np.int32))
    counts.sort_indices()
    var = source.var[[c for c in ("symbol",) if c in source.var]].iloc[order].copy()
    return ad.AnnData(counts, obs=source.obs[[label_key]].copy(), var=var)


def write(cells: Any, path: Path) -> None:
    """Write h5ad with long, shuffled chunks for the counts, which AnnData.write_h5ad cannot set."""
    packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    counts = cells.X
    arrays = {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        ad.io.write_elem(file, "/", ad.AnnData(obs=cells.obs, var=cells.var), dataset_kwargs=packed)
        file.pop("X", None)
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array(counts.shape)
        for name, values in arrays.items():
            chunks = (min(CHUNK, values.size),)
            group.create_dataset(name, data=values.astype(np.int32), chunks=chunks, **packed)


def verify(path: Path, source: Any, label_key: str) -> None:
    """Hold the written file to its source: every count, every name, every label."""
    cells: Any = ad.read_h5ad(path)
    same_order = cells[:, source.var_names]
    checks = {
        "cell names": cells.obs_names.equals(source.obs_names),
        "gene names": set(cells.var_names) == set(source.var_names),
        "labels": (cells.obs[label_key].astype(str) == source.obs[label_key].astype(str)).all(),
        "symbols": "symbol" not in source.var
        or (same_order.var["symbol"].astype(str) == source.var["symbol"].astype(str)).all(),
        "counts": (same_order.X != source.X).nnz == 0 and cells.X.nnz == source.X.nnz,
        "integers": cells.X.data.dtype == np.int32 and cells.X.data.min() > 0,
        "ascending columns": bool(cells.X.has_canonical_format),
    }
    wrong = [name for name, holds in checks.items() if not holds]
    if wrong:
        raise SystemExit(f"{path.name} differs from its source in: {', '.join(wrong)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with the source files")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, label_key in LABEL_KEYS.items():
        source = ad.read_h5ad(args.source / f"{name}.h5ad")
        path = args.out / f"{name}.h5ad"
        write(slim(source, label_key), path)
        verify(path, source, label_key)
        total += path.stat().st_size
        print(f"{path.name}: {source.n_obs:,} x {source.n_vars:,}, {path.stat().st_size:,} bytes")
    shutil.copyfile(args.source / MAPPING, args.out / MAPPING)
    print(f"together {total:,} bytes, equal to their sources")
    if total > MAX_BYTES:
        raise SystemExit(f"more than the {MAX_BYTES:,} bytes the wheel may carry")


if __name__ == "__main__":
    main()
