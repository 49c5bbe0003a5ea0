"""Which weights learn; that adapters leave a plain model behind."""

import copy
import sys
from dataclasses import replace

import pytest
import torch

import scfm
from scfm.errors import ConfigError
from scfm.model.base import save_model
from scfm.model.classifier import ClassifierSpec
from scfm.tasks.celltype_weights import LoraSizes, freeze, merge_adapters
from tests.toys import (
    masked_cells,
    toy_cells,
    toy_model,
    toy_scfoundation,
    toy_scmulan,
    toy_sentences,
)

SIZES = LoraSizes(rank=2, alpha=4)


def ready(make, pooling):
    model = make()
    model.add_classifier(ClassifierSpec(labels=("A", "B"), pooling=pooling))
    return model.eval()


@pytest.fixture
def cells(rng):
    found = toy_cells(rng, [9, 30])
    return replace(found, is_target=torch.zeros_like(found.is_target))


def learned(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_what_learns_by_each_method(cells):
    model = ready(toy_model, "cell")
    freeze(model, "partial", cells, last_blocks=1, lora=SIZES)
    ours = learned(model)
    assert {n.split(".")[0] for n in ours} == {"encoder", "classifier"}
    assert all(n.startswith(("encoder.blocks.1.", "encoder.norm.", "classifier.")) for n in ours)
    freeze(model, "full", cells, last_blocks=1, lora=SIZES)
    assert {n.split(".")[0] for n in learned(model)} == {"embedding", "encoder", "classifier"}
    freeze(model, "lora", cells, last_blocks=1, lora=SIZES)
    assert all("lora_" in n or n.startswith("classifier.") for n in learned(model))
    assert sum("lora_A" in n for n in learned(model)) == 2 * 5  # q, kv, out, gate_and_up, out


@pytest.mark.parametrize("method", ["full", "lora"])
def test_decoders_and_heads_of_other_families_stay_out(rng, method):
    model = ready(toy_scfoundation, "all")
    freeze(model, method, masked_cells(rng, [9, 12]), last_blocks=1, lora=SIZES)
    parts = {name.split(".")[0] for name in learned(model)}
    assert parts <= {"position", "value", "encoder", "classifier"}
    model = ready(toy_scmulan, "prompt")
    freeze(model, method, toy_sentences(rng, [9, 12]), last_blocks=1, lora=SIZES)
    assert {n.split(".")[0] for n in learned(model)} <= {"word", "value", "decoder", "classifier"}


def test_more_blocks_than_there_are_is_refused(cells):
    with pytest.raises(ConfigError, match="encoder has 2 blocks, so 1 to 2"):
        freeze(ready(toy_model, "cell"), "partial", cells, last_blocks=3, lora=SIZES)


def test_merged_adapters_say_the_same_and_load_without_peft(cells, tmp_path, monkeypatch):
    """Oracle: the model with its adapters at work."""
    torch.manual_seed(0)
    model = ready(toy_model, "cell")
    plain = {name for name, _ in model.named_parameters()}
    before = copy.deepcopy(model)
    freeze(model, "lora", cells, last_blocks=1, lora=SIZES)
    with torch.inference_mode():
        untouched = model.classify(cells, model(cells))
        torch.testing.assert_close(untouched, before.classify(cells, before(cells)))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    with torch.inference_mode():
        expected = model.classify(cells, model(cells))
    assert not torch.allclose(expected, untouched, atol=1e-2)
    merged = merge_adapters(model)
    assert {name for name, _ in merged.named_parameters()} == plain
    save_model(merged, tmp_path / "model")
    for name in [n for n in sys.modules if n == "peft" or n.startswith("peft.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    again = scfm.load(tmp_path / "model")
    with torch.inference_mode():
        found = again.classify(cells, again(cells))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"pip install 'scfm\[lora\]'"):
        freeze(again, "lora", cells, last_blocks=1, lora=SIZES)
