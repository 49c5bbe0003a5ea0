"""Models of TF binding: both strands, conditioning, the published network, folders."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import scfm.model.dna_layers as layers
from scfm.batch import RegionBatch
from scfm.errors import ModelError
from scfm.model.dna import (
    BindingModel,
    binding_logits,
    reverse_complement,
    strand_mean,
    with_cells,
)
from scfm.model.dna_config import BindingConfig
from scfm.model.dna_folder import load_binding, save_binding
from scfm.model.dna_layers import DnaTower, Exponential

TASKS = ("CTCF", "SPI1", "MAX")
SMALL = BindingConfig(
    **{"length": 120, "first_filters": 12, "track_filters": 4, "d_model": 8, "d_hidden": 10},
    n_blocks=2,
)
VARIANTS = {
    "exponential": SMALL,
    "relu": dataclasses.replace(SMALL, first_activation="relu", first_pool=10),
    "attention": dataclasses.replace(SMALL, n_attention=1, n_heads=2, pooling="attention"),
    "sequence": dataclasses.replace(SMALL, n_tracks=0, pooling="mean", d_hidden=0),
    "embedding": dataclasses.replace(SMALL, head="embedding", d_task=5, pooling="max"),
    "cells": dataclasses.replace(SMALL, d_cell=6),
    "scfan": BindingConfig(family="scfan", length=120, n_tracks=2, both_strands=False),
}


def model_of(name, seed=0):
    torch.manual_seed(seed)
    model = BindingModel(VARIANTS[name], TASKS)
    for module in model.modules():  # norms that have seen something
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def windows(rng, config, n=5):
    codes = rng.integers(0, 5, (n, config.length))  # 4 is N
    sequence = np.eye(5, dtype=np.float32)[codes][..., :4].transpose(0, 2, 1)
    signal = rng.random((n, config.n_tracks, config.length), dtype=np.float32)
    return RegionBatch(
        sequence=torch.from_numpy(np.ascontiguousarray(sequence)),
        signal=torch.from_numpy(signal),
        labels=torch.zeros(n, len(TASKS), dtype=torch.int8),
        region_index=torch.arange(n),
        group_index=torch.full((n,), -1),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_and_a_window_is_its_own(name, rng):
    model = model_of(name)
    batch = windows(rng, model.config)
    logits = binding_logits(model, batch)
    assert logits.shape == (5, len(TASKS))
    alone = torch.cat(
        [binding_logits(model, batch.map(lambda x, i=i: x[i : i + 1])) for i in range(5)]
    )
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_strand_mean_is_the_same_on_either_strand(name, rng):
    model = model_of(name)
    batch = windows(rng, model.config)
    other = reverse_complement(batch)
    one_strand = model(batch.sequence, batch.signal)
    assert not torch.allclose(one_strand, model(other.sequence, other.signal), atol=1e-4)
    torch.testing.assert_close(strand_mean(model, batch), strand_mean(model, other))


def test_reverse_complement_in_letters():
    hot = torch.eye(4)[[0, 0, 1, 2]].T[None]  # AACG
    batch = RegionBatch(
        sequence=hot,
        signal=torch.tensor([[[1.0, 2, 3, 4]]]),
        labels=torch.zeros(1, 1, dtype=torch.int8),
        region_index=torch.arange(1),
        group_index=torch.arange(1),
    )
    other = reverse_complement(batch)
    assert other.sequence[0].argmax(0).tolist() == [1, 2, 3, 3]  # CGTT
    assert other.signal[0, 0].tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_activation_is_used_once(name, rng):
    """What attribution by DeepLIFT asks for, of softmax too."""
    model = model_of(name)
    activations = nn.ReLU | nn.Softmax | Exponential
    calls = {m: 0 for m in model.modules() if isinstance(m, activations)}

    def count(module, *_):
        calls[module] += 1

    for module in calls:
        module.register_forward_hook(count)
    batch = windows(rng, model.config)
    model(batch.sequence, batch.signal)
    assert calls
    assert set(calls.values()) == {1}


def test_no_activation_is_called_as_a_function():
    names = {"relu", "softmax", "exp", "sigmoid", "gelu", "tanh"}
    for file in ("dna_layers.py", "dna.py", "dna_scfan.py"):
        tree = ast.parse((Path(layers.__file__).parent / file).read_text())
        classes = [
            n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name != "Exponential"
        ]
        called = {
            node.func.attr
            for one in classes
            for node in ast.walk(one)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not called & names


def test_conditioning_begins_at_nothing(rng):
    plain = model_of("exponential")
    plain.provenance = {"made_by": "a test"}
    conditioned = with_cells(plain, 6).eval()
    assert conditioned.provenance == plain.provenance
    batch = windows(rng, plain.config)
    cell, has_cell = torch.randn(5, 6), torch.tensor([True, False, True, True, False])
    wanted = plain(batch.sequence, batch.signal)
    for given in ((), (cell,), (cell, has_cell)):
        assert torch.equal(conditioned(batch.sequence, batch.signal, *given), wanted)
    for film in conditioned.trunk.films:
        nn.init.normal_(film.out.weight)
        nn.init.normal_(film.out.bias)
    nn.init.normal_(conditioned.null_cell)
    found = conditioned(batch.sequence, batch.signal, cell, has_cell)
    without = conditioned(batch.sequence, batch.signal)
    assert not torch.allclose(found, wanted, atol=1e-3)
    # an unknown cell is the null embedding, whatever stands in its row
    torch.testing.assert_close(found[~has_cell], without[~has_cell])
    assert not torch.allclose(found[has_cell], without[has_cell], atol=1e-3)


def test_embedding_dropout_shows_the_null_embedding():
    config = dataclasses.replace(SMALL, d_cell=6, cell_dropout=0.25)
    model = BindingModel(config, TASKS)
    nn.init.constant_(model.null_cell, -7.0)
    shown = model._shown_cell(4000, torch.ones(4000, 6), None)
    share = float((shown == -7).all(1).float().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    model.eval()
    assert (model._shown_cell(50, torch.ones(50, 6), None) == 1).all()


def test_scfan_layer_by_layer():
    """The published network for GM12878: filters, kernels, pools and dense layers."""
    model = BindingModel(BindingConfig(family="scfan", n_tracks=2), tuple(map(str, range(33))))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    convs = [sum(p.numel() for p in conv.parameters()) for conv in model.trunk.convs]
    inputs = 4 + 2 + 2
    assert convs == [
        inputs * 8 * 160 + 160 + 2 * 160,
        160 * 8 * 240 + 240 + 2 * 240,
        240 * 8 * 240 + 240 + 2 * 240,
    ]
    flat = 62 * 240
    assert sizes["trunk.dense.weight"] == flat * 919 == 14_880 * 919
    assert sizes["trunk.dense.bias"] == 919
    assert sizes["head.weight"] + sizes["head.bias"] == 919 * 33 + 33
    total = sum(convs) + 14_880 * 919 + 919 + 919 * 33 + 33
    assert sum(sizes.values()) == total == 14_486_159
    x = torch.zeros(1, 8, 1000)
    shapes = []
    for conv in model.trunk.convs.eval():
        x = conv(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(160, 250), (240, 62), (240, 62)]


def test_scfan_reads_tracks_both_ways(rng):
    model = model_of("scfan")
    batch = windows(rng, model.config)
    seen = []
    model.trunk.convs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch.sequence, batch.signal)
    x = seen[0]
    assert torch.equal(x[:, :4], batch.sequence)
    assert torch.equal(x[:, 4:6], batch.signal)
    assert torch.equal(x[:, 6:], batch.signal.flip(2))


def test_scfan_pads_as_keras_does(rng):
    """'same' with an even kernel: three before, four after."""
    model = model_of("scfan")
    pad, conv = model.trunk.convs[0][0], model.trunk.convs[0][1]
    x = torch.from_numpy(rng.normal(size=(1, 8, 20)).astype(np.float32))
    found = conv(pad(x))[0, 0]
    padded = np.pad(x[0].numpy(), ((0, 0), (3, 4)))
    weight, bias = conv.weight[0].detach().numpy(), float(conv.bias[0].detach())
    wanted = [(padded[:, i : i + 8] * weight).sum() + bias for i in range(20)]
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "length", "pools"),
    [
        ("exponential", 1000, (4, 25)),
        ("relu", 1000, (25, 4)),
        ("exponential", 50, (4, 12)),
        ("relu", 20, (20, 1)),
    ],
)
def test_pools_follow_the_activation(activation, length, pools):
    config = BindingConfig(first_activation=activation, length=length)
    assert config.pools == pools
    assert config.n_positions >= 1


def test_exponential_stays_in_float32_under_autocast(rng):
    tower = DnaTower(8, 19, "exponential", 4, 0.0).eval()
    nn.init.constant_(tower.norm.weight, 6.0)
    x = torch.from_numpy(
        np.eye(4, dtype=np.float32)[rng.integers(0, 4, (3, 40))].transpose(0, 2, 1)
    )
    wanted = tower(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tower(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    relu = DnaTower(8, 19, "relu", 4, 0.0).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relu(x).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["exponential", "relu", "cells"])
def test_half_precision_throughout(name, rng):
    """bf16-true: all weights are bfloat16."""
    model = model_of(name).bfloat16()
    batch = windows(rng, model.config)
    logits = model(batch.sequence, batch.signal)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_penalty_in_closed_form():
    config = dataclasses.replace(SMALL, conv_l2=0.5, dense_l1=0.25)
    model = BindingModel(config, TASKS)
    named = dict(model.named_modules())
    squares = sum((m.weight**2).sum() for m in named.values() if isinstance(m, nn.Conv1d))
    sizes = sum(m.weight.abs().sum() for m in named.values() if isinstance(m, nn.Linear))
    torch.testing.assert_close(model.penalty(), 0.5 * squares + 0.25 * sizes)


def test_begins_at_the_prevalence():
    model = BindingModel(SMALL, TASKS)
    share = torch.tensor([0.1, 0.5, 0.0])
    model.expect(share)
    torch.testing.assert_close(torch.sigmoid(model.head.bias), share.clamp(1e-4))


@pytest.mark.parametrize("name", VARIANTS)
def test_folder_round_trip(name, rng, tmp_path):
    model = model_of(name)
    model.provenance = {"made_by": "a test"}
    save_binding(model, tmp_path / "run" / "model")
    loaded = load_binding(tmp_path / "run")
    batch = windows(rng, model.config)
    assert torch.equal(binding_logits(loaded, batch), binding_logits(model, batch))
    assert loaded.tasks == TASKS
    assert loaded.config == model.config
    assert loaded.provenance == model.provenance


def test_folder_refusals(tmp_path):
    model = model_of("exponential")
    with pytest.raises(ModelError, match="no binding model"):
        load_binding(tmp_path)
    save_binding(model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace("CTCF", "CTCX"))
    with pytest.raises(ModelError, match="has changed since it was saved"):
        load_binding(tmp_path / "model")
    config.write_text(kept)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="has changed"):
        load_binding(tmp_path / "model")
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        save_binding(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert json.loads(kept)["model_type"] == "scfm-binding"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_kernel": 8}, "odd"),
        ({"first_pool": 2000}, "no position"),
        ({"hidden_dropout": 1.0}, r"in \[0, 1\)"),
        ({"n_attention": 1, "n_heads": 3}, "must divide"),
        ({"family": "scfan", "d_cell": 3}, "no cell embedding"),
        ({"conv_l2": -1.0}, "at least 0"),
    ],
)
def test_impossible_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        BindingConfig(**change)
