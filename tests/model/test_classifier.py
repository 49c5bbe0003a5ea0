"""A classifier in a model: what it reads, that no cell hangs on another, and its folder."""

import json
from dataclasses import replace

import pytest
import torch

import scfm
from scfm.data.fingerprint import sha256
from scfm.errors import ModelError
from scfm.model.base import save_model
from scfm.model.classifier import ClassifierSpec
from tests.toys import (
    toy_cells,
    toy_model,
    toy_scmulan,
    toy_sentences,
)

SPEC = ClassifierSpec(labels=("A", "B", "C"), pooling="cell", terms={"B": "CL:0000236"})


def shown(rng, lengths):
    cells = toy_cells(rng, lengths)
    return replace(cells, is_target=torch.zeros_like(cells.is_target))


def with_classifier(model, **changes):
    torch.manual_seed(3)
    model.add_classifier(replace(SPEC, **changes))
    return model.eval()


@torch.inference_mode()
def scores(model, cells):
    return model.classify(cells, model(cells))


def alone(cells, number):
    own = slice(*cells.offsets[number : number + 2].tolist())
    tokens = {
        n: getattr(cells, n)[own] for n in ("gene_ids", "values", "is_target", "target_values")
    }
    return replace(cells, **tokens, offsets=torch.tensor([0, own.stop - own.start]).int())


@pytest.mark.parametrize("features", ["both", "embedding", "genes"])
def test_a_cells_scores_are_its_own(rng, features):
    model, cells = with_classifier(toy_model(), features=features), shown(rng, [9, 30, 1, 17])
    found = scores(model, cells)
    for number in range(4):
        one = alone(cells, number)
        torch.testing.assert_close(scores(model, one)[0], found[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["scfm", "scmulan"])
def test_scores_are_two_linear_models(rng, family):
    """Of the vector, standardised, and of the profile; depths and task words are no expression."""
    if family == "scfm":
        model, cells = with_classifier(toy_model()), shown(rng, [9, 30, 1])
    else:
        model, cells = with_classifier(toy_scmulan(), pooling="prompt"), toy_sentences(rng, [9, 5])
    own, vocab = model.classifier, model.vocab
    own.mean.fill_(0.3)
    own.scale.fill_(2.0)
    own.bias.data = torch.tensor([0.1, 0.2, 0.3])
    profile = torch.zeros(cells.n_cells, len(vocab))
    cell_of = torch.repeat_interleave(torch.arange(cells.n_cells), cells.offsets.diff().long())
    profile[cell_of, cells.gene_ids] = cells.values
    profile[:, : vocab.gene_start] = 0
    profile[:, vocab.gene_start + vocab.n_genes :] = 0
    with torch.no_grad():
        vectors = model.pool(model(cells), own.spec.pooling)
        expected = (vectors - 0.3) / 2 @ own.linear.weight.T + own.bias
        expected += profile @ own.gene_weight.weight
        torch.testing.assert_close(scores(model, cells), expected, rtol=1e-5, atol=1e-4)


def test_the_folder_holds_all_of_it(rng, tmp_path):
    model, cells = with_classifier(toy_model()), shown(rng, [9, 30])
    model.classifier.mean.fill_(0.5)
    save_model(model, tmp_path / "model")
    again = scfm.load(tmp_path / "model")
    assert again.classifier.spec == model.classifier.spec
    torch.testing.assert_close(scores(again, cells), scores(model, cells), rtol=0, atol=0)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["classifier"]["labels"] == ["A", "B", "C"]


def test_a_model_without_one_stays_as_it_was(tmp_path):
    save_model(toy_model(), tmp_path / "model")
    assert not json.loads((tmp_path / "model" / "config.json").read_text()).get("classifier")
    assert scfm.load(tmp_path / "model").classifier is None


@pytest.mark.parametrize(
    "change", [{"labels": ["A"]}, {"labels": ["B", "A"]}, {"features": "all"}, {"code": "x"}]
)
def test_a_spoiled_spec_is_refused(tmp_path, change):
    save_model(with_classifier(toy_model()), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["classifier"] |= change
    path.write_text(json.dumps(config))
    made = json.loads((tmp_path / "model" / "provenance.json").read_text())
    made["config_sha256"] = sha256(path)
    (tmp_path / "model" / "provenance.json").write_text(json.dumps(made))
    with pytest.raises(ModelError, match="cannot be loaded"):
        scfm.load(tmp_path / "model")
