"""scfm.tl.embed on converted weights gives the original's embeddings, from counts by gene name.

From the file as published, through ``scfm convert``, the reader, the tokenizer and the pooling: the
columns lie in another order, and there are more of them than the model knows.
"""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scfm
from scfm.cli.app import main
from scfm.tokens.vocab import GeneVocab

EMBEDDING = 2e-5  # largest absolute difference allowed


@pytest.fixture(scope="module")
def oracle(shared_oracles):
    if shared_oracles is None:
        pytest.skip("the original's outputs are not beside this checkout")
    folder = shared_oracles / "scfoundation"
    with np.load(folder / "expected.npz") as file:
        return folder / "models.ckpt", dict(file)


@pytest.fixture(scope="module", params=["cell", "rde"])
def of_key(request, oracle, tmp_path_factory):
    """A model as the command line converts it, and its key."""
    out = tmp_path_factory.mktemp("converted") / request.param
    command = ["convert", "scfoundation", str(oracle[0]), "--key", request.param, "--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    return request.param, scfm.load(out)


def table(counts: np.ndarray, order: np.ndarray, n_extra: int) -> ad.AnnData:
    """The cells with their columns in this order, and some that are no genes of the model."""
    symbols = [GeneVocab.scfoundation().symbols[i] for i in order]
    extra = np.full((len(counts), n_extra), 7)
    columns = [*symbols, *(f"no gene {i}" for i in range(n_extra))]
    matrix = np.hstack([counts[:, order], extra]).astype(np.float32)
    cells = pd.DataFrame(index=[f"cell {i}" for i in range(len(counts))])
    return ad.AnnData(sp.csr_matrix(matrix), obs=cells, var=pd.DataFrame(index=columns))


@pytest.mark.parametrize(("n_extra", "batch_size"), [(0, 3), (40, 1)])
@pytest.mark.parametrize("how", ["t4", "f2", "a1"])
@pytest.mark.parametrize("pooling", ["all", "max"])
def test_embeddings_are_the_originals(of_key, oracle, rng, how, pooling, n_extra, batch_size):
    key, model = of_key
    counts = oracle[1]["counts"]
    adata = table(counts, rng.permutation(counts.shape[1]), n_extra)
    options = {"pooling": pooling, "target_depth": how, "batch_size": batch_size}
    scfm.tl.embed(adata, model, minimum_coverage=0, **options)
    gap = np.abs(adata.obsm["X_scfm"] - oracle[1][f"{key}_{how}_{pooling}"])
    assert gap.max() <= EMBEDDING


def test_columns_by_position_would_be_seen(of_key, oracle, rng):
    """The control: the same numbers under other names give other embeddings."""
    key, model = of_key
    counts = oracle[1]["counts"]
    adata = table(counts, np.arange(counts.shape[1]), 0)
    adata.var_names = rng.permutation(adata.var_names.to_numpy())
    scfm.tl.embed(adata, model, pooling="all", target_depth="t4", minimum_coverage=0)
    gap = np.abs(adata.obsm["X_scfm"] - oracle[1][f"{key}_t4_all"])
    assert gap.max() > 1000 * EMBEDDING
