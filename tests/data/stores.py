"""Small stores for tests, written with the writer alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from scfm.data.blocks import EncodedCells, encode, gene_key64
from scfm.data.counts import CountRows
from scfm.data.manifest import DatasetEntry, ObsColumn, StoreGene, StoreGenes
from scfm.data.store_writer import StoreWriter

TYPES = ("B", "NK", "T")


def toy_genes(n: int, prefix: str = "G") -> StoreGenes:
    return StoreGenes(StoreGene(f"{prefix}{i}", f"{prefix}{i}", "", "human") for i in range(n))


def toy_rows(rng: np.random.Generator, n_cells: int, n_genes: int, mean: float = 0.3) -> CountRows:
    """Counts with what is rare in them: many genes apart, values beyond a byte and two bytes."""
    counts = rng.poisson(mean, (n_cells, n_genes)) * rng.choice(
        [1, 1, 1, 300, 70_000], (n_cells, n_genes)
    )
    counts[:, n_genes // 4 : n_genes // 4 * 3] *= rng.random((n_cells, 1)) < 0.5
    counts[:, -1] += 1
    rows, indices = np.nonzero(counts)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_cells))])
    values = counts[rows, indices].astype(np.int32)
    return CountRows(indptr, indices.astype(np.int32), values, np.arange(n_cells))


def toy_obs(cells: EncodedCells, first: int = 0) -> pa.Table:
    n = cells.n_cells
    labels = pd.Categorical.from_codes(np.arange(first, first + n) % 3, list(TYPES))
    return pa.table(
        {
            "dataset": cells.dataset.astype(np.int32),
            "row": np.arange(first, first + n, dtype=np.int64),
            "cell_hash": cells.cell_hash,
            "n_counts": cells.n_counts,
            "n_genes": cells.n_genes.astype(np.int32),
            "sketch_a": cells.sketches[:, 0],
            "sketch_b": cells.sketches[:, 1],
            "name": [f"cell{i}" for i in range(first, first + n)],
            "cell_type": pa.DictionaryArray.from_arrays(
                np.asarray(labels.codes, dtype=np.int32), list(TYPES)
            ),
            "donor_id": [f"donor{i % 7}" for i in range(first, first + n)],
        }
    )


def write_toy_store(
    folder: Path,
    rows: CountRows,
    genes: StoreGenes,
    *,
    shard_cells: int = 200,
    block_cells: int = 64,
    name: str = "toy.h5ad",
) -> None:
    """A store of these rows in their order, or more of them in a store that is there."""
    columns = np.arange(len(genes), dtype=np.int32)
    with StoreWriter(folder, block_cells=block_cells) as writer:
        number = len(writer.manifest.datasets) if writer.manifest else 0
        shards = []
        for k, first in enumerate(range(0, rows.n_cells, shard_cells)):
            part = rows.part(first, min(first + shard_cells, rows.n_cells))
            cells = encode(part, columns, gene_key64(genes.keys), number)
            shards.append(
                writer.write_shard(writer.shard_name(k), cells, toy_obs(cells, first), genes)
            )
        id_ = f"{number:06d}"
        var = pd.DataFrame({"symbol": genes.keys}, index=pd.Index(genes.keys))
        writer.write_dataset(id_, var, columns, {"name": name})
        entry = DatasetEntry(
            id=id_,
            name=name,
            path=f"/data/{name}",
            sha256="0" * 64,
            species="human",
            counts_from="X",
            n_read=rows.n_cells,
            n_cells=rows.n_cells,
        )
        donors = tuple(f"donor{i}" for i in range(7))
        obs = {"cell_type": ObsColumn("category", TYPES), "donor_id": ObsColumn("string", donors)}
        writer.commit(genes=genes, shards=shards, datasets=[entry], obs=obs, settings={})
