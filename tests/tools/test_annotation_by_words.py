"""Annotation by words: against each cell gone through alone, by file as in memory, and refusals."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scfm
from scfm.batch import CellBatch
from scfm.data.cell_ontology import CellOntology
from scfm.errors import ConfigError, CountsError, GeneCoverageError
from scfm.tasks.calibration import Calibration
from scfm.tasks.smoothing import SmoothingConfig, smooth
from scfm.tools.annotation import annotate_file
from tests.toys import toy_model
from tests.toys_scmulan import WORDS, scmulan_adata, scmulan_vocab, toy_scmulan

VOCAB = scmulan_vocab()
COARSE, FINE = ("Lymphocyte", "Neuron"), ("Neuron", "A", "B", "Unclassified")


@pytest.fixture(scope="module")
def model():
    return toy_scmulan()


@pytest.fixture
def query(rng):
    return scmulan_adata(rng, n_cells=24)


def sentence_of(counts: np.ndarray) -> tuple[list[int], list[int]]:
    """A cell's prompt by the specification: bins of log1p(cp10k), ids from the last, <PCT>."""
    x = np.log1p(1e4 * counts / counts.sum())
    bins = np.digitize(x, np.linspace(0, x.max(), 11), right=True)
    genes = np.flatnonzero(counts)[::-1]
    ids = [*(genes + VOCAB.gene_start).tolist(), VOCAB.id_of("<PCT>")]
    return ids, [*bins[genes].tolist(), 0]


def states_of(model, ids: list[int], values: list[int]) -> torch.Tensor:
    """States of one cell, from a pass over all its words."""
    n = len(ids)
    one = np.ones(1, np.float32)
    cells = CellBatch(
        gene_ids=np.array(ids),
        values=np.array(values, np.float32),
        offsets=np.array([0, n], np.int32),
        is_target=np.zeros(n, bool),
        target_values=np.zeros(n, np.float32),
        **dict.fromkeys(("library_size", "source_depth", "target_depth"), one),
        cell_index=np.zeros(1, np.int64),
    )
    with torch.no_grad():
        return model(cells.map(torch.from_numpy)).tokens


def chances(model, state: torch.Tensor, words: tuple[str, ...], temperature: float) -> dict:
    ids = [VOCAB.id_of(word) for word in words]
    with torch.no_grad():
        logits = model.word_logits(state[None])[0, ids].double() / temperature
    return dict(zip(words, logits.softmax(0).tolist(), strict=True))


def by_hand(model, counts: np.ndarray, temperature: float = 1.0) -> dict:
    """What the words of one cell must come to, by going through it alone."""
    ids, values = sentence_of(counts)
    coarse = chances(model, states_of(model, ids, values)[-1], COARSE, temperature)
    first = max(coarse, key=coarse.__getitem__)
    state = states_of(model, [*ids, VOCAB.id_of(first)], [*values, 0])[-1]
    # a coarse word that is a fine one too is not said again: the end word stands for it
    spelled = tuple("<E>" if word == first else word for word in FINE)
    fine = {
        first if word == "<E>" else word: share
        for word, share in chances(model, state, spelled, temperature).items()
    }
    label = max(fine, key=fine.__getitem__)
    others = {w: coarse[first] * p for w, p in fine.items() if w != label}
    others |= {w: max(p, others.get(w, 0)) for w, p in coarse.items() if w != first}
    return {
        "label": label,
        "coarse": first,
        "coarse_confidence": coarse[first],
        "confidence": coarse[first] * fine[label],
        "runner_up": max(others, key=others.__getitem__),
        "state": state.numpy(),
        "shares": {
            w: coarse[first] * fine.get(w, 0) + (coarse.get(w, 0) if w != first else 0)
            for w in {*coarse, *fine}
        },
    }


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_labels_are_those_of_each_cell_alone(query, temperature):
    model = toy_scmulan()
    threshold = 0.3
    model.calibration = Calibration(temperature=temperature, threshold=threshold).to_dict()
    scfm.tl.annotate(query, model, batch_size=7)
    expected = [by_hand(model, row, temperature) for row in query.X.toarray()]
    obs = query.obs
    sure = np.array([e["confidence"] for e in expected])
    np.testing.assert_allclose(obs["scfm_confidence"], sure, rtol=1e-4)
    named = np.array(["unknown" if e["label"] == "Unclassified" else e["label"] for e in expected])
    assert list(obs["scfm_cell_type"]) == list(np.where(sure >= threshold, named, "unknown"))
    coarse = [e["coarse"] if e["coarse_confidence"] >= threshold else "unknown" for e in expected]
    assert list(obs["scfm_coarse_type"]) == coarse
    assert list(obs["scfm_runner_up"]) == [e["runner_up"] for e in expected]
    states = np.stack([e["state"] for e in expected])
    np.testing.assert_allclose(query.obsm["X_scfm"], states, atol=2e-5)
    assert len({e["label"] for e in expected}) > 2, "toy cells of one type test nothing"
    assert "Neuron" in {e["coarse"] for e in expected}


