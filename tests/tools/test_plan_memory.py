"""What a forward pass keeps. Oracle: the storages that autograd really holds, on real passes."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from scfm.objectives.sentence import MOST_AT_ONCE
from scfm.tasks.pretrain_module import PretrainModule
from scfm.tasks.pretrain_objective import (
    MaskedObjectiveConfig,
    ObjectiveConfig,
    SentenceObjectiveConfig,
)
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.rng import cell_keys
from scfm.tools import plan_memory_scfoundation, plan_memory_scmulan
from scfm.tools.plan_memory import Arithmetic, Segment, Tokens, activation_bytes, most_in_pass
from scfm.train.optim import OptimConfig
from scfm.train.throughput import token_counts
from tests.toys import masked_cells, toy_cells, toy_model, toy_scfoundation, toy_vocab
from tests.toys_scmulan import scmulan_adata, toy_scmulan

LENGTHS = [301, 199, 150, 350]
DEEPER = {"d_model": 64, "n_layers": 3, "n_heads": 4, "n_bins": 100, "n_decoder_layers": 2}


def storage(tensor):
    return tensor.untyped_storage()


def held(module, cells, precision):
    """Bytes alive after a forward pass that were not before: those autograd saved and, under
    selective recompute, those that Python keeps. Without autocast's copies of weights."""
    weights = {storage(p).data_ptr() for p in module.parameters()}
    arrays = (v for v in vars(cells).values() if isinstance(v, torch.Tensor))
    before = weights | {storage(a).data_ptr() for a in arrays}
    before |= {storage(t).data_ptr() for t in _living()}
    kept = {}

    def note(tensor):
        if storage(tensor).data_ptr() not in before:
            kept[storage(tensor).data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
    ):
        loss = module.losses(cells)["loss"]
    assert loss.requires_grad
    for tensor in _living():
        note(tensor)
    shapes = {p.shape for p in module.parameters()} | {p.T.shape for p in _matrices(module)}
    return sum(
        storage(t).nbytes()
        for t in kept.values()
        if not (precision == "bf16-mixed" and t.dtype == torch.bfloat16 and t.shape in shapes)
    )


def _living():
    found = [found for found in gc.get_objects() if type(found) is torch.Tensor]
    # sparse ones, which another test may have left, have no storage to ask for
    return [tensor for tensor in found if tensor.layout is torch.strided and not tensor.is_meta]


def _matrices(module):
    return [p for p in module.parameters() if p.ndim == 2]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    ("recompute", "attention"),
    [("none", "documents"), ("none", "padded"), ("selective", "documents"), ("full", "documents")],
)
@pytest.mark.parametrize("shape", [{}, DEEPER], ids=["flat", "deep"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # said once a process
def test_activations_are_what_autograd_holds(rng, precision, recompute, attention, shape):
    vocab = toy_vocab(400)
    model = toy_model(vocab, attention=attention, **shape).train()
    model.recompute(recompute)
    if precision == "bf16-true":
        model.bfloat16()
    cells = toy_cells(rng, LENGTHS, vocab)
    found = held(PretrainModule(model, ObjectiveConfig(), OptimConfig()), cells, precision)
    n_targets = int(cells.is_target.sum())
    how = Arithmetic.of(precision, "cpu", attention)
    if attention == "padded":  # every cell has a bucket of its own here
        how = replace(how, padding=0.0)
    n = Tokens(len(LENGTHS), cells.n_tokens - n_targets, n_targets)
    predicted = activation_bytes(model.config.sizes, how, n, recompute)
    # Recompute keeps the state of the random generator besides, 5 kB a block.
    assert predicted == pytest.approx(found, rel=2e-3 if recompute == "none" else 0.025)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_activations_of_scfoundation(rng, recompute):
    """Its decoder, over all genes, is nearly all of them."""
    shape = {"d_model": 32, "d_decoder": 32, "n_decoder_layers": 3, "n_decoder_heads": 2}
    model = toy_scfoundation(2000, d_head=16, **shape).train()
    model.recompute(recompute)
    cells = masked_cells(rng, [301, 199, 150, 350], 2000)
    found = held(PretrainModule(model, MaskedObjectiveConfig(), OptimConfig()), cells, "32-true")
    n = Tokens(4, *map(float, (counts.sum() for counts in token_counts(cells))))
    how = Arithmetic.of("32-true", "cpu")
    parts = plan_memory_scfoundation.segments(model.config.sizes, how, n, recompute, 2002)
    assert sum(part.kept for part in parts) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_activations_of_scmulan(rng, recompute):
    """A sentence of each cell; the logits are made in chunks, and again in the backward pass."""
    adata = scmulan_adata(rng, 12, 50)
    model = toy_scmulan(d_model=64, n_layers=3, n_heads=4).train()
    model.recompute(recompute)
    config = replace(model.token_config, annotate_share=0.4)
    member, _ = open_input(adata, model.vocab, InputConfig(minimum_coverage=0.0), config)
    keys = cell_keys(0, 0, np.arange(12))
    cells = member.tokenizer.training(member.source.rows(np.arange(12)), keys)
    cells = cells.map(torch.from_numpy)
    found = held(PretrainModule(model, SentenceObjectiveConfig(), OptimConfig()), cells, "32-true")
    n = Tokens(12, *map(float, (counts.sum() for counts in token_counts(cells))))
    assert n.visible == cells.n_tokens
    how = Arithmetic.of("32-true", "cpu")
    parts = plan_memory_scmulan.segments(model.config.sizes, how, n, recompute, len(model.vocab))
    assert sum(part.kept for part in parts) == pytest.approx(found, rel=0.1)


def test_logits_at_once_are_what_the_objective_makes():
    assert plan_memory_scmulan.AT_ONCE == MOST_AT_ONCE


def test_the_worst_moment():
    """Two parts of 10 and 6 kept; the last needs 5 more backward, the first 20 made again."""
    parts = [Segment("a", kept=10, again=20), Segment("b", kept=6, forward=1, backward=5)]
    no_gradients = {"gradients": 0.0, "new_gradients": 0.0, "table": 0.0}
    assert most_in_pass(parts, **no_gradients) == (17, 30)
    # in buckets they are there all the time
    in_buckets = {"gradients": 8.0, "new_gradients": 0.0, "table": 0.0}
    assert most_in_pass(parts, **in_buckets) == (25, 38)
    # freed before the backward pass: half of them is made when the first part's turn comes
    freed = {"gradients": 8.0, "new_gradients": 8.0, "table": 0.0}
    assert most_in_pass(parts, **freed) == (25, 34)


def test_recompute_keeps_less_and_less():
    sizes, n = toy_model().config.sizes, Tokens(4, 700, 300)
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        for device in ("cpu", "cuda"):
            how = Arithmetic.of(precision, device)
            kept = [activation_bytes(sizes, how, n, r) for r in ("none", "selective", "full")]
            assert kept == sorted(kept, reverse=True)
