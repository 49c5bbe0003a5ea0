"""Small h5ad files for the tests of `scfm prepare`, and what a store made of them must hold."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfm.data.prepare import Prepared, prepare
from scfm.data.prepare_plan import PrepareConfig
from scfm.data.store import Store
from scfm.tokens.vocab import GeneVocab

VOCAB = GeneVocab.human()


def toy_file(
    path: Path,
    rng: np.random.Generator,
    n_cells: int = 50,
    n_genes: int = 60,
    *,
    first_gene: int = 0,
    ids: bool = False,
    obs: dict[str, Any] | None = None,
) -> ad.AnnData:
    """Write raw counts of real genes, at least 20 a cell, and return them."""
    dense = rng.poisson(1.2, (n_cells, n_genes)) * rng.choice([1, 1, 1, 300], (n_cells, n_genes))
    dense[:, :20] += 1
    names = (VOCAB.ensembl_ids if ids else VOCAB.symbols)[first_gene : first_gene + n_genes]
    adata = ad.AnnData(
        sp.csr_matrix(dense.astype(np.float32)),
        obs=pd.DataFrame(obs or {}, index=[f"{path.stem}_{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=list(names)),
    )
    adata.write_h5ad(path)
    return adata


def make_store(inputs: list[Path], out: Path, **settings: Any) -> Prepared:
    """`prepare` with the human vocabulary; settings of PrepareConfig or of prepare itself."""
    own = {key: settings.pop(key) for key in ("skip_refused", "restart") if key in settings}
    config = PrepareConfig(**settings)
    return prepare(inputs, out, config, symbols=VOCAB.symbols, ensembl_ids=VOCAB.ensembl_ids, **own)


def cells_of(store: Store, number: int) -> tuple[np.ndarray, sp.csr_matrix]:
    """Source rows of a data set's cells, ascending, and their counts over its own columns."""
    _, store_gene = store.dataset_var(number)
    mine = np.flatnonzero(store.numbers("dataset") == number)
    source_row = store.numbers("row")[mine]
    mine = mine[np.argsort(source_row)]
    rows = store.rows(mine)
    column_of = np.full(len(store.genes), -1)
    column_of[store_gene] = np.arange(len(store_gene))
    columns = column_of[rows.indices]
    assert (columns >= 0).all(), "a cell has counts of genes that its file does not know"
    shape = (len(mine), len(store_gene))
    return np.sort(source_row), sp.csr_matrix((rows.counts, columns, rows.indptr), shape)


def all_files(folder: Path) -> dict[str, bytes]:
    """Every file of a store and its bytes; the lock names a process."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