def test_settings_say_how(query, model):
    scfm.tl.annotate(query, model)
    made = query.uns["scfm"]["scfm"]
    assert made["by"] == "words"
    assert made["types"] == ["lineage", "cell_type"]
    assert (made["temperature"], made["threshold"], made["is_calibrated"]) == (1.0, 0.5, False)
    assert query.uns["scfm"]["X_scfm"]["pooling"] == "type"


def test_embedding_is_the_one_embed_gives(query, model):
    scfm.tl.annotate(query, model)
    scfm.tl.embed(query, model, key_added="own")
    np.testing.assert_allclose(query.obsm["X_scfm"], query.obsm["own"], atol=1e-5)
    scfm.tl.annotate(query, model, pooling="prompt")
    scfm.tl.embed(query, model, key_added="own", pooling="prompt")
    np.testing.assert_allclose(query.obsm["X_scfm"], query.obsm["own"], atol=1e-5)


def test_one_type_word_has_no_coarse_type(query):
    model = toy_scmulan(types=("cell_type",))
    scfm.tl.annotate(query, model)
    assert "scfm_coarse_type" not in query.obs
    counts = query.X.toarray()
    for cell in range(5):
        ids, values = sentence_of(counts[cell])
        found = chances(model, states_of(model, ids, values)[-1], FINE, 1.0)
        assert query.obs["scfm_confidence"].iloc[cell] == pytest.approx(max(found.values()), 1e-4)


@pytest.mark.parametrize("smoothed", [False, True])
def test_file_equals_anndata(model, query, tmp_path, smoothed):
    query.write_h5ad(tmp_path / "query.h5ad")
    summary = annotate_file(
        *(tmp_path / "query.h5ad", model, tmp_path / "out.h5ad"),
        smooth=smoothed,
        n_neighbours=5,
        batch_size=3,
    )
    scfm.tl.annotate(query, model, smooth=smoothed, n_neighbours=5)
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    new = [name for name in query.obs if name.startswith("scfm_")]
    for column in set(new) - {"scfm_confidence"}:
        pd.testing.assert_series_equal(out.obs[column], query.obs[column])
    np.testing.assert_allclose(out.obs["scfm_confidence"], query.obs["scfm_confidence"], atol=1e-4)
    np.testing.assert_allclose(out.obsm["X_scfm"], query.obsm["X_scfm"], atol=1e-4)
    assert dict(summary.cells) == dict(query.obs["scfm_cell_type"].value_counts())
    assert "words of lineage and cell_type" in str(summary)
    assert out.uns["scfm"]["scfm"]["by"] == "words"


def test_smoothed_labels_are_the_neighbours(query, model):
    """Oracle: `smooth` of what the model says of each cell alone, at any confidence."""
    scfm.tl.annotate(query, model, min_confidence=0.0)
    alone = query.obs["scfm_cell_type"].astype(str)
    names = sorted(set(alone) - {"unknown"})
    codes = np.array([names.index(n) if n in names else -1 for n in alone])
    states = query.obsm["X_scfm"]
    found, share = smooth(lambda: iter([states]), codes, SmoothingConfig(n_neighbours=6))
    scfm.tl.annotate(query, model, smooth=True, n_neighbours=6)
    expected = np.where(share >= 0.5, np.array([*names, "unknown"])[found], "unknown")
    assert list(query.obs["scfm_cell_type"]) == list(expected)
    np.testing.assert_allclose(query.obs["scfm_confidence"], share, atol=1e-6)
    assert set(query.obs["scfm_own_cell_type"]) <= {*names, "unknown"}


def test_min_confidence_overrides_the_calibration(query, model):
    scfm.tl.annotate(query, model, min_confidence=1.0)
    assert set(query.obs["scfm_cell_type"]) == {"unknown"}
    assert query.obs["scfm_runner_up"].notna().all()


def test_gene_order_batch_and_depth_of_file_do_not_matter(query, model, rng):
    scfm.tl.annotate(query, model)
    again = query[:, rng.permutation(query.n_vars)].copy()
    scfm.tl.annotate(again, model, batch_size=1, key_added="again")
    assert list(again.obs["again_cell_type"]) == list(query.obs["scfm_cell_type"])
    np.testing.assert_allclose(again.obs["again_confidence"], query.obs["scfm_confidence"], 1e-4)


