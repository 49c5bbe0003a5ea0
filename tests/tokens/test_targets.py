"""Target drawing: exact amounts, only genes that qualify, every one as likely."""

import numpy as np
import pytest
import scipy.stats

from scfm.tokens.rng import cell_keys
from scfm.tokens.targets import draw_targets


def draw_many(expressed, measured, n_cells=4000, n_genes=200, seed=0, **settings):
    """The same cell many times: is_kept and is_target (cells x expressed), zero genes a cell."""
    indptr = np.arange(n_cells + 1) * len(expressed)
    genes = np.tile(np.asarray(expressed, dtype=np.int32), n_cells)
    keys = cell_keys(seed, 0, np.arange(n_cells))
    drawn = draw_targets(indptr, genes, np.asarray(measured), keys, n_genes=n_genes, **settings)
    zeros = np.split(drawn.zero_genes, drawn.zero_indptr[1:-1])
    shape = (n_cells, len(expressed))
    return drawn.is_kept.reshape(shape), drawn.is_target.reshape(shape), zeros


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 63, 64, 65, 130])
def test_amounts_are_exact(n, share):
    kept, targets, zeros = draw_many(
        np.arange(n), np.arange(200), n_cells=20, target_share=share, zero_ratio=0.5
    )
    n_targets = min(n, max(1, round(share * n)))
    assert kept.all()
    assert (targets.sum(1) == n_targets).all()
    assert all(len(z) == min(200 - n, round(0.5 * n_targets)) for z in zeros)


def test_zeros_are_measured_genes_without_a_count(rng):
    measured = np.sort(rng.choice(200, 150, replace=False))
    expressed = np.sort(rng.choice(measured, 60, replace=False))
    _, _, zeros = draw_many(expressed, measured, n_cells=200)
    for genes in zeros:
        assert len(genes) == 18
        assert (np.diff(genes) > 0).all()
        assert np.isin(genes, np.setdiff1d(measured, expressed)).all()


def inclusion_pvalue(is_drawn: np.ndarray) -> float:
    """Chi-square of how often each of n was drawn, for k of n without replacement."""
    n_draws, n = is_drawn.shape
    share = is_drawn.sum() / is_drawn.size
    # without replacement the counts vary less and sum to a constant: n - 1 degrees of freedom
    deviation = (is_drawn.sum(0) - n_draws * share) ** 2 / (n_draws * share * (1 - share))
    return float(scipy.stats.chi2.sf(deviation.sum() * (n - 1) / n, n - 1))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_targets_are_uniform(share):
    _, targets, _ = draw_many(np.arange(70), np.arange(200), target_share=share)
    assert inclusion_pvalue(targets) > 1e-3
    pairs = np.corrcoef(targets.T)[np.triu_indices(70, 1)]
    assert pairs.mean() == pytest.approx(-1 / 69, abs=2e-3)  # as for any k of 70


# blind draws, most of the zeros, and next to no zeros among the measured
@pytest.mark.parametrize(("n_expressed", "ratio"), [(40, 1.0), (40, 8.0), (185, 0.1)])
def test_zeros_are_uniform(rng, n_expressed, ratio):
    expressed = np.sort(rng.choice(200, n_expressed, replace=False))
    _, _, zeros = draw_many(expressed, np.arange(200), zero_ratio=ratio)
    is_drawn = np.zeros((len(zeros), 200), bool)
    is_drawn[np.repeat(np.arange(len(zeros)), [len(z) for z in zeros]), np.concatenate(zeros)] = (
        True
    )
    assert inclusion_pvalue(np.delete(is_drawn, expressed, axis=1)) > 1e-3


def test_of_too_many_genes_a_uniform_subset_is_kept():
    kept, targets, _ = draw_many(np.arange(150), np.arange(200), max_genes=100)
    assert (kept.sum(1) == 100).all()
    assert (targets.sum(1) == 30).all()
    assert not (targets & ~kept).any()
    assert inclusion_pvalue(kept) > 1e-3
    assert inclusion_pvalue(targets) > 1e-3


def test_a_panel_without_enough_zeros_gives_all_it_has():
    _, targets, zeros = draw_many(np.arange(196), np.arange(200), n_cells=20)
    assert (targets.sum(1) == 59).all()
    assert all(genes.tolist() == [196, 197, 198, 199] for genes in zeros)
    _, _, zeros = draw_many(np.arange(200), np.arange(200), n_cells=20)
    assert all(len(genes) == 0 for genes in zeros)


def test_no_cells():
    drawn = draw_targets(
        np.zeros(1, int),
        np.zeros(0, np.int32),
        np.arange(5),
        cell_keys(0, 0, np.arange(0)),
        n_genes=5,
    )
    assert [len(x) for x in drawn] == [0, 0, 1, 0]
