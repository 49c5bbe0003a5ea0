"""Baselines against closed forms, scores by hand, and verdicts that say when we lose."""

import json

import numpy as np
import pytest

from scfm.evaluate.perturbation import baseline_changes, control_profile, judge_split, top_genes
from scfm.evaluate.perturbation_baselines import (
    fit_linear,
    gene_components,
    of_measured,
    sum_features,
    unit_scores,
)
from scfm.evaluate.perturbation_scores import (
    SCORES,
    evaluate_scores,
    pearson,
    score_profile,
)
from scfm.model.perturbation import PerturbationSizes
from scfm.tasks.perturbation import new_head
from scfm.tasks.perturbation_data import split_perturbations
from tests.perturbation_screen import N_VOCABULARY, simulated_screen
from tests.toys import toy_vocab


@pytest.fixture
def screen(rng):
    return simulated_screen(rng, offset=0.2)


@pytest.fixture
def split(screen):
    return split_perturbations(screen.cells, screen.cells.names[::4], seed=0)


def test_linear_model_minimises_its_objective(rng):
    """The gradient of |Y - GWP'|^2 with Ahlmann-Eltze's ridge vanishes where r = 0."""
    y, p, g = rng.normal(size=(9, 7)), rng.normal(size=(9, 3)), rng.normal(size=(7, 4))
    fitted = fit_linear(y, p, g, ridge=0.0)
    residual = (y - y.mean(0)).T - g @ fitted.weights @ p.T
    np.testing.assert_allclose(g.T @ residual @ p, 0, atol=1e-10)


def test_linear_model_is_the_papers_formula(rng):
    y, p, g = rng.normal(size=(9, 7)), rng.normal(size=(9, 3)), rng.normal(size=(7, 4))
    fitted = fit_linear(y, p, g, ridge=0.1)
    expected = (
        np.linalg.inv(g.T @ g + 0.1 * np.eye(4))
        @ (g.T @ (y - y.mean(0)).T @ p)
        @ np.linalg.inv(p.T @ p + 0.1 * np.eye(3))
    )
    np.testing.assert_allclose(fitted.weights, expected, rtol=1e-10)
    np.testing.assert_allclose(fitted.mean, y.mean(0))
    np.testing.assert_allclose(fitted.predict(p[2]), g @ expected @ p[2] + y.mean(0), rtol=1e-10)


def test_strong_ridge_is_the_mean_change(rng):
    y, p, g = rng.normal(size=(9, 7)), rng.normal(size=(9, 3)), rng.normal(size=(7, 4))
    found = fit_linear(y, p, g, ridge=1e9).predict(p[0])
    np.testing.assert_allclose(found, y.mean(0), atol=1e-8)


def test_components_are_scikit_learns(rng):
    from sklearn.decomposition import PCA

    rows = rng.normal(size=(30, 8))
    theirs = PCA(3).fit_transform(rows)
    ours = unit_scores(rows, 3) * theirs[:, 0].std()
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-8)
    assert gene_components(rows, 3).shape == (8, 3)


def test_unmeasured_targets_have_no_feature(rng):
    table = of_measured(rng.normal(size=(4, 2)), np.array([1, 3, 4, 8]), 10)
    assert (table[[0, 2, 5, 9]] == 0).all()
    np.testing.assert_allclose(sum_features(table, [(1, 8), (0,)])[0], table[1] + table[8])


def test_a_linear_truth_is_found_from_the_embeddings(screen, split):
    """What the simulation adds is linear in the embedding: this baseline must find it."""
    known = [*split.training, *split.validation]
    found = baseline_changes(screen.cells, split, known, screen.embeddings)
    errors = dict.fromkeys(found, 0.0)
    for name, targets in zip(split.held_out, screen.cells.targets_of(split.held_out), strict=True):
        truth = screen.effects[list(targets)].sum(0)
        for key, of in found.items():
            errors[key] += np.mean((of[name] - truth) ** 2)
        np.testing.assert_array_equal(found["no_change"][name], 0)
    assert errors["linear_embeddings"] < 0.1 * errors["mean_change"] < errors["no_change"], errors


def test_mean_change_by_hand(screen, split):
    cells, known = screen.cells, list(split.training)
    dense = cells.expression.toarray().astype(np.float64)
    changes = []
    for name in known:
        own = cells.cells_of(name)
        share = cells.batch[own].mean()
        controls = split.training_controls
        means = [dense[controls[cells.batch[controls] == b]].mean(0) for b in (0, 1)]
        changes.append(dense[own].mean(0) - (1 - share) * means[0] - share * means[1])
    found = baseline_changes(cells, split, known, screen.embeddings)["mean_change"]
    np.testing.assert_allclose(found[split.held_out[0]], np.mean(changes, 0), rtol=1e-6)


