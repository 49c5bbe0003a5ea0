"""The scMulan family: its shape, its invariances, its cost."""

import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scfm.errors import ConfigError, ModelError
from scfm.model.base import save_model
from scfm.model.config import ScmulanSizes
from scfm.model.families import load_model
from scfm.model.generate import next_probabilities
from scfm.model.scmulan import ScmulanModel
from scfm.model.scmulan_flops import batch_flops, flops_by_part
from scfm.objectives.sentence import Heads, sentence_losses
from tests.toys import scmulan_vocab, toy_scmulan, toy_sentences, toy_vocab

SHAPES = [{}, {"d_model": 48, "n_layers": 3, "n_heads": 3, "bias": True}]


def losses(model, cells):
    states = model(cells)
    return sentence_losses(
        *(states.tokens, cells.gene_ids, cells.target_values, cells.is_target, cells.offsets),
        Heads(model.word_logits, model.value_logits),
    )


def step(how: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    model = toy_scmulan().train()
    model.recompute(how)  # pyright: ignore
    found = losses(model, toy_sentences(np.random.default_rng(0), [20, 5, 31], n_said=9))
    (found.words + 200 * found.values).backward()
    return {name: w.grad for name, w in model.named_parameters()}, found.words.detach()


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputed_activations_give_the_same_gradients(how):
    wanted, loss = step("none")
    found, again = step(how)
    assert loss == again
    for name, gradient in wanted.items():
        assert gradient is not None, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_a_cell_is_the_same_among_others_and_alone(rng, backend):
    model = toy_scmulan(attention=backend)
    together = toy_sentences(rng, [9, 0, 30])
    states, bounds = model(together), together.offsets.tolist()
    for cell in range(3):
        own = slice(bounds[cell], bounds[cell + 1])
        x = model.embed_words(together.gene_ids[own], together.values[own])
        alone = model.decoder(x, type_of_packing(len(x)))
        torch.testing.assert_close(states.tokens[own], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states.cell[cell], alone[-1], rtol=1e-4, atol=1e-5)


def type_of_packing(n: int):
    from scfm.model.attention import Packing

    return Packing(torch.tensor([0, n]).int())


@torch.no_grad()
def test_later_words_change_nothing_before_and_order_matters_after(rng):
    model, cells = toy_scmulan(), toy_sentences(rng, [20])
    before = model(cells).tokens
    swapped = cells.map(torch.clone)
    swapped.gene_ids[[10, 15]] = cells.gene_ids[[15, 10]]
    swapped.values[[10, 15]] = cells.values[[15, 10]]
    after = model(swapped).tokens
    torch.testing.assert_close(after[:10], before[:10])
    assert (after[-1] - before[-1]).abs().max() > 1e-3  # the causal mask alone tells the order


def test_a_saved_model_is_the_same(tmp_path, rng):
    model = toy_scmulan()
    save_model(model, tmp_path / "model")
    loaded, cells = load_model(tmp_path / "model"), toy_sentences(rng, [7, 12])
    assert isinstance(loaded, ScmulanModel)
    assert loaded.types == ("coarse", "fine")
    assert loaded.vocab == model.vocab
    assert loaded.token_config == model.token_config
    with torch.no_grad():
        torch.testing.assert_close(loaded(cells).cell, model(cells).cell, rtol=0, atol=0)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "scmulan"
    assert config["types"] == ["coarse", "fine"]


@torch.no_grad()
def test_poolings(rng):
    model, cells = toy_scmulan(), toy_sentences(rng, [9, 0, 30])
    states, bounds = model(cells), cells.offsets.tolist()
    assert torch.equal(model.embed(cells, "prompt"), states.cell)
    mean = model.embed(cells, "mean")
    for cell in (0, 2):
        genes = states.tokens[bounds[cell] : bounds[cell + 1] - 1]
        torch.testing.assert_close(mean[cell], genes.mean(0))
    assert torch.equal(mean[1], states.cell[1])  # without a gene there is the task word alone
    assert torch.equal(model.embed(cells), model.embed(cells, "type"))
    with pytest.raises(ConfigError, match=r"model\.embed"):
        model.pool(states, "type")
    with pytest.raises(ConfigError, match="type, prompt, mean"):
        model.embed(cells, "max")


@torch.no_grad()
def test_embedding_is_the_state_at_the_likeliest_coarse_type(rng):
    model, cells = toy_scmulan(), toy_sentences(rng, [9, 14])
    coarse = model.type_ids(0)
    assert [model.vocab.tokens[i] for i in coarse] == ["Immune", "Muscle"]
    likeliest = torch.tensor(coarse)[next_probabilities(model, cells, coarse).argmax(1)]
    found, bounds = model.embed(cells), cells.offsets.tolist()
    for cell in range(2):
        own = slice(bounds[cell], bounds[cell + 1])
        words = torch.cat([cells.gene_ids[own], likeliest[[cell]]])
        bins = torch.cat([cells.values[own], torch.zeros(1)])
        states = model.decoder(model.embed_words(words, bins), type_of_packing(len(words)))
        torch.testing.assert_close(found[cell], states[-1], rtol=1e-4, atol=1e-5)


def test_a_model_without_types_says_so(rng):
    model = ScmulanModel.from_scratch(
        scmulan_vocab(), ScmulanSizes(d_model=16, n_layers=1, n_heads=2)
    )
    with pytest.raises(ConfigError, match="--pooling prompt"):
        model.embed(toy_sentences(rng, [4]))


def test_what_it_is_not_for_is_refused(rng):
    model, cells = toy_scmulan(), toy_sentences(rng, [4], n_said=2)
    with pytest.raises(ModelError, match="scfoundation family"):
        model.predict_targets(cells, model(cells))
    with pytest.raises(ModelError, match="alone before its genes"):
        ScmulanModel.from_scratch(toy_vocab(), ScmulanSizes(d_model=16, n_layers=1, n_heads=2))


def test_weights_begin_as_gpt_2_s():
    torch.manual_seed(0)
    sizes = ScmulanSizes(d_model=64, n_layers=8, n_heads=4, bias=True)
    model = ScmulanModel.from_scratch(scmulan_vocab(2000), sizes)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (weight == 1).all()
        elif name.endswith("bias"):
            assert (weight == 0).all()
        else:
            into_residual = name.endswith(("out.weight", "contract.weight"))
            wanted = 0.02 / 4 if into_residual else 0.02  # sqrt(2 x 8 layers)
            assert weight.std().item() == pytest.approx(wanted, rel=0.1), name


def test_dropout_is_of_training_alone(rng):
    model, cells = toy_scmulan(dropout=0.3), toy_sentences(rng, [9])
    still = toy_scmulan()
    with torch.no_grad():
        assert torch.equal(model(cells).cell, still(cells).cell)
        model.train()
        assert not torch.equal(model(cells).cell, model(cells).cell)


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_what_torch_counts(rng, shape):
    """Forward, and twice that backward. The "math" kernel is the one the counter knows."""
    model = toy_scmulan(attention="documents", **shape).train()
    cells = toy_sentences(rng, [12, 30, 1, 7], n_said=6)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            found = losses(model, cells)
        with FlopCounterMode(display=False) as backward:
            (found.words + found.values).backward()
    lengths = cells.offsets.diff().numpy(), [7] * 4
    sizes, n_words = model.config.sizes, model.config.n_tokens
    assert sum(flops_by_part(sizes, n_words, *lengths).values()) == forward.get_total_flops()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
    assert batch_flops(sizes, n_words, *lengths) == 3 * forward.get_total_flops()
    assert model.batch_flops(*lengths) == 3 * forward.get_total_flops()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"d_model": 0}, "model.d_model"),
        ({"n_heads": 3}, "must divide"),
        ({"n_bins": 0}, "model.n_bins"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"initializer_range": 0.0}, "model.initializer_range"),
    ],
)
def test_sizes_that_cannot_be(wrong, said):
    with pytest.raises(ValueError, match=said):
        ScmulanSizes(**wrong)
