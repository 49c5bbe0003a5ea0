"""Decoding as a stream: what the model itself says cell by cell, whatever the batches."""

import numpy as np
import pytest
import torch

from scfm.errors import ModelError
from scfm.tasks.decoding import check_decodes, decode_cells, queries
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.target_depth import parse_target_depth
from tests.toys import toy_adata, toy_model, toy_scfoundation

DEPTH = parse_target_depth("f5")


def opened(adata, model):
    return open_input(adata, model.vocab, InputConfig(), model.token_config)[0]


@pytest.fixture
def adata(rng):
    return toy_adata(rng, n_cells=9)


@pytest.fixture(params=["scfoundation", "scfm"])
def model(request):
    return toy_scfoundation(60) if request.param == "scfoundation" else toy_model()


def decoded(model, member, what="expression", **options):
    parts = list(decode_cells(model, member, what, target_depth=DEPTH, **options))
    cells = np.concatenate([part.cell_index for part in parts])
    np.testing.assert_array_equal(cells, np.arange(member.source.n_cells))
    return np.concatenate([part.values for part in parts])


def shown(member, cells):
    rows = member.source.rows(cells)
    plain = member.tokenizer.shown(rows)
    deeper = member.tokenizer.shown(rows, target_depth=plain.source_depth + np.log10(5))
    return deeper.map(torch.from_numpy)


def one_cell(model, member, i):
    return shown(member, np.array([i]))


def test_scfoundation_equals_the_model_cell_by_cell(adata):
    model = toy_scfoundation(60)
    member = opened(adata, model)
    with torch.inference_mode():
        cells = [one_cell(model, member, i) for i in range(adata.n_obs)]
        values = [model.predict(c, model(c)).numpy() for c in cells]
        states = [model.decode(c, model(c)).numpy() for c in cells]
    found = decoded(model, member)
    np.testing.assert_allclose(found, np.concatenate(values), rtol=1e-5, atol=1e-5)
    found = decoded(model, member, "states")
    np.testing.assert_allclose(found, np.concatenate(states), rtol=1e-5, atol=1e-5)


def test_scfm_equals_one_question_at_a_time(adata):
    """Oracle: the query decoder asked for one gene of one cell."""
    model = toy_model()
    member = opened(adata, model)
    found = decoded(model, member)
    with torch.inference_mode():
        for i, gene in [(0, 0), (3, 17), (8, 49)]:
            cells = one_cell(model, member, i)
            asked = queries(cells, torch.tensor([gene + model.vocab.gene_start]))
            (value,) = model.predict_targets(asked, model(cells))["query"]
            assert found[i, gene] == pytest.approx(float(value), rel=1e-5, abs=1e-5)


def test_queries_stand_behind_what_is_shown(adata):
    model = toy_model()
    member = opened(adata, model)
    cells = shown(member, np.arange(3))
    asked = queries(cells, torch.tensor([9, 5]))
    for i in range(3):
        own = slice(int(asked.offsets[i]), int(asked.offsets[i + 1]))
        was = slice(int(cells.offsets[i]), int(cells.offsets[i + 1]))
        assert asked.gene_ids[own].tolist() == [*cells.gene_ids[was].tolist(), 9, 5]
        assert asked.is_target[own].tolist() == [False] * (was.stop - was.start) + [True, True]
        assert asked.values[own].tolist() == [*cells.values[was].tolist(), 0, 0]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_cannot_matter(adata, model, batch_size):
    member = opened(adata, model)
    found = decoded(model, member, batch_size=batch_size)
    np.testing.assert_allclose(found, decoded(model, member), rtol=1e-5, atol=1e-5)


def test_memory_bounds_cannot_matter(adata, model, monkeypatch):
    member = opened(adata, model)
    expected = decoded(model, member)
    monkeypatch.setattr("scfm.tasks.decoding.MOST_DECODED", 1)
    monkeypatch.setattr("scfm.tasks.decoding.QUERIES", 7)
    monkeypatch.setattr("scfm.tasks.decoding.CHUNK_CELLS", 4)
    np.testing.assert_allclose(decoded(model, member), expected, rtol=1e-5, atol=1e-5)
    passes = list(decode_cells(model, member, "expression", target_depth=DEPTH))
    assert [len(part.cell_index) for part in passes] == [1] * adata.n_obs


def test_chosen_genes_are_columns_of_all(adata, model):
    member, genes = opened(adata, model), np.array([7, 0, 31])
    found = decoded(model, member, genes=genes)
    np.testing.assert_allclose(found, decoded(model, member)[:, genes], rtol=1e-5, atol=1e-5)


def test_the_global_stabiliser_cannot_bind_batch_mates(adata):
    model = toy_scfoundation(60, stabiliser="global", initializer_range=1.0)
    member = opened(adata, model)
    alone = decoded(model, member, batch_size=1)
    np.testing.assert_array_equal(decoded(model, member, batch_size=9), alone)


def test_gene_order_cannot_matter(adata, model, rng):
    permuted = adata[:, rng.permutation(adata.n_vars)].copy()
    found = decoded(model, opened(permuted, model))
    np.testing.assert_allclose(found, decoded(model, opened(adata, model)), rtol=1e-5, atol=1e-5)


def test_no_states_of_a_query_decoder():
    with pytest.raises(ModelError, match="scfoundation"):
        check_decodes(toy_model(), "states")


def test_a_broken_model_is_refused(adata, model):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        decoded(model, opened(adata, model))
