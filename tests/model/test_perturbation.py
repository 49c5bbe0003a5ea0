"""The head: what it is before training, what it may hang on, and its folder."""

import json
import os

import numpy as np
import pytest
import torch

from scfm.errors import ModelError
from scfm.model.perturbation import (
    GeneGraph,
    PerturbationHead,
    PerturbationSizes,
    coexpression_graph,
    marks,
    standardised,
)
from scfm.model.perturbation_folder import FILES, load_perturbation, save_perturbation
from tests.toys import toy_vocab

N_VOCABULARY, N_GENES, D = 20, 8, 5
SIZES = PerturbationSizes(d_model=8, d_cross=4, n_neighbours=3, n_similar=4)


@pytest.fixture
def head(rng):
    """All weights random, so that every path matters."""
    torch.manual_seed(0)
    made = PerturbationHead(SIZES, toy_vocab(N_VOCABULARY), n_genes=N_GENES, d_embedding=D)
    r = torch.tensor(np.corrcoef(rng.normal(size=(N_GENES, 6)))).float()
    made.know(
        torch.arange(4, 4 + N_GENES),
        torch.tensor(rng.normal(size=(N_VOCABULARY, D))).float(),
        torch.tensor(rng.uniform(size=N_GENES)).float(),
        coexpression_graph(r, SIZES),
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


@pytest.fixture
def control(rng):
    return torch.tensor(rng.uniform(0, 4, size=(6, N_GENES))).float()


def test_an_untrained_head_predicts_no_change(control):
    made = PerturbationHead(SIZES, toy_vocab(N_VOCABULARY), n_genes=N_GENES, d_embedding=D)
    perturbed = made.perturbed_genes(torch.tensor([1, 2]))
    found = made(control, marks([(1,)] * 6, [1, 2]), perturbed)
    torch.testing.assert_close(found, control, rtol=0, atol=0)


def test_a_cell_does_not_depend_on_its_batch(head, control):
    perturbed = head.perturbed_genes(torch.tensor([2, 7]))
    acts_on = marks([(2,), (7,), (2, 7), (2,), (7,), (2,)], [2, 7])
    whole = head(control, acts_on, perturbed)
    for i in range(6):
        one = head(control[i : i + 1], acts_on[i : i + 1], perturbed)
        torch.testing.assert_close(one[0], whole[i], rtol=1e-5, atol=1e-5)


def test_the_order_of_a_combination_cannot_matter(head, control):
    one, other = ([2, 7, 11], [11, 2, 7])
    found = [
        head(control, marks([(2, 11)] * 6, order), head.perturbed_genes(torch.tensor(order)))
        for order in (one, other)
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_perturbations_beside_it_cannot_matter(head, control):
    alone = head(control, marks([(7,)] * 6, [7]), head.perturbed_genes(torch.tensor([7])))
    among = head(control, marks([(7,)] * 6, [1, 7]), head.perturbed_genes(torch.tensor([1, 7])))
    torch.testing.assert_close(alone, among, rtol=1e-5, atol=1e-5)


def test_order_of_genes_cannot_matter(head, control, rng):
    """The same head with its genes in another order predicts the same of each."""
    order = torch.from_numpy(rng.permutation(N_GENES))
    place = order.argsort()
    other = PerturbationHead(SIZES, toy_vocab(N_VOCABULARY), n_genes=N_GENES, d_embedding=D)
    state = {name: value.clone() for name, value in head.state_dict().items()}
    for name in ("genes", "control_mean", "alone_weight", "alone_bias", "last_weight"):
        state[name] = state[name][order]
    state["last_bias"] = state["last_bias"][order]
    state["neighbours"] = place[state["neighbours"][order]]
    state["neighbour_weights"] = state["neighbour_weights"][order]
    state["cross.0.weight"] = state["cross.0.weight"][:, order]
    other.load_state_dict(state)
    perturbed = head.perturbed_genes(torch.tensor([5]))
    acts_on = marks([(5,)] * 6, [5])
    found = other(control[:, order], acts_on, perturbed)
    torch.testing.assert_close(found, head(control, acts_on, perturbed)[:, order])


def test_perturbed_genes_are_joined_by_the_most_similar(head):
    """By hand: own embedding plus the mean, by cosine, of the four most similar genes'."""
    e = head.embeddings.numpy().astype(np.float64)
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    similarity = unit @ unit[3]
    similarity[3] = -np.inf
    closest = np.argsort(-similarity)[:4]
    weights = np.maximum(similarity[closest], 0)
    expected = e[3] + (weights / weights.sum()) @ e[closest]
    found = head.perturbed_genes(torch.tensor([3])).states[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_coexpression_graph_by_hand():
    r = torch.tensor([[1.0, 0.8, -0.4, 0.05], [0.8, 1, 0, 0], [-0.4, 0, 1, 0], [0.05, 0, 0, 1]])
    graph = coexpression_graph(r, PerturbationSizes(n_neighbours=2, coexpression_threshold=0.1))
    assert isinstance(graph, GeneGraph)
    assert graph.neighbours[0].tolist() == [1, 2]
    torch.testing.assert_close(graph.weights[0], torch.tensor([0.8, -0.4]) / 1.2)
    assert graph.weights[3].tolist() == [0, 0]  # below the threshold: it hears nobody
    assert not (graph.neighbours == torch.arange(4)[:, None])[graph.weights != 0].any()


def test_standardised_embeddings(rng):
    found = standardised(torch.tensor(rng.normal(3, 2, size=(50, 4))).float())
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.var(0, correction=0), torch.ones(4))


def test_folder_round_trip(head, control, tmp_path):
    head.provenance = {"data": {"name": "a.h5ad"}}
    save_perturbation(head, tmp_path / "head")
    loaded = load_perturbation(tmp_path / "head")
    assert loaded.sizes == SIZES
    assert loaded.vocab.hash == head.vocab.hash
    assert loaded.provenance["data"] == {"name": "a.h5ad"}
    perturbed = loaded.perturbed_genes(torch.tensor([5]))
    acts_on = marks([(5,)] * 6, [5])
    found = loaded(control, acts_on, perturbed)
    expected = head(control, acts_on, head.perturbed_genes(torch.tensor([5])))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    (tmp_path / "run").mkdir()
    (tmp_path / "head").rename(tmp_path / "run" / "head")
    assert load_perturbation(tmp_path / "run").sizes == SIZES


@pytest.fixture
def folder(head, tmp_path):
    save_perturbation(head, tmp_path / "head")
    return tmp_path / "head"


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_has_the_usual_mode(head, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_perturbation(head, tmp_path / "head")
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "head").iterdir()}
    assert modes == dict.fromkeys(FILES, oct(0o666 & ~umask))


def test_missing_files_are_named(folder):
    (folder / "vocab.tsv").unlink()
    with pytest.raises(ModelError, match=r"lacks vocab\.tsv.*scfm finetune perturbation"):
        load_perturbation(folder)


def test_altered_weights_are_refused(folder):
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="has changed since it was saved"):
        load_perturbation(folder)


def test_other_kinds_of_model_are_refused(folder, toy_model_folder):
    with pytest.raises(ModelError, match="wanted a perturbation head"):
        load_perturbation(toy_model_folder)


def test_a_diverged_head_is_not_saved(head, tmp_path):
    with torch.no_grad():
        head.last_bias[0] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        save_perturbation(head, tmp_path / "head")
    assert not (tmp_path / "head").exists()


def test_config_says_what_it_is(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "scfm-perturbation"
    assert config["sizes"]["d_model"] == 8


@pytest.mark.parametrize(
    "wrong", [{"d_model": 0}, {"coexpression_threshold": 1.0}, {"dropout": 1.0}, {"n_similar": -1}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="head"):
        PerturbationSizes(**wrong)
