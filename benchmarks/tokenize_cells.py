"""Cells per CPU-second of making training examples, against the same work in plain NumPy.

One JSON line on stdout. Both sides make, from CSR batches of 256 cells and on one thread, the gene
remap, the read-depth down-sampling, the target draw, the values and the packed batch; rounds are
interleaved in one process. CPU time, not wall time: a machine is rarely idle.

    OMP_NUM_THREADS=1 python benchmarks/tokenize_cells.py [--cells 8192] [--rounds 7]
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
from measure import N_GENES, report, spread, synthetic_batches

from scfm.batch import CellBatch
from scfm.data.counts import CountRows
from scfm.tokens.collate import Tokenizer
from scfm.tokens.rng import cell_keys
from scfm.tokens.vocab import GeneVocab

BATCH = 256
IN_VOCABULARY = 0.9  # share of the columns


@dataclass(frozen=True)
class ColumnGenes:
    """A random alignment: the vocabulary's order has nothing to do with the file's."""

    column_to_gene: np.ndarray
    measured: np.ndarray


def main() -> None:
    """Measure both sides and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    batches = synthetic_batches(rng, asked.cells, BATCH)
    genes = random_alignment(rng)
    names = tuple(f"G{i}" for i in range(N_GENES))
    tokenizer = Tokenizer(GeneVocab(symbols=names, ensembl_ids=("",) * N_GENES), genes)
    sides: dict[str, Callable[[CountRows], CellBatch]] = {
        "ours": lambda rows: tokenizer.training(rows, cell_keys(0, 0, rows.cell_index)),
        "numpy": lambda rows: training_numpy(rng, rows, genes, tokenizer),
        "shown": tokenizer.shown,
    }
    tokens = {name: side(batches[0]).n_tokens / BATCH for name, side in sides.items()}  # and warm
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(asked.rounds):
        for name, side in sides.items():
            rates[name].append(cells_per_cpu_second(side, batches))
    ours, theirs = (float(np.median(rates[name])) for name in ("ours", "numpy"))
    nnz = sum(len(rows.counts) for rows in batches)
    report(
        {
            "what": "training examples from CSR rows: remap, down-sampling, targets, values",
            "unit": "cells per CPU-second, one thread (median [min, max])",
            "ours": spread(rates["ours"]),
            "numpy": spread(rates["numpy"]),
            "ratio": round(ours / theirs, 2),
            "inference_batches": spread(rates["shown"]),
            "rounds": asked.rounds,
            "input": {
                "cells": asked.cells,
                "batch": BATCH,
                "columns": N_GENES,
                "columns_in_vocabulary": IN_VOCABULARY,
                "genes_per_cell": round(nnz / asked.cells),
                "library": round(sum(int(r.counts.sum()) for r in batches) / asked.cells),
                "share_of_ones": round(sum((r.counts == 1).sum() for r in batches) / nnz, 3),
                "tokens_per_cell": {name: round(n) for name, n in tokens.items()},
                "seed": 0,
            },
            "python": platform.python_version(),
            "versions": {"numpy": np.__version__, "numba": numba.__version__},
        }
    )


def random_alignment(rng: np.random.Generator) -> ColumnGenes:
    column_to_gene = rng.permutation(N_GENES).astype(np.int32)
    column_to_gene[rng.random(N_GENES) > IN_VOCABULARY] = -1
    return ColumnGenes(column_to_gene, np.sort(column_to_gene[column_to_gene >= 0]))


