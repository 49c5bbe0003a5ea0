"""The loss of saying a sentence, against the loss written down from the multi-hot targets."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scfm.objectives.sentence import Heads, sentence_losses

V, D = 9, 4
END = 0


def plain(logits, values, y, bins, first, last, weight=None):
    """As the paper has it: V times the mean BCE of places first..last, and the squared errors."""
    rows = slice(first, last)
    words = V_of(logits) * F.binary_cross_entropy_with_logits(logits[rows], y[rows], weight)
    is_wanted = y[rows] != 0
    return words, (values[rows] - bins[rows])[is_wanted].square().mean()


def V_of(logits):  # noqa: N802
    return logits.shape[1]


K_LOGITS = torch.tensor([[0.0, 1, -1, 2], [0.5, -0.5, 0, 1], [3, 0, 0, -3]])
K_VALUES = torch.tensor([[0.0, 5, 0, 3], [1, 2, 8, 4], [0, 0, 0, 0]])
K_Y = torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]])
K_BINS = torch.tensor([[0.0, 4, 7, 0], [0, 0, 7, 0], [0, 0, 0, 0]])


def tables(logits, values):
    """Heads that read a state's own row: its logits, then its values."""
    states = torch.cat([logits, values], dim=1)
    n = logits.shape[1]
    return states, Heads(lambda s: s[:, :n], lambda s, words: s[:, n:][:, words])


def test_worked_number_k():
    """The plain loss gives the published numbers, and ours the one that a sentence can have."""
    words, values = plain(K_LOGITS, K_VALUES, K_Y, K_BINS, 1, 3)
    np.testing.assert_allclose([words, values], [2.2190, 0.6667], atol=5e-5)
    np.testing.assert_allclose(words + 200 * values, 135.5524, atol=5e-5)
    also = plain(K_LOGITS, K_VALUES, K_Y, K_BINS, 0, 2)
    np.testing.assert_allclose(also, [3.7006, 10.4], atol=5e-5)
    np.testing.assert_allclose(also[0] + 200 * also[1], 2083.7007, atol=5e-5)

    # a prompt of two words; then word 2 with bin 7 and the end word are said
    states, heads = tables(
        torch.cat([K_LOGITS, torch.zeros(1, 4)]), torch.cat([K_VALUES, torch.zeros(1, 4)])
    )
    found = sentence_losses(
        states,
        torch.tensor([3, 1, 2, 0]),
        torch.tensor([0.0, 0, 7, 0]),
        torch.tensor([False, False, True, True]),
        torch.tensor([0, 4]).int(),
        heads,
        end_target="always",
    )
    torch.testing.assert_close(found.words, words)
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.squared_error, torch.tensor([1.0, 0.0]))


def sentences(rng, counts, prompts):
    """Random words, prompt first; the last said word is the end word."""
    ids, is_target, offsets = [], [], [0]
    for n_said, n_prompt in zip(counts, prompts, strict=True):
        said = rng.permutation(V - 1)[: max(n_said - 1, 0)] + 1
        ids += [*rng.integers(1, V, n_prompt), *said, *([END] if n_said else [])]
        is_target += [False] * n_prompt + [True] * n_said
        offsets.append(len(ids))
    bins = np.where(is_target, rng.integers(0, 11, len(ids)), 0)
    return (
        torch.tensor(np.array(ids)),
        torch.tensor(bins, dtype=torch.float64),
        torch.tensor(is_target),
        torch.tensor(offsets).int(),
    )


def targets(ids, offsets, is_target, end_target, in_turn):
    """The multi-hot targets of every place, one by one."""
    y = torch.zeros(len(ids), V, dtype=torch.float64)
    for cell, (first, last) in enumerate(itertools.pairwise(offsets)):
        places = [t for t in range(first, last) if is_target[t]]
        for number, t in enumerate(places):
            left = [int(ids[place]) for place in places[number:]]
            wanted = {left[0]} if in_turn[cell] else set(left)
            wanted.discard(END)
            if left[0] == END or end_target == "always":
                wanted.add(END)
            y[t - 1, list(wanted)] = 1
    return y


