"""Peak memory of ``scfm embed`` on backed h5ad files of growing size.

One JSON line on stdout. The files (seeded synthetic cells of about 850 genes, as in PBMC3k) are
written in pieces to a temporary folder; each is embedded by a fresh process, whose own peak
resident memory is taken from the operating system.

    python benchmarks/embed_memory.py [--cells 20000 50000 100000] [--model RUN]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import write_elem
from measure import N_GENES, report, synthetic_batches

from scfm.config import load_config
from scfm.model.base import save_model
from scfm.model.pretrained import ScfmModel
from scfm.tasks.pretrain_run import PretrainRun
from scfm.tokens.vocab import GeneVocab

DEPTH = 1500  # UMI a cell
WRITTEN_AT_ONCE = 2000  # cells; repeated to fill a file, since only their number matters here


def main() -> None:
    """Embed every size and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 50_000, 100_000])
    parser.add_argument("--model", help="model or run folder; default: random scfm-tiny weights")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = asked.model or tiny_model(folder / "model")
        found = {}
        for n_cells in asked.cells:
            write_cells(folder / "cells.h5ad", n_cells)
            found[n_cells] = embed_in_a_process(folder / "cells.h5ad", model, folder / "out.h5ad")
    report(
        {
            "what": "scfm embed of a backed h5ad, peak resident memory by number of cells",
            "unit": "MB",
            "peak_mb": {str(n): round(mb) for n, (mb, _) in found.items()},
            "cells_per_s": {str(n): round(n / s) for n, (_, s) in found.items()},
            "model": asked.model or "scfm-tiny, random weights",
            "input": {"columns": N_GENES, "umi_per_cell": DEPTH, "genes_per_cell": "about 850"},
            "torch": torch.__version__,
        }
    )


def tiny_model(folder: Path) -> Path:
    torch.manual_seed(0)
    run = load_config(PretrainRun, "scfm-tiny")
    save_model(ScfmModel.from_scratch(GeneVocab.human(), run.model), folder)
    return folder


def write_cells(path: Path, n_cells: int) -> None:
    """An h5ad of ``n_cells``, its matrix appended piece by piece."""
    rows = synthetic_batches(
        np.random.default_rng(0), WRITTEN_AT_ONCE, WRITTEN_AT_ONCE, depth=DEPTH
    )[0]
    human = GeneVocab.human()
    names = [*human.symbols, *(f"other{i}" for i in range(N_GENES - human.n_genes))]
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", pd.DataFrame(index=pd.Index([f"c{i}" for i in range(n_cells)])))
        write_elem(file, "var", pd.DataFrame(index=pd.Index(names)))
        for key in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, key, {})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([n_cells, N_GENES])
        repeats, nnz = n_cells // WRITTEN_AT_ONCE, len(rows.counts)
        for key, values in (("data", rows.counts.astype(np.float32)), ("indices", rows.indices)):
            stored = group.create_dataset(
                key, (repeats * nnz,), values.dtype, chunks=(2**16,), compression="gzip"
            )
            for i in range(repeats):
                stored[i * nnz : (i + 1) * nnz] = values
        starts = np.concatenate([rows.indptr[:-1] + i * nnz for i in range(repeats)])
        group.create_dataset("indptr", data=np.append(starts, repeats * nnz))


def embed_in_a_process(path: Path, model: Path | str, out: Path) -> tuple[float, float]:
    """Peak resident MB and seconds of one ``scfm embed``."""
    code = (
        "import resource, sys\n"
        "from scfm.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    arguments = ["embed", str(path), "--model", str(model), "--out", str(out)]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - start
    return int(done.stdout.split("PEAK")[1]) / 1024, seconds


if __name__ == "__main__":
    main()