def training_numpy(
    rng: np.random.Generator, rows: CountRows, genes: ColumnGenes, tokenizer: Tokenizer
) -> CellBatch:
    """The same training examples as whole-batch NumPy, as one would write it by hand."""
    config, n_cells = tokenizer.config, rows.n_cells
    cell = np.repeat(np.arange(n_cells), np.diff(rows.indptr))
    gene = genes.column_to_gene[rows.indices]
    library = np.bincount(cell, rows.counts, n_cells)

    is_thinned = (library >= config.downsample_min_counts) & (
        rng.random(n_cells) < config.downsample_probability
    )
    rate = np.where(is_thinned, rng.beta(2, 2, n_cells), 1.0)
    thinned = rows.counts.copy()
    touched = is_thinned[cell]
    thinned[touched] = rng.binomial(rows.counts[touched], rate[cell[touched]])
    shown_total = np.bincount(cell, thinned, n_cells)

    inside = np.flatnonzero(gene >= 0)
    cell, gene, counts, thinned = cell[inside], gene[inside], rows.counts[inside], thinned[inside]

    # a random order within each cell; its first ones are kept, the first of these are targets
    n = np.bincount(cell, minlength=n_cells)
    shuffled = np.argsort(cell + rng.random(len(cell)))
    place = np.empty(len(cell), np.int64)
    place[shuffled] = np.arange(len(cell)) - np.repeat(np.cumsum(n) - n, n)
    n_kept = np.minimum(n, config.max_genes)
    n_targets = np.minimum(n_kept, np.maximum(1, np.rint(config.target_share * n_kept).astype(int)))
    is_target = place < n_targets[cell]
    is_in = (is_target | (thinned > 0)) & (place < n_kept[cell])

    # zeros: enough blind draws, first come first served, the expressed and the double ones out
    n_zeros = np.rint(config.zero_ratio * n_targets).astype(int)
    drawn = genes.measured[
        rng.integers(len(genes.measured), size=(n_cells, n_zeros.max() * 5 // 4))
    ]
    is_taken = np.zeros((n_cells, N_GENES), bool)
    is_taken[cell, gene] = True
    is_new = ~is_taken[np.arange(n_cells)[:, None], drawn]
    first_at = np.empty((n_cells, N_GENES), np.int32)  # read only where it is written
    columns = np.broadcast_to(np.arange(drawn.shape[1], dtype=np.int32), drawn.shape)
    first_at[np.arange(n_cells)[:, None], drawn[:, ::-1]] = columns[:, ::-1]
    is_new &= np.take_along_axis(first_at, drawn, 1) == columns
    is_new &= np.cumsum(is_new, axis=1) <= n_zeros[:, None]
    zero_cell, zero_gene = np.nonzero(is_new)[0], drawn[is_new]

    raw_values = np.log1p(1e4 * counts[is_in] / library[cell[is_in]])
    shown_values = np.log1p(1e4 * thinned[is_in] / shown_total[cell[is_in]])
    return packed_numpy(
        tokenizer,
        rows,
        np.concatenate([cell[is_in], zero_cell]),
        np.concatenate([gene[is_in], zero_gene]),
        np.concatenate([np.where(is_target[is_in], 0, shown_values), np.zeros(len(zero_cell))]),
        np.concatenate([is_target[is_in], np.ones(len(zero_cell), bool)]),
        np.concatenate([np.where(is_target[is_in], raw_values, 0), np.zeros(len(zero_cell))]),
        library,
        shown_total,
    )


def packed_numpy(
    tokenizer: Tokenizer,
    rows: CountRows,
    cell: np.ndarray,
    gene: np.ndarray,
    values: np.ndarray,
    is_target: np.ndarray,
    target_values: np.ndarray,
    library: np.ndarray,
    shown_total: np.ndarray,
) -> CellBatch:
    """Genes sorted within their cells behind [CELL], [T] and [S]."""
    vocab, n_cells = tokenizer.vocab, rows.n_cells
    order = np.argsort(cell * np.int64(N_GENES) + gene)
    lengths = np.bincount(cell, minlength=n_cells) + 3
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    is_gene = np.ones(offsets[-1], bool)
    is_gene[offsets[:-1, None] + np.arange(3)] = False
    target_depth, source_depth = np.log10(library), np.log10(shown_total)
    arrays = {
        "gene_ids": (np.int64, vocab.gene_start + gene),
        "values": (np.float32, values),
        "is_target": (bool, is_target),
        "target_values": (np.float32, target_values),
    }
    packed = {name: np.zeros(offsets[-1], dtype) for name, (dtype, _) in arrays.items()}
    for name, (_, array) in arrays.items():
        packed[name][is_gene] = array[order]
    specials = (vocab.cell_id, vocab.target_depth_id, vocab.source_depth_id)
    packed["gene_ids"][offsets[:-1, None] + np.arange(3)] = specials
    packed["values"][offsets[:-1] + 1] = target_depth
    packed["values"][offsets[:-1] + 2] = source_depth
    return CellBatch(
        gene_ids=packed["gene_ids"],
        values=packed["values"],
        is_target=packed["is_target"],
        target_values=packed["target_values"],
        offsets=offsets,
        library_size=library.astype(np.float32),
        source_depth=source_depth.astype(np.float32),
        target_depth=target_depth.astype(np.float32),
        cell_index=rows.cell_index,
    )


def cells_per_cpu_second(side: Callable[[CountRows], CellBatch], batches: list[CountRows]) -> float:
    start = time.process_time()
    for rows in batches:
        side(rows)
    return sum(rows.n_cells for rows in batches) / (time.process_time() - start)


if __name__ == "__main__":
    main()