@pytest.mark.parametrize("end_target", ["last", "always"])
@pytest.mark.parametrize("type_target", ["set", "next"])
@pytest.mark.parametrize("weighs", [False, True])
def test_equal_to_the_multi_hot_loss(rng, end_target, type_target, weighs):
    counts, prompts = [5, 1, 0, 8], [2, 1, 3, 4]
    ids, bins, is_target, offsets = sentences(rng, counts, prompts)
    states = torch.tensor(rng.normal(size=(len(ids), D)), requires_grad=True)
    word_weight, value_weight = (
        torch.tensor(rng.normal(size=(V, D)), requires_grad=True) for _ in range(2)
    )
    is_annotation = torch.tensor([True, False, True, False])
    heads = Heads(lambda s: s @ word_weight.T, lambda s, words: s @ value_weight[words].T)
    given = (states, ids, bins, is_target, offsets, heads)
    how = {"end_target": end_target, "type_target": type_target, "is_annotation": is_annotation}
    of_words = torch.tensor(rng.uniform(0, 30, V)).float() if weighs else None
    how["word_weight"] = of_words
    found = sentence_losses(*given, **how)

    in_turn = is_annotation.tolist() if type_target == "next" else [False] * 4
    y = targets(ids, offsets, is_target, end_target, in_turn)
    dense = torch.zeros(len(ids), V, dtype=torch.float64)
    bounds, each = offsets.tolist(), []
    for cell, n_said in enumerate(counts):
        if n_said:
            last = bounds[cell + 1]
            dense[bounds[cell] : last, ids[last - n_said : last]] = bins[last - n_said : last]
            logits, values = states @ word_weight.T, states @ value_weight.T
            each.append(plain(logits, values, y, dense, last - n_said - 1, last - 1, of_words))
    words, values = (torch.stack(part).sum() / 4 for part in zip(*each, strict=True))
    torch.testing.assert_close(found.words.double(), words, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.values.double(), values, rtol=1e-6, atol=0)
    assert found.cell_of.tolist() == [0] * 5 + [1] + [3] * 8

    weights = (states, word_weight, value_weight)
    wanted = torch.autograd.grad(words + 200 * values, weights, retain_graph=True)
    for size in (2**20, 30, V, 1):  # all at once; three places; one
        some = sentence_losses(*given, **how, most_at_once=size)
        torch.testing.assert_close(some.squared_error, found.squared_error)
        gradients = torch.autograd.grad(some.words + 200 * some.values, weights)
        for mine, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_batch_is_the_mean_of_its_cells(rng):
    ids, bins, is_target, offsets = sentences(rng, [5, 2, 7], [2, 1, 3])
    states, heads = tables(*(torch.tensor(rng.normal(size=(len(ids), V))) for _ in range(2)))
    together = sentence_losses(states, ids, bins, is_target, offsets, heads)
    alone = [
        sentence_losses(
            *(x[a:b] for x in (states, ids, bins, is_target)),
            torch.tensor([0, b - a]).int(),
            heads,
        )
        for a, b in itertools.pairwise(offsets)
    ]
    for name in ("words", "values"):
        mean = torch.stack([getattr(one, name) for one in alone]).mean()
        torch.testing.assert_close(getattr(together, name), mean)
    torch.testing.assert_close(
        together.squared_error, torch.cat([one.squared_error for one in alone])
    )


def test_logits_of_all_words_are_never_all_there():
    """With 20,000 words: what is kept for the backward pass is far below one logit matrix."""
    n_words, n, d = 20_000, 400, 8
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(n, d, generator=generator, requires_grad=True)
    weight = torch.randn(n_words, d, generator=generator, requires_grad=True)
    heads = Heads(lambda s: s @ weight.T, lambda s, words: s @ weight[words].T)
    is_target = torch.arange(n) >= 100
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = sentence_losses(
            *(states, torch.arange(n) + 1, torch.ones(n), is_target),
            *(torch.tensor([0, n]).int(), heads),
            most_at_once=2**19,
        )
    assert sum(kept.values()) < 0.1 * (n * n_words * 4)
    found.words.backward()
    assert weight.grad is not None
