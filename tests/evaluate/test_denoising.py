"""The evaluation of denoising: thinning, the baselines, the protocol, its outputs."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

import scfm.tokens.inputs
from scfm.errors import ConfigError, InputError, LabelError
from scfm.evaluate.denoisers import ThinnedCells, neighbour_mean, no_op, type_mean
from scfm.evaluate.denoising import (
    DenoisingConfig,
    evaluate_denoising,
    judged_genes,
    write_denoising,
)
from scfm.evaluate.denoising_result import DenoisingResult, ShareResult
from scfm.evaluate.profile_scores import SCORES
from scfm.evaluate.results import Interval
from scfm.evaluate.thinned import sample_cells, thin
from scfm.tokens.inputs import InputConfig
from scfm.tokens.vocab import GeneVocab
from tests.toys import toy_adata, toy_model, toy_scfoundation, toy_vocab

SMALL = {"n_cells": 10, "n_context_cells": 30, "n_bootstrap": 20, "shares": (0.1, 0.3)}


@pytest.fixture
def adata(rng):
    return toy_adata(rng, n_cells=40)


def test_thinning_is_binomial(rng):
    """Moments over 3,000 cells; zeros stay zero, nothing grows, nothing stored is zero."""
    counts = sp.csr_matrix(np.tile([0, 1, 7, 400], (3000, 1)))
    thinned = thin(counts, 0.2, rng)
    assert (thinned.data > 0).all()
    dense = thinned.toarray()
    for column, n in enumerate([0, 1, 7, 400]):
        assert dense[:, column].max() <= n
        assert dense[:, column].mean() == pytest.approx(0.2 * n, abs=5 * np.sqrt(n * 0.16 / 3000))
        assert dense[:, column].var() == pytest.approx(0.16 * n, rel=0.15, abs=1e-12)


def thinned_cells(counts, labels=None, genes=None):
    counts = sp.csr_matrix(counts)
    genes = np.arange(counts.shape[1]) if genes is None else genes
    return ThinnedCells(counts, np.array([0, 2]), genes, labels, seed=0)


def test_no_op_is_the_thinned_profile():
    counts = np.array([[1, 0, 3], [2, 2, 0], [0, 5, 5]])
    expected = np.log1p(1e4 * np.array([[0.75, 0.25], [0.5, 0.0]]))
    np.testing.assert_allclose(no_op(thinned_cells(counts, genes=np.array([2, 0]))), expected)


def test_type_mean_pools_counts():
    counts = np.array([[1, 0, 3], [2, 2, 0], [0, 5, 5], [1, 1, 1]])
    found = type_mean(thinned_cells(counts, labels=np.array([1, 1, 0, -1])))
    expected = np.log1p(1e4 * np.array([[3 / 8, 2 / 8, 3 / 8], [0, 0.5, 0.5]]))
    np.testing.assert_allclose(found, expected)


def test_clusters_stand_in_for_labels(rng):
    """Two kinds of cells far apart: with two clusters the means are those of the kinds."""
    kinds = np.arange(40) % 2
    counts = rng.poisson(np.where(kinds[:, None] == 0, [50, 1, 1, 9], [1, 50, 9, 1]))
    import scfm.evaluate.denoisers as denoisers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoisers, "N_CLUSTERS", 2)
        found = type_mean(thinned_cells(counts))
    np.testing.assert_allclose(found, type_mean(thinned_cells(counts, labels=kinds)))


def test_neighbours_average_cp10k_with_themselves(rng, monkeypatch):
    """Oracle: sorted distances in the same components, by hand."""
    monkeypatch.setattr("scfm.evaluate.denoisers.N_NEIGHBOURS", 4)
    cells = thinned_cells(rng.poisson(3, size=(25, 12)) + np.eye(25, 12, dtype=int))
    found = neighbour_mean(cells)
    cp10k = cells.cp10k.toarray()
    for row, cell in enumerate(cells.judged):
        distance = np.linalg.norm(cells.coordinates - cells.coordinates[cell], axis=1)
        nearest = np.argsort(distance)[:4]
        assert cell in nearest
        np.testing.assert_allclose(found[row], np.log1p(cp10k[nearest].mean(0)))


def test_cells_are_those_of_the_data(adata):
    model = toy_model()
    cells = sample_cells(
        *(adata, model.vocab, model.token_config),
        label_key="cell_type",
        n_judged=7,
        n_context=25,
        seed=1,
        config=InputConfig(),
    )
    rows = {tuple(row) for row in adata.X.toarray().astype(int)}
    assert cells.counts.shape == (25, 50)
    assert all(tuple(row) in rows for row in cells.counts.toarray())
    assert len(set(cells.judged)) == 7
    is_b = cells.counts.toarray()[:, 3] >= 80
    assert [cells.label_names[code] for code in cells.labels] == ["B" if b else "A" for b in is_b]


@pytest.mark.parametrize("family", ["scfm", "scfoundation"])
def test_the_whole_protocol(adata, family, tmp_path):
    model = toy_model() if family == "scfm" else toy_scfoundation(60)
    seen = []
    found = evaluate_denoising(
        *(adata, model),
        label_key="cell_type",
        config=DenoisingConfig(**SMALL),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [at.share for at in found.shares] == [0.1, 0.3]
    assert [at.target_depth for at in found.shares] == ["f10", "f3.33333"]
    for at in found.shares:
        assert set(at.scores) == {"scfm", "no_op", "neighbours", "type_mean"}
        assert at.n_cells + at.n_empty == 10
        for scores in at.scores.values():
            for name in SCORES:
                assert scores[name].low <= scores[name].high
                assert np.isfinite(scores[name].value)
    assert seen[-1] == (20, 20)
    write_denoising(found, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["verdict"] == found.verdict
    assert found.table().startswith(found.verdict)
    assert written["data"]["judged_cells"] == 10
    assert (tmp_path / "out" / "denoising.png").read_bytes()[:4] == b"\x89PNG"


def test_any_vocabulary_will_do(adata, monkeypatch):
    """Names of no species' tables; the thinned cells' genes are known, not looked up by name."""
    vocab = toy_vocab()
    made_up = GeneVocab(tuple(f"gene {i}" for i in range(50)), ("",) * 50)
    config = DenoisingConfig(**SMALL)
    expected = evaluate_denoising(adata, toy_model(vocab), config=config).shares
    adata.var_names = list(made_up.symbols)
    looked_up = []
    real = scfm.tokens.inputs.align
    monkeypatch.setattr(
        "scfm.tokens.inputs.align", lambda *a, **k: looked_up.append(k["name"]) or real(*a, **k)
    )
    assert evaluate_denoising(adata, toy_model(made_up), config=config).shares == expected
    assert len(looked_up) == 1, "of the data alone"


def test_the_same_seed_gives_the_same_numbers(adata):
    options = {"config": DenoisingConfig(**SMALL)}
    one, two = (evaluate_denoising(adata, toy_model(), **options) for _ in range(2))
    assert one.to_dict() == two.to_dict()


def test_no_method_sees_the_truth(adata, monkeypatch):
    """With every molecule lost but one a cell, nothing of the rest reaches a prediction."""
    given = []
    real = ThinnedCells.__init__

    def spy(self, *args, **kwargs):
        real(self, *args, **kwargs)
        given.append(self.counts)

    monkeypatch.setattr(ThinnedCells, "__init__", spy)
    monkeypatch.setattr(
        "scfm.evaluate.denoising.thin",
        lambda counts, share, rng: sp.csr_matrix(
            (np.ones(counts.shape[0], int), (np.arange(counts.shape[0]), counts.argmax(1).A1)),
            shape=counts.shape,
        ),
    )
    predicted = {}
    monkeypatch.setattr(
        "scfm.evaluate.denoising.score_profiles",
        lambda truth, predictions, **_: predicted.update(predictions) or stop(),
    )

    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        evaluate_denoising(adata, toy_model(), config=DenoisingConfig(**SMALL))
    assert (given[0].sum(1) == 1).all()
    assert (np.count_nonzero(predicted["no_op"], axis=1) <= 1).all()


def test_judged_genes_are_expressed(adata):
    model = toy_model()
    cells = sample_cells(
        *(adata, model.vocab, model.token_config),
        label_key=None,
        n_judged=20,
        n_context=40,
        seed=0,
        config=InputConfig(),
    )
    genes = judged_genes(cells, DenoisingConfig(n_genes=10, min_detection=0.3))
    share = (cells.counts[cells.judged] > 0).toarray().mean(0)
    assert len(genes) == 10
    assert (share[genes] >= 0.3).all()
    with pytest.raises(InputError, match="expressed in at least"):
        judged_genes(cells, DenoisingConfig(min_detection=1.0))


def result(ours, rival, low, high):
    scores = {
        method: {name: Interval(value, value, value) for name in SCORES}
        for method, value in (("scfm", ours), ("no_op", rival + 1), ("neighbours", rival))
    }
    versus = {
        method: {name: Interval(ours - rival, low, high) for name in SCORES}
        for method in ("no_op", "neighbours")
    }
    at = ShareResult(0.1, 50, 0, 200.0, "f10", scores, versus)
    return DenoisingResult({"name": "x"}, {"min_detection": 0.05}, (at,))


def test_the_verdict_names_the_winner():
    assert (
        "kNN smoothing, wins: MAE 0.300 against scfm's 0.400" in result(0.4, 0.3, 0.05, 0.2).verdict
    )
    assert "scfm wins: MAE 0.200 against 0.300" in result(0.2, 0.3, -0.2, -0.05).verdict
    assert "no clear winner" in result(0.29, 0.3, -0.05, 0.03).verdict


def test_what_cannot_be_judged_is_refused(adata):
    for options in ({"shares": (1.0,)}, {"shares": ()}, {"n_cells": 3}, {"target_depth": "deep"}):
        with pytest.raises(ConfigError):
            DenoisingConfig(**options)
    with pytest.raises(LabelError):
        evaluate_denoising(adata, toy_model(), label_key="absent", config=DenoisingConfig(**SMALL))
    with pytest.raises(InputError, match="Give more cells"):
        evaluate_denoising(adata[:5].copy(), toy_model(), config=DenoisingConfig(**SMALL))
