"""Baselines: the figures known for the bundled cells, and the bundled cells themselves."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from scfm.errors import GeneCoverageError, LabelError
from scfm.evaluate.baselines import BASELINES, baseline_predictions
from scfm.evaluate.celltype import common_labels, read_label_mapping
from scfm.evaluate.log_counts import CountTable, log1p_cp10k, shared_genes
from scfm.metrics import accuracy, macro_f1

N_CELLS = {"zheng_facs_pbmc": (3_874, 16_791), "pbmc3k": (2_700, 32_738)}
LABEL_KEYS = {"zheng_facs_pbmc": "celltype", "pbmc3k": "cell_type"}


@pytest.fixture(scope="module")
def bundled(demo_cells):
    return {name: ad.read_h5ad(demo_cells / f"{name}.h5ad") for name in N_CELLS}


def test_the_known_figures_on_the_bundled_cells(bundled, demo_cells):
    """Macro-F1 and accuracy published with the reference point; the fifth has no oracle."""
    mapping = read_label_mapping(demo_cells / "pbmc_label_mapping.csv")
    reference, query = bundled["zheng_facs_pbmc"], bundled["pbmc3k"]
    labels = common_labels(reference.obs["celltype"].to_numpy(), mapping["zheng_facs_pbmc"])
    truth = common_labels(query.obs["cell_type"].to_numpy(), mapping["pbmc3k"])
    assert labels.is_kept.all()
    assert truth.is_kept.sum() == 2_592

    found = baseline_predictions(
        CountTable(reference.X, list(reference.var["symbol"])),
        labels.labels,
        CountTable(query.X[np.flatnonzero(truth.is_kept)], list(query.var_names)),
    )
    expected = {
        "majority": (0.125, 0.455),
        "pca_knn": (0.770, 0.684),
        "pca_logistic": (0.835, 0.848),
        "hvg_logistic": (0.859, 0.838),
    }
    assert set(found) == {*expected, "pca_centred_knn"}
    kept = truth.labels[truth.is_kept]
    for key, (f1, share_right) in expected.items():
        assert macro_f1(kept, found[key].predicted) == pytest.approx(f1, abs=0.01), key
        assert accuracy(kept, found[key].predicted) == pytest.approx(share_right, abs=0.01), key


def test_the_symbols_both_sets_share(bundled):
    ours, theirs = shared_genes(
        list(bundled["zheng_facs_pbmc"].var["symbol"]), list(bundled["pbmc3k"].var_names)
    )
    assert len(ours) == len(theirs) == 16_782


@pytest.mark.parametrize("name", N_CELLS)
def test_bundled_cells_are_raw_counts_equal_to_their_source(bundled, name, shared_data):
    cells = bundled[name]
    assert cells.shape == N_CELLS[name]
    assert cells.X.format == "csr"
    assert cells.X.data.dtype == np.int32
    assert cells.X.has_canonical_format
    assert cells.X.data.min() == 1
    assert cells.var_names.is_unique
    assert cells.obs_names.is_unique
    if shared_data is not None:
        source = ad.read_h5ad(shared_data / "rna" / f"{name}.h5ad")
        key = LABEL_KEYS[name]
        assert cells.obs[key].astype(str).equals(source.obs[key].astype(str))
        assert (cells[:, source.var_names].X != source.X).nnz == 0


def test_bundled_cells_are_small(demo_cells):
    assert sum(path.stat().st_size for path in demo_cells.iterdir()) < 8_000_000


def test_log1p_cp10k_matches_scanpy(rng):
    counts = sp.csr_matrix(rng.poisson(0.7, size=(40, 30)).astype(np.int32))
    table = ad.AnnData(counts.astype(np.float64))
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    columns = rng.permutation(30)[:20]
    ours = log1p_cp10k(counts, columns)
    np.testing.assert_allclose(ours.toarray(), table.X[:, columns].toarray(), rtol=1e-10)
    assert counts.dtype == np.int32  # the caller's counts stay raw


def test_shared_genes_take_the_first_of_equal_names():
    ours, theirs = shared_genes(["B", "A", "B", "X"], ["A", "C", "B", "A"])
    assert ours.tolist() == [0, 1]
    assert theirs.tolist() == [2, 0]


@pytest.fixture
def small(rng):
    code = np.repeat([0, 1, 2], 30)
    mean = rng.gamma(0.6, 3, size=(3, 200))[code]
    names = np.array(["A", "B", "C"], dtype=object)[code]
    genes = [f"gene{i}" for i in range(200)]
    return sp.csr_matrix(rng.poisson(mean)), names, sp.csr_matrix(rng.poisson(mean)), genes


def test_every_baseline_but_the_majority_learns_what_is_plain(small):
    reference, names, query, genes = small
    found = baseline_predictions(CountTable(reference, genes), names, CountTable(query, genes))
    for key in BASELINES:
        right = accuracy(names, found[key].predicted)
        assert right == pytest.approx(1 / 3) if key == "majority" else right > 0.95


def test_gene_order_and_unshared_genes_do_not_matter(small, rng):
    reference, names, query, genes = small
    order = rng.permutation(200)
    moved = CountTable(query[:, order], [genes[i] for i in order])
    keys = ["pca_knn", "pca_centred_knn"]
    one = baseline_predictions(
        CountTable(reference, genes), names, CountTable(query, genes), keys=keys
    )
    two = baseline_predictions(CountTable(reference, genes), names, moved, keys=keys)
    for key in keys:
        np.testing.assert_array_equal(one[key].predicted, two[key].predicted)


def test_no_shared_gene_is_refused(small):
    reference, names, query, genes = small
    other = [f"ENSG{i}" for i in range(200)]
    with pytest.raises(GeneCoverageError, match=r"gene0, gene1, gene2, the query ENSG0.*symbols"):
        baseline_predictions(CountTable(reference, genes), names, CountTable(query, other))


def test_a_reference_cell_without_a_label_is_refused(small):
    reference, names, query, genes = small
    names[3] = np.nan
    with pytest.raises(LabelError, match="each of 90 reference cells, got 89 in 90"):
        baseline_predictions(CountTable(reference, genes), names, CountTable(query, genes))