def test_baselines_see_no_held_out_cell(screen, split):
    known = [*split.training, *split.validation]
    before = baseline_changes(screen.cells, split, known, screen.embeddings)
    unseen = np.concatenate(
        [*(screen.cells.cells_of(name) for name in split.held_out), split.held_out_controls]
    )
    table = screen.cells.expression.tolil()
    table[unseen] = 50.0
    object.__setattr__(screen.cells, "expression", table.tocsr())
    after = baseline_changes(screen.cells, split, known, screen.embeddings)
    for key, of in before.items():
        for name, change in of.items():
            np.testing.assert_array_equal(change, after[key][name])


def test_top_genes_are_scanpys(screen, split):
    import anndata as ad
    import scanpy as sc

    cells, name = screen.cells, split.held_out[0]
    chosen = np.concatenate([cells.cells_of(name), split.held_out_controls])
    groups = np.repeat(["p", "c"], [len(cells.cells_of(name)), len(split.held_out_controls)])
    table = ad.AnnData(cells.expression[chosen])
    table.obs["g"] = groups
    table.obs["g"] = table.obs["g"].astype("category")
    table.uns["log1p"] = {"base": None}
    sc.tl.rank_genes_groups(table, "g", groups=["p"], reference="c", rankby_abs=True)
    theirs = table.uns["rank_genes_groups"]["names"]["p"].astype(int)[:10]
    assert top_genes(cells, split, name, 10).tolist() == theirs.tolist()


def test_scores_by_hand():
    start, reference = np.array([1.0, 1, 1, 1]), np.array([1.0, 1, 2, 1])
    predicted, measured = np.array([2.0, 1, 1, 0]), np.array([3.0, 1, 1, 1])
    found = score_profile(predicted, measured, start, reference, np.array([0, 3]))
    assert found["mse"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found["mse_top20"] == pytest.approx(1.0)
    expected = np.corrcoef([1, 0, 0, -1], [2, 0, -1, 0])[0, 1]
    assert found["pearson_change"] == pytest.approx(expected)


def test_pearson_of_no_change_is_zero(rng):
    assert pearson(np.zeros(5), rng.normal(size=5)) == 0.0


def test_judging_an_untrained_head_is_judging_no_change(screen, split):
    head = new_head(
        screen.cells, split, screen.embeddings, toy_vocab(N_VOCABULARY), PerturbationSizes(), seed=0
    ).eval()
    rows = judge_split(screen.cells, split, {"head": head}, screen.embeddings)
    assert len(rows) == 5 * len(split.held_out)
    by = {(row["perturbation"], row["method"]): row for row in rows}
    for name in split.held_out:
        for score in ("mse", "mse_top20"):
            ours, theirs = by[name, "head"][score], by[name, "no_change"][score]
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_start_is_not_the_reference(screen, split):
    """The two control halves differ by noise alone, and no method sees the second."""
    name = split.held_out[0]
    ours = control_profile(screen.cells, split.training_controls, name)
    theirs = control_profile(screen.cells, split.held_out_controls, name)
    assert 0 < np.abs(ours - theirs).max() < 0.3


def rows_with(head: list[float], mean: list[float], none: list[float]) -> list[dict]:
    methods = {"head": head, "mean_change": mean, "no_change": none}
    return [
        {"perturbation": f"g{i}", "method": key, "repeat": 0, "n_cells": 9}
        | dict.fromkeys(SCORES, value)
        for key, values in methods.items()
        for i, value in enumerate(values)
    ]


def test_verdict_names_the_winner_plainly():
    low, middle, high = [0.1, 0.11, 0.09, 0.1], [0.2, 0.21, 0.2, 0.19], [0.5, 0.5, 0.6, 0.5]
    won = evaluate_scores(rows_with(low, middle, high), {}).verdict
    assert won.startswith("The head wins over the best baseline, mean of training perturbations")
    assert "0.1000 against 0.2000" in won
    lost = evaluate_scores(rows_with(high, middle, low), {}).verdict
    assert lost.startswith("A baseline wins, no change")
    assert "+0.4250" in lost


def test_verdict_says_when_nothing_can_be_told():
    found = evaluate_scores(rows_with([0.1, 0.4], [0.4, 0.1], [0.9, 0.9]), {})
    assert found.verdict.startswith("Neither wins")
    interval = found.versus["mean_change"]["mse_top20"]
    assert interval.low < 0 < interval.high


def test_repeats_are_averaged_before_perturbations_are_drawn():
    rows = rows_with([0.2, 0.4], [0.3, 0.3], [0.9, 0.9])
    more = [{**row, "repeat": 1, "mse": row["mse"] + 0.2} for row in rows]
    found = evaluate_scores([*rows, *more], {})
    assert found.scores["head"]["mse"].value == pytest.approx(0.4)
    assert len(found.table) == 6


def test_metrics_are_json_and_begin_with_the_verdict():
    found = evaluate_scores(rows_with([0.1, 0.2], [0.3, 0.3], [0.9, 0.9]), {"data": {"n": 3}})
    text = json.dumps(found.to_dict())
    assert text.startswith('{"verdict": "')
    assert json.loads(text)["data"] == {"n": 3}
