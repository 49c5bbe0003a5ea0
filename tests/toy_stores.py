"""Stores of toy data sets for the tests of the training path, in an order that the test knows."""

from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa

from scfm.data.blocks import concatenate, encode, gene_key64, take
from scfm.data.gene_reading import VocabularyGenes
from scfm.data.identity import identify
from scfm.data.manifest import DatasetEntry, ObsColumn, StoreGene
from scfm.data.read import open_counts
from scfm.data.store_writer import StoreWriter
from scfm.tokens.vocab import GeneVocab


def write_store(
    folder: Path,
    datasets: Mapping[str, ad.AnnData],
    *,
    obs: tuple[str, ...] = (),
    species: str = "human",
    shard_cells: int = 70,
    block_cells: int = 8,
    seed: int = 0,
) -> Path:
    """A store of all these cells in random order, or more of them in a store that is there."""
    vocabulary = VocabularyGenes(GeneVocab.human().symbols, GeneVocab.human().ensembl_ids)
    with StoreWriter(folder, block_cells=block_cells) as writer:
        first = len(writer.manifest.datasets) if writer.manifest else 0
        genes, parts, entries, tables = writer.genes, [], [], []
        for number, (name, adata) in enumerate(datasets.items(), start=first):
            columns = identify(adata.var, species, vocabulary)  # pyright: ignore
            genes = genes.extended(map(StoreGene, *vars(columns).values()))
            to_store = np.array([genes.position(key) for key in columns.keys], dtype=np.int32)
            rows = open_counts(adata).rows(np.arange(adata.n_obs))
            parts.append((rows, to_store, number))
            tables.append(adata.obs[list(obs)].astype(str).assign(row=np.arange(adata.n_obs)))
            id_ = f"{number:06d}"
            writer.write_dataset(id_, adata.var, to_store, {})
            sizes = {"n_read": adata.n_obs, "n_cells": adata.n_obs}
            entry = {"path": name, "sha256": "0" * 64, "species": species, "counts_from": "X"}
            entries.append(DatasetEntry(id=id_, name=name, **entry, **sizes))
        keys = gene_key64(genes.keys)
        cells = concatenate([encode(rows, to, keys, number) for rows, to, number in parts])
        table = pd.concat(tables, ignore_index=True)
        order = np.random.default_rng(seed).permutation(cells.n_cells)
        shards = [
            writer.write_shard(
                writer.shard_name(k), some := take(cells, part), _obs_of(some, table, part), genes
            )
            for k, part in enumerate(np.split(order, range(shard_cells, len(order), shard_cells)))
        ]
        kinds = {name: ObsColumn("string", tuple(sorted(set(table[name])))) for name in obs}
        writer.commit(genes=genes, shards=shards, datasets=entries, obs=kinds, settings={})
    return folder


def _obs_of(cells, table: pd.DataFrame, part: np.ndarray) -> pa.Table:
    numbers = {
        "dataset": cells.dataset.astype(np.int32),
        "cell_hash": cells.cell_hash,
        "n_counts": cells.n_counts,
        "n_genes": cells.n_genes.astype(np.int32),
        "sketch_a": cells.sketches[:, 0],
        "sketch_b": cells.sketches[:, 1],
    }
    return pa.table({**numbers, **{name: table[name].to_numpy()[part] for name in table}})
