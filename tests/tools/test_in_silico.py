"""In-silico perturbation: against cells whose counts say what the edited sentence says."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scfm
from scfm.errors import ConfigError, ScfmWarning
from scfm.tasks.calibration import Calibration
from tests.tools.test_annotation_by_words import (
    COARSE,
    FINE,
    VOCAB,
    chances,
    sentence_of,
    states_of,
)
from tests.toys import toy_model
from tests.toys_scmulan import scmulan_adata, toy_scmulan


@pytest.fixture(scope="module")
def model():
    return toy_scmulan()


@pytest.fixture
def query(rng):
    return scmulan_adata(rng, n_cells=12)


def forced(model, ids, values, first: str, temperature: float):
    """Chances of all words and the state at the coarse word, which is given."""
    coarse = chances(model, states_of(model, ids, values)[-1], COARSE, temperature)
    state = states_of(model, [*ids, VOCAB.id_of(first)], [*values, 0])[-1]
    spelled = tuple("<E>" if word == first else word for word in FINE)
    fine = chances(model, state, spelled, temperature)
    return coarse, {w: coarse[first] * p for w, p in zip(FINE, fine.values())}, state.numpy()  # noqa: B905


@pytest.mark.parametrize("how", ["remove", "express"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_shifts_are_those_of_each_cell_alone(query, how, temperature):
    model = toy_scmulan()
    model.calibration = Calibration(temperature=temperature).to_dict()
    genes = [query.var_names[4], f"{query.var_names[0]}+{query.var_names[7]}"]
    numbers = [[4], [0, 7]]
    scfm.tl.perturb_in_silico(query, model, genes=genes, how=how, batch_size=5)
    shifts = {"coarse": np.zeros((2, len(COARSE))), "fine": np.zeros((2, len(FINE)))}
    n_changed = np.zeros(2)
    for cell, row in enumerate(query.X.toarray()):
        ids, values = sentence_of(row)
        coarse = chances(model, states_of(model, ids, values)[-1], COARSE, temperature)
        first = max(coarse, key=coarse.__getitem__)
        coarse, fine, state = forced(model, ids, values, first, temperature)
        own = max(fine, key=fine.__getitem__)
        for g, ours in enumerate(numbers):
            said = dict(zip(ids, values, strict=True))
            task = said.popitem()
            before = dict(said)
            for gene in ours:
                said.pop(gene + VOCAB.gene_start, None)
                if how == "express":
                    said[gene + VOCAB.gene_start] = 10
            n_changed[g] += said != before
            edited = dict([*sorted(said.items(), reverse=True), task])
            after = forced(model, list(edited), list(edited.values()), first, temperature)
            names = ("type", "distance", "cosine")
            table = {k: query.obsm[f"in_silico_{k}"].iloc[cell, g] for k in names}
            assert table["type"] == pytest.approx(after[1][own] - fine[own], abs=1e-5)
            assert table["distance"] == pytest.approx(np.linalg.norm(after[2] - state), abs=1e-4)
            cosine = torch.cosine_similarity(torch.tensor(after[2]), torch.tensor(state), 0)
            assert table["cosine"] == pytest.approx(float(cosine), abs=1e-5)
            shifts["coarse"][g] += [after[0][w] - coarse[w] for w in COARSE]
            shifts["fine"][g] += [after[1][w] - fine[w] for w in FINE]
    made = query.uns["scfm"]["in_silico"]
    assert made["genes"]["n_cells_changed"].tolist() == n_changed.tolist()
    np.testing.assert_allclose(made["types"], shifts["fine"] / n_changed[:, None], atol=1e-5)
    np.testing.assert_allclose(
        made["coarse_types"], shifts["coarse"] / n_changed[:, None], atol=1e-5
    )
    assert (made["genes"]["distance"] > 0).all()


def test_what_changes_nothing_is_zero_and_said(query, model):
    """A gene that no cell expresses; and one put in where it is at its top bin already."""
    gene, top = query.var_names[4], query.var_names[9]
    counts = query.X.toarray()
    counts[:, 4], counts[:, 9] = 0, 500
    query.X = sp.csr_matrix(counts)
    with pytest.warns(ScfmWarning, match=f"None of the 12 cells expresses {gene}"):
        scfm.tl.perturb_in_silico(query, model, genes=[gene])
    assert (query.obsm["in_silico_distance"][gene] == 0).all()
    assert (query.obsm["in_silico_cosine"][gene] == 1).all()
    assert query.uns["scfm"]["in_silico"]["genes"].loc[gene, "cosine"] == 1
    scfm.tl.perturb_in_silico(query, model, genes=[top], how="express")
    assert (query.obsm["in_silico_type"][top] == 0).all()
    assert query.uns["scfm"]["in_silico"]["genes"].loc[top, "n_cells_changed"] == 0


def test_other_genes_and_batches_do_not_matter(query, model):
    genes = list(query.var_names[:6])
    scfm.tl.perturb_in_silico(query, model, genes=genes, pooling="prompt")
    for gene in genes[::3]:
        alone = scfm.tl.perturb_in_silico(
            query, model, genes=[gene], pooling="prompt", batch_size=1, copy=True
        )
        for name in ("type", "distance", "cosine"):
            key = f"in_silico_{name}"
            np.testing.assert_allclose(alone.obsm[key][gene], query.obsm[key][gene], atol=1e-4)


def test_one_type_word(query):
    scfm.tl.perturb_in_silico(query, toy_scmulan(types=("cell_type",)), genes=[query.var_names[0]])
    made = query.uns["scfm"]["in_silico"]
    assert "coarse_types" not in made
    assert list(made["types"].columns) == list(FINE)
    np.testing.assert_allclose(made["types"].sum(1), 0, atol=1e-6)  # chances sum to one


def test_result_survives_h5ad(query, model, tmp_path):
    scfm.tl.perturb_in_silico(query, model, genes=[query.var_names[4]], key_added="ko")
    query.write_h5ad(tmp_path / "q.h5ad")
    again = ad.read_h5ad(tmp_path / "q.h5ad")
    pd.testing.assert_frame_equal(again.obsm["ko_type"], query.obsm["ko_type"])
    ours = query.uns["scfm"]["ko"]["genes"]
    pd.testing.assert_frame_equal(
        again.uns["scfm"]["ko"]["genes"], ours, check_dtype=False, check_index_type=False
    )


def test_refusals(query, model):
    cases = [
        ({"genes": ["A1CFF"]}, r"A1CFF.*nearest are A1CF"),
        ({"genes": "A1CF"}, "wanted a list"),
        ({"genes": []}, "wanted a list"),
        ({"genes": ["A1CF", "A1CF"]}, "twice"),
        ({"genes": ["A1CF"], "how": "drop"}, "'remove' or 'express'"),
        ({"genes": ["A1CF"], "value": 3}, "value is for"),
        ({"genes": ["A1CF"], "how": "express", "value": 11}, "from 1 to 10, the last bin"),
        ({"genes": ["A1CF"], "pooling": "mean"}, "type or prompt"),
    ]
    for arguments, words in cases:
        with pytest.raises(ConfigError, match=words):
            scfm.tl.perturb_in_silico(query, model, **arguments)
    with pytest.raises(ConfigError, match="knows no words for cell types"):
        scfm.tl.perturb_in_silico(query, toy_model(), genes=["A1CF"])
    assert not query.obsm