def test_genes_missing_are_said_or_refused(query, model):
    """Half of the vocabulary's genes are there: reported. A fifth: refused, unless allowed."""
    half = query[:, :25].copy()
    scfm.tl.annotate(half, model)
    assert half.uns["scfm"]["X_scfm"]["genes"]["missing"] == 25
    few = query[:, :10].copy()
    with pytest.raises(GeneCoverageError, match=r"20.0 % of the model's 50 genes"):
        scfm.tl.annotate(few, model)
    assert not any(name.startswith("scfm") for name in few.obs)
    scfm.tl.annotate(few, model, minimum_coverage=0.1)
    assert "scfm_cell_type" in few.obs


def test_small_raw_counts_are_counts_and_log_values_are_refused(query, model):
    """The original takes any matrix below 10 for log values: these counts would pass as such."""
    query.X = sp.csr_matrix(np.minimum(query.X.toarray(), 9).astype(np.float32))
    query.X[:, 0] = 1
    assert query.X.max() < 10
    scfm.tl.annotate(query, model)
    expected = [by_hand(model, row)["confidence"] for row in query.X.toarray()]
    np.testing.assert_allclose(query.obs["scfm_confidence"], expected, rtol=1e-4)
    query.X = query.X.multiply(1e4 / query.X.sum(1)).tocsr().log1p()
    with pytest.raises(CountsError, match="log1p"):
        scfm.tl.annotate(query, model)


def test_cells_without_a_gene_of_the_model_are_unknown(query, model):
    other = ad.AnnData(sp.csr_matrix(np.full((query.n_obs, 1), 5.0)), obs=query.obs[[]])
    other.var_names = ["TP53"]
    dense = query.X.toarray()
    dense[3] = 0
    query.X = sp.csr_matrix(dense)
    both = ad.concat([query, other], axis=1)
    both.obs = query.obs
    with pytest.warns(scfm.errors.ScfmWarning, match="no count on the genes the model knows"):
        scfm.tl.annotate(both, model, min_confidence=0.0)
    assert both.obs["scfm_cell_type"].iloc[3] == "unknown"
    assert both.obs["scfm_confidence"].iloc[3] == 0


def test_a_model_without_type_words_says_what_it_needs(query):
    with pytest.raises(ConfigError, match=r"\(family scfm\) knows no words .*--reference"):
        scfm.tl.annotate(query, toy_model())
    with pytest.raises(ConfigError, match=r"tokens\.types is empty"):
        scfm.tl.annotate(query, toy_scmulan(types=()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_key": "cell_type"}, "there is no reference"),
        ({"pooling": "mean"}, "type or prompt"),
        ({"min_confidence": 1.5}, r"lie in \[0, 1\]"),
    ],
)
def test_arguments_that_do_not_go_together(query, model, arguments, words):
    with pytest.raises(ConfigError, match=words):
        scfm.tl.annotate(query, model, **arguments)
    with pytest.raises(ConfigError, match="needs label_key"):
        scfm.tl.annotate(query, model, reference=query)
    with pytest.raises(ConfigError, match="with a reference, neighbours vote"):
        scfm.tl.annotate(query, model, reference=query, label_key="cell_type", smooth=True)


def test_annotated_anndata_survives_h5ad(query, model, tmp_path):
    scfm.tl.annotate(query, model, smooth=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        query.write_h5ad(tmp_path / "q.h5ad")
    again = ad.read_h5ad(tmp_path / "q.h5ad")
    pd.testing.assert_series_equal(again.obs["scfm_cell_type"], query.obs["scfm_cell_type"])


def test_words_in_terms_of_the_ontology(query, model, tmp_path):
    """A term has what the words at or below it have, in each cell gone through alone."""
    asked = {"ontology": True, "ontology_threshold": 0.7}
    scfm.tl.annotate(query, model, **asked)
    ontology = CellOntology.load()
    ids = {word: term for word, _, term in WORDS if term}
    n_named = 0
    for cell, row in zip(query.obs.itertuples(), query.X.toarray(), strict=True):
        shares = by_hand(model, row)["shares"]

        def probability(term, shares=shares):
            return sum(shares[w] for w, own in ids.items() if ontology.is_a(own, term))

        sure = [term for term in ids.values() if probability(term) >= 0.7]
        term = cell.scfm_ontology_term
        if pd.isna(term):
            assert not sure
            continue
        n_named += 1
        assert probability(term) == pytest.approx(cell.scfm_ontology_confidence, rel=1e-4)
        assert all(ontology.depth(term) >= ontology.depth(other) for other in sure)
    assert n_named > 5
    query.write_h5ad(tmp_path / "query.h5ad")
    out = tmp_path / "out.h5ad"
    annotate_file(tmp_path / "query.h5ad", model, out, batch_size=5, **asked)
    again = ad.read_h5ad(out).obs
    for name in ("term", "name"):
        column = f"scfm_ontology_{name}"
        pd.testing.assert_series_equal(again[column], query.obs[column])
