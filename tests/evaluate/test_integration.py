"""Integration scores: closed forms, scib-metrics' numbers, and what mixing and splitting do."""

import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.neighbors import NearestNeighbors

from scfm.errors import ConfigError, LabelError
from scfm.evaluate.integration import (
    IntegrationConfig,
    evaluate_integration,
    harmony,
    require_packages,
)
from scfm.evaluate.integration_scores import (
    BATCH,
    BIOLOGICAL,
    graph_connectivity,
    integration_scores,
    knn_graph,
    lisi,
    scaled_clisi,
    scaled_ilisi,
    silhouette_batch,
)
from scfm.model.base import save_model
from tests.browser import CHROMIUM, look_at
from tests.cli.test_refusals import assert_refused, run
from tests.toys import toy_adata, toy_model

igraph = pytest.importorskip("igraph", reason="needs the extra 'integration'")
harmonypy = pytest.importorskip("harmonypy", reason="needs the extra 'integration'")


@pytest.fixture(scope="module")
def blobs():
    """600 cells of four types, three batches a little apart."""
    rng = np.random.default_rng(0)
    label, batch = rng.integers(0, 4, 600), rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 10))
    x[:, 0] += label * 2
    x[:, 1] += batch * 0.8
    distance, neighbour = NearestNeighbors(n_neighbors=90).fit(x).kneighbors()
    own = np.arange(600)[:, None]
    return x, label, batch, distance, np.hstack([own, neighbour])[:, 1:]


def test_scib_metrics_says_the_same(blobs):
    """Computed once with scib-metrics 0.5.10 on these very cells."""
    x, label, batch, distance, neighbour = blobs
    assert silhouette_batch(x, label, batch) == pytest.approx(0.9511231, abs=1e-5)
    found = scaled_ilisi(lisi(distance, neighbour, batch), batch)
    assert found == pytest.approx(0.74694685, abs=2e-3)
    found = scaled_clisi(lisi(distance, neighbour, label), label)
    assert found == pytest.approx(0.6643937, abs=2e-3)


def test_lisi_counts_what_is_there():
    """Equal distances: n categories in equal parts are n, one alone is 1."""
    neighbour = np.tile(np.arange(12), (12, 1))
    distance = np.ones((12, 12))
    for n in (1, 2, 3, 4):
        codes = np.arange(12) % n
        np.testing.assert_allclose(lisi(distance, neighbour, codes), n, rtol=1e-9)
    assert scaled_clisi(np.ones(4), np.arange(4)) == 1
    assert scaled_ilisi(np.full(4, 4.0), np.arange(4)) == 1


def test_lisi_does_not_hang_on_the_scale_of_distances(blobs):
    _, _, batch, distance, neighbour = blobs
    one, two = (lisi(distance * scale, neighbour, batch) for scale in (1.0, 1e3))
    # exp(-beta d): beta takes up the scale
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_connectivity_of_a_type_in_two_pieces():
    neighbour = np.array([[1], [0], [3], [2], [5], [4]])
    graph = knn_graph(neighbour)
    assert graph_connectivity(graph, np.array([0, 0, 0, 0, 1, 1])) == pytest.approx(0.75)


def test_a_type_of_one_batch_says_nothing_of_mixing(rng):
    x, label = rng.normal(size=(40, 3)), np.repeat([0, 1], 20)
    batch = np.r_[np.tile([0, 1], 10), np.zeros(20, int)]
    assert silhouette_batch(x, label, batch) == silhouette_batch(x[:20], label[:20], batch[:20])
    assert np.isnan(silhouette_batch(x, label, label))


