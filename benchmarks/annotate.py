"""Peak memory of ``scfm annotate`` on a backed h5ad against a saved reference, and what searching
takes of its time.

One JSON line on stdout. The query is a file of seeded synthetic cells of about 850 genes, as in
PBMC3k, every one thinned by itself so that no two are alike; the reference is of others, embedded
and labelled in 20 kinds, and then filled up to its size with cells a little beside them, since how
it was embedded has no part in what is measured. ``scfm annotate`` runs as a process of its own,
whose own peak resident memory is taken from the operating system; the seconds are its own.

    python benchmarks/annotate.py [--cells 100000] [--reference 50000] [--model RUN]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import write_elem
from embed_memory import DEPTH, tiny_model
from measure import N_GENES, report, synthetic_batches

import scfm
from scfm.tasks.directions import unit_vectors
from scfm.tasks.prototypes import PrototypeClassifier
from scfm.tasks.reference import Reference
from scfm.tasks.reference_folder import save_reference
from scfm.tokens.vocab import GeneVocab

PARENTS = 2_000  # cells that all others are thinned from
EMBEDDED = 2_000  # of the reference
KINDS = 20
BESIDE = 0.3  # of the embedding's own spread: how far filled-up cells lie from embedded ones


def main() -> None:
    """Annotate once and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--reference", type=int, default=50_000)
    parser.add_argument("--model", help="model or run folder; default: random scfm-tiny weights")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        model = Path(asked.model) if asked.model else tiny_model(folder / "model")
        parents = parents_of(rng)
        write_cells(folder / "atlas.h5ad", min(EMBEDDED, asked.reference), parents, rng)
        make_reference(folder, model, asked.reference, rng)
        write_cells(folder / "cells.h5ad", asked.cells, parents, rng)
        found, peak_mb = annotate_in_a_process(folder, model)
    seconds = found["seconds"]
    report(
        {
            "what": "scfm annotate of a backed h5ad against a saved reference",
            "unit": "MB; seconds",
            "peak_mb": round(peak_mb),
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
            "share_of_search": round(seconds["search"] / seconds["all"], 4),
            "cells_per_s": round(found["n_cells"] / seconds["all"]),
            "cells": found["n_cells"],
            "reference_cells": found["n_reference"],
            "model": asked.model or "scfm-tiny, random weights",
            "input": {"columns": N_GENES, "umi_per_cell": DEPTH, "genes_per_cell": "about 850"},
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    )


def parents_of(rng: np.random.Generator) -> Any:
    """Cells in ``KINDS``, each with 60 genes of its own turned up five times."""
    rows = synthetic_batches(rng, PARENTS, PARENTS, depth=2 * DEPTH)[0]
    own = np.stack([rng.choice(N_GENES, 60, replace=False) for _ in range(KINDS)])
    is_own = np.zeros((KINDS, N_GENES), dtype=bool)
    is_own[np.arange(KINDS)[:, None], own] = True
    kind = np.repeat(np.arange(PARENTS) % KINDS, np.diff(rows.indptr))
    return replace(rows, counts=np.where(is_own[kind, rows.indices], 5, 1) * rows.counts)


def write_cells(path: Path, n_cells: int, parents: Any, rng: np.random.Generator) -> None:
    """An h5ad of thinned cells, its matrix appended piece by piece; obs["kind"] says their kind."""
    human = GeneVocab.human()
    names = [*human.symbols, *(f"other{i}" for i in range(N_GENES - human.n_genes))]
    kind = pd.Categorical.from_codes(
        np.arange(n_cells) % PARENTS % KINDS, [f"kind {i:02}" for i in range(KINDS)]
    )
    obs = pd.DataFrame({"kind": kind}, index=pd.Index([f"c{i}" for i in range(n_cells)]))
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=pd.Index(names)))
        for key in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, key, {})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([n_cells, N_GENES])
        stored = {
            key: group.create_dataset(
                key, (0,), dtype, maxshape=(None,), chunks=(2**16,), compression="gzip"
            )
            for key, dtype in (("data", np.float32), ("indices", np.int32))
        }
        indptr = [np.zeros(1, dtype=np.int64)]
        for first in range(0, n_cells, PARENTS):
            some = parents.part(0, min(PARENTS, n_cells - first))
            counts = rng.binomial(some.counts, 0.5)
            is_left = counts > 0
            cell = np.repeat(np.arange(some.n_cells), np.diff(some.indptr))[is_left]
            for key, values in (("data", counts[is_left]), ("indices", some.indices[is_left])):
                n = len(stored[key])
                stored[key].resize((n + len(values),))
                stored[key][n:] = values
            lengths = np.bincount(cell, minlength=some.n_cells)
            indptr.append(indptr[-1][-1] + np.cumsum(lengths))
        group.create_dataset("indptr", data=np.concatenate(indptr))


def make_reference(folder: Path, model: Path, n_cells: int, rng: np.random.Generator) -> None:
    """A saved reference of the atlas, filled up to ``n_cells``."""
    made = scfm.tl.build_reference(folder / "atlas.h5ad", model, label_key="kind")
    more = rng.integers(0, made.n_cells, n_cells - made.n_cells)
    rows = np.concatenate([np.arange(made.n_cells), more])
    beside = BESIDE * made.embedding.std(0) * rng.normal(size=(len(more), made.embedding.shape[1]))
    embedding = made.embedding[rows]
    embedding[made.n_cells :] += beside.astype(np.float32)
    save_reference(filled(made, embedding, rows), folder / "reference")


def filled(made: Reference, embedding: np.ndarray, rows: np.ndarray) -> Reference:
    """The reference with other cells, in the same frame and as calibrated."""
    depth, voters = made.depth[rows], made.voters
    order = np.argsort(voters.codes[rows], kind="stable")
    embedding, depth, rows = embedding[order], depth[order], rows[order]
    moved = voters.depth_slope.removed(embedding, depth) if voters.depth_slope else embedding
    directions, _ = unit_vectors(voters.frame.apply(moved), "the reference")
    voters = replace(
        voters, directions=directions, codes=voters.codes[rows], rows=np.arange(len(rows))
    )
    cells = pd.DataFrame({"cell": [f"r{i}" for i in range(len(rows))], "row": np.arange(len(rows))})
    return replace(
        made,
        voters=voters,
        prototypes=PrototypeClassifier.of(voters),
        embedding=embedding,
        depth=depth,
        cells=cells,
    )


def annotate_in_a_process(folder: Path, model: Path) -> tuple[dict[str, Any], float]:
    """What ``scfm annotate --json`` says of itself, and its peak resident MB."""
    code = (
        "import resource, sys\n"
        "from scfm.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    arguments = ["annotate", folder / "cells.h5ad", "--model", model, "--json"]
    arguments += ["--reference", folder / "reference", "--out", folder / "out.h5ad"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    said, _, peak = done.stdout.rpartition("PEAK")
    return json.loads(said.splitlines()[-1]), int(peak) / 1024


if __name__ == "__main__":
    main()
