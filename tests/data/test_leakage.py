"""Copies across the two sides: planted ones are found, others are not made up."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm.data.blocked import BlockedSource
from scfm.data.gene_reading import VocabularyGenes
from scfm.data.leakage import NEAR, find_leaks, holds_whole_counts, keyed
from scfm.data.read import open_counts
from scfm.data.store import Store
from tests.toy_stores import write_store
from tests.toys import toy_vocab

N_GENES = 400
VOCAB = toy_vocab(N_GENES)


def adata_of(counts) -> ad.AnnData:
    var = pd.DataFrame(index=list(VOCAB.symbols))
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(counts))])
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture
def counts(rng) -> np.ndarray:
    """Cells of one kind, alike as cells of a type are: about 200 expressed genes, mostly 1 or 2."""
    share = rng.dirichlet(np.full(N_GENES, 0.6))
    return np.stack([rng.poisson(500 * share * rng.gamma(2, 0.5, N_GENES)) for _ in range(300)])


def leaks(sources, is_held_out):
    vocabulary = VocabularyGenes(VOCAB.symbols, VOCAB.ensembl_ids)
    found = [keyed(source, "human", vocabulary) for source in sources]
    return find_leaks(found, ~is_held_out, is_held_out)


def similarity(one, other) -> float:
    pairs = [{(g, c) for g, c in enumerate(cell) if c} for cell in (one, other)]
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


@pytest.mark.parametrize("kind", ["memory", "file", "store", "file and store"])
def test_planted_copies_are_found(counts, rng, tmp_path, kind):
    """Five exact copies, in another order of columns, and twenty that differ in two genes."""
    training, held_out = counts[:200], counts[200:].copy()
    held_out[:5] = training[10:15]
    held_out[5:25] = training[20:40]
    for i in range(5, 25):
        held_out[i, rng.choice(np.flatnonzero(held_out[i]), 2, replace=False)] += 1
        assert 0.97 < similarity(held_out[i], training[15 + i]) < 1
    one, other = adata_of(training), adata_of(held_out)[:, rng.permutation(N_GENES)].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    is_held_out = np.arange(300) >= 200
    if kind == "memory":
        sources = [BlockedSource(open_counts(one)), BlockedSource(open_counts(other))]
    elif kind == "file":
        on_disk = open_counts(tmp_path / "other.h5ad", backed=True)
        sources = [BlockedSource(open_counts(one)), BlockedSource(on_disk)]
    elif kind == "store":
        store = Store(write_store(tmp_path / "store", {"one": one, "other": other}))
        sources, is_held_out = [store], store.numbers("dataset") == 1
    else:
        store = Store(write_store(tmp_path / "store", {"one": one}))
        sources = [store, BlockedSource(open_counts(other))]
    found = leaks(sources, is_held_out)
    assert (found.n_held_out, found.n_compared, found.exact) == (100, 100, 5)
    assert found.is_complete
    # each of the twenty is seen with a probability above 0.93
    assert 15 <= found.near <= 20
    for a, b, alike in found.examples:
        assert is_held_out[a]
        assert not is_held_out[b]
        assert alike >= NEAR


def test_cells_of_one_type_are_no_copies(counts):
    found = leaks([BlockedSource(open_counts(adata_of(counts)))], np.arange(300) >= 150)
    assert (found.exact, found.near, found.examples) == (0, 0, ())


def test_cells_of_few_genes_are_not_compared():
    counts = np.zeros((10, N_GENES), int)
    counts[:, :19] = 1
    found = leaks([BlockedSource(open_counts(adata_of(counts)))], np.arange(10) >= 5)
    assert (found.n_held_out, found.n_compared, found.exact) == (5, 0, 0)


def test_a_cell_that_is_there_very_often(counts):
    """All held-out copies are counted, though only a few pairs are listed."""
    many = np.concatenate([counts[:50], np.repeat(counts[:1], 500, axis=0)])
    is_held_out = np.arange(550) >= 300
    found = leaks([BlockedSource(open_counts(adata_of(many)))], is_held_out)
    assert found.exact == 250
    assert found.near == 0
    assert len(found.examples) == 5


def test_expected_counts_cannot_be_compared(counts):
    adata = adata_of(counts)
    assert holds_whole_counts(BlockedSource(open_counts(adata)))
    adata.X = sp.csr_matrix(adata.X) * np.float32(30.7)
    assert not holds_whole_counts(BlockedSource(open_counts(adata, expected_counts=True)))