def test_moving_a_batch_away_costs_mixing_and_not_types(rng):
    label, batch = np.repeat(list("ABC"), 80), np.tile(["x", "y"], 120)
    x = rng.normal(size=(240, 8))
    for i, name in enumerate("ABC"):
        x[label == name, i] += 8
    moved = x + np.outer(batch == "y", np.r_[np.zeros(7), 30])
    mixed, apart = (integration_scores(v, label, batch) for v in (x, moved))
    assert mixed["ilisi"] > 0.9
    assert apart["ilisi"] < 0.05
    assert apart["batch"] < mixed["batch"] - 0.3
    assert mixed["nmi"] == pytest.approx(1)
    assert set(mixed) == {*BIOLOGICAL, *BATCH, "biological", "batch", "total"}
    assert all(0 <= value <= 1 for value in mixed.values())
    shuffled = rng.permutation(240)
    again = integration_scores(x[shuffled], label[shuffled], batch[shuffled])
    for name in ("silhouette_label", "clisi", "silhouette_batch", "ilisi", "graph_connectivity"):
        assert again[name] == pytest.approx(mixed[name], abs=1e-9)


def test_harmony_takes_out_a_shift(rng):
    label, batch = np.repeat(list("ABC"), 100), np.tile(["x", "y"], 150)
    x = rng.normal(size=(300, 8))
    for i, name in enumerate("ABC"):
        x[label == name, i] += 8
    x += np.outer(batch == "y", np.full(8, 2.0))
    before = integration_scores(x, label, batch)
    after = integration_scores(harmony(x, batch), label, batch)
    assert before["ilisi"] < 0.2
    assert after["ilisi"] > 0.7
    assert after["nmi"] > 0.95


@pytest.fixture(scope="module")
def two_studies(tmp_path_factory):
    """Toy cells of two types in two batches; one batch has a shifted gene."""
    adata = toy_adata(np.random.default_rng(1), n_cells=160)
    adata.obs["study"] = np.where(np.arange(160) % 4 < 2, "one", "two")
    counts = adata.X.toarray()
    counts[(adata.obs["study"] == "two").to_numpy(), 20:24] += 60
    adata.X = sp.csr_matrix(counts)
    path = tmp_path_factory.mktemp("studies") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def test_the_command_judges_beside_pca_and_harmony(capsys, two_studies, toy_model_folder, tmp_path):
    code, printed, err = run(
        capsys,
        *("evaluate", "integration", two_studies, "--label", "cell_type", "--batch", "study"),
        *("--model", toy_model_folder, "--draws", 2, "--out", tmp_path / "out", "--json"),
    )
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert printed.startswith(found["verdict"])
    by_key = {method["key"]: method["scores"] for method in found["methods"]}
    assert set(by_key) == {"pca", "harmony", "scfm", "scfm_untrained"}
    assert by_key["harmony"]["ilisi"]["value"] > by_key["pca"]["ilisi"]["value"]
    if CHROMIUM is not None:
        seen = look_at(tmp_path / "out" / "report.html", tmp_path / "profile", width=390)
        assert (seen.requests, seen.complaints) == ((), ())
        assert len(seen.page["drawings"]) == 2
        assert all(d["visible"] and d["ink"] for d in seen.page["drawings"])
        assert seen.page["needed"] <= 390
        assert seen.page["h1"] == found["verdict"]


def test_bad_batches_are_refused(capsys, two_studies, tmp_path, toy_model_folder):
    save_model(toy_model(), tmp_path / "model")
    adata = ad.read_h5ad(two_studies)
    adata.obs["one"], adata.obs["confounded"] = "x", adata.obs["cell_type"].astype(str)
    models = {"toy": toy_model()}
    with pytest.raises(LabelError, match=r"holds only \['x'\]; wanted two batches"):
        evaluate_integration(adata, models, label_key="cell_type", batch_key="one")
    with pytest.raises(LabelError, match=r"No type of .* has cells of two batches"):
        evaluate_integration(adata, models, label_key="cell_type", batch_key="confounded")
    result = run(
        capsys,
        *("evaluate", "integration", two_studies, "--label", "cell_type", "--batch", "site"),
        *("--model", toy_model_folder, "--out", tmp_path / "out"),
    )
    assert_refused(result, "no obs column 'site'", "study")


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'scfm\[integration\]'"):
        require_packages()
    with pytest.raises(ConfigError):
        IntegrationConfig(n_draws=1)
