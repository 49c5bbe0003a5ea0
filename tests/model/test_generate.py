"""Generation: the cache, the batch and the order of cells change nothing."""

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from scfm.model import cache as cache_module
from scfm.model import voice
from scfm.model.attention import Packing
from scfm.model.generate import complete, next_probabilities
from scfm.model.sampling import Decoding
from tests.toys import scmulan_vocab, toy_scmulan, toy_sentences

LENGTHS = [12, 0, 31, 5, 31]
SAMPLED = Decoding(max_words=12, seed=5, temperature=3.0)


@pytest.fixture(scope="module")
def model():
    return toy_scmulan()


@pytest.fixture
def prompts(rng):
    return toy_sentences(rng, LENGTHS)


def by_cell(found):
    counts = found.offsets.diff().tolist()
    parts = (found.words, found.values, found.probabilities)
    return list(zip(*(part.split(counts) for part in parts), strict=True))


def assert_same(found, wanted):
    assert found.words.tolist() == wanted.words.tolist()
    assert found.values.tolist() == wanted.values.tolist()
    assert found.offsets.tolist() == wanted.offsets.tolist()
    assert found.has_ended.tolist() == wanted.has_ended.tolist()
    for name in ("probabilities", "prompt_states", "states"):
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-5
        )


def test_cells_end_at_different_lengths(model, prompts):
    """What the other tests rest on: words are drawn, some cells end early, some do not."""
    found = complete(model, prompts, SAMPLED)
    lengths = found.offsets.diff()
    assert len(lengths.unique()) > 2
    assert 0 < found.has_ended.sum() < len(lengths)


@pytest.mark.parametrize("end_weight", [1.0, 4.0])
def test_cached_is_uncached(model, prompts, end_weight):
    how = replace(SAMPLED, end_weight=end_weight)
    found = complete(model, prompts, how, keep=3)
    assert_same(found, complete(model, prompts, how, keep=3, cache=False))


@pytest.mark.parametrize("max_tokens", [1, 60, 90, 150])
def test_groups_change_nothing(model, prompts, max_tokens):
    how = replace(SAMPLED, allowed=((52, 53), None))
    found = complete(model, prompts, how, keep=2, max_tokens=max_tokens)
    wanted = complete(model, prompts, how, keep=2)
    assert_same(found, wanted)
    torch.testing.assert_close(found.candidates[0], wanted.candidates[0])
    assert found.candidates[1] is wanted.candidates[1] is None


def test_a_cell_says_the_same_among_others_and_alone(model, prompts):
    how = SAMPLED
    together = by_cell(complete(model, prompts, how))
    bounds = prompts.offsets.tolist()
    for cell, (first, last) in enumerate(itertools.pairwise(bounds)):
        own = prompts.map(lambda x, a=first, b=last: x[a:b] if len(x) == bounds[-1] else x[:1])
        own = replace(own, offsets=torch.tensor([0, last - first]).int())
        alone = by_cell(complete(model, own, how, cells=np.array([cell])))
        assert alone[0][0].tolist() == together[cell][0].tolist()
        assert alone[0][1].tolist() == together[cell][1].tolist()


def test_what_is_drawn_hangs_on_the_cell_s_number_and_the_seed(model, rng):
    same = toy_sentences(rng, [9])
    prompts = same.map(lambda x: torch.cat([x] * 3))
    prompts = replace(prompts, offsets=torch.tensor([0, 10, 20, 30]).int())
    one = by_cell(complete(model, prompts, SAMPLED, cells=np.array([4, 9, 4])))
    assert one[0][0].tolist() == one[2][0].tolist() != one[1][0].tolist()
    other = by_cell(complete(model, prompts, replace(SAMPLED, seed=6), cells=np.array([4, 9, 4])))
    assert one[0][0].tolist() != other[0][0].tolist()


def test_no_word_comes_twice(model, prompts):
    found = complete(model, prompts, replace(SAMPLED, max_words=500, end_weight=1e-3))
    counts = Packing(prompts.offsets).lengths
    for (words, *_), prompt in zip(by_cell(found), prompts.gene_ids.split(counts), strict=True):
        both = [*prompt.tolist(), *words.tolist()]
        assert len(both) == len(set(both))


def test_a_cell_with_nothing_left_to_say_is_done(model, prompts):
    """Two words are allowed, three asked for; neither is the end word."""
    found = complete(model, prompts, Decoding(max_words=3, allowed=((52, 53),)), keep=3)
    assert found.offsets.diff().tolist() == [2] * len(LENGTHS)
    assert not found.has_ended.any()
    assert (found.states[:, :2].abs().sum(-1) > 0).all()
    assert (found.states[:, 2] == 0).all()
    assert found.candidates[2].sum() == 0


def test_only_allowed_words_come_and_candidates_are_their_probabilities(model, prompts):
    allowed = ((53, 54), (0, 53, 55))
    found = complete(model, prompts, Decoding(max_words=2, top_k=1, allowed=allowed), keep=2)
    first = next_probabilities(model, prompts, allowed[0])
    torch.testing.assert_close(found.candidates[0], first)
    torch.testing.assert_close(first.sum(1), torch.ones(len(LENGTHS)))
    for cell, (words, values, probabilities) in enumerate(by_cell(found)):
        assert words[0] == allowed[0][first[cell].argmax()]
        torch.testing.assert_close(probabilities[0], first[cell].max())
        second = found.candidates[1][cell]
        assert words[1] == allowed[1][second.argmax()]
        if words[0] == 53:  # said, so not said again
            assert second[1] == 0
        assert values.tolist() == [0, 0]


def test_states_are_those_of_the_whole_sentence(model, prompts):
    found = complete(model, prompts, SAMPLED, keep=2)
    counts = Packing(prompts.offsets).lengths
    for cell, (words, values, _) in enumerate(by_cell(found)):
        prompt = [part.split(counts)[cell] for part in (prompts.gene_ids, prompts.values)]
        ids, bins = torch.cat([prompt[0], words]), torch.cat([prompt[1], values])
        states = model.decoder(
            model.embed_words(ids, bins), Packing(torch.tensor([0, len(ids)]).int())
        )
        n = len(prompt[0])
        torch.testing.assert_close(found.prompt_states[cell], states[n - 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.states[cell], states[n : n + 2], rtol=1e-4, atol=1e-5)


def test_values_are_bins_of_genes(prompts):
    model = toy_scmulan()
    model.value_head.weight.data *= 8
    found = complete(model, prompts, replace(SAMPLED, max_words=60, end_weight=1e-3))
    is_gene = model.is_gene(found.words)
    assert (found.values[~is_gene] == 0).all()
    assert set(found.values.tolist()) <= set(range(11))
    assert found.values.max() == 10


def test_the_cache_grows_as_it_is_filled(model, prompts, monkeypatch):
    wanted = complete(model, prompts, SAMPLED)
    monkeypatch.setattr(cache_module, "GROWTH", 3)
    assert_same(complete(model, prompts, SAMPLED), wanted)


def test_cells_that_are_done_may_stay_in_the_cache(model, prompts, monkeypatch):
    """Until it is worth closing up; here never, and at once."""
    wanted = complete(model, prompts, SAMPLED, cache=False)
    for most_full in (0.0, 1.0):
        monkeypatch.setattr(voice, "MOST_FULL", most_full)
        assert_same(complete(model, prompts, SAMPLED), wanted)


def test_no_word_is_gone_through_twice(model, prompts, monkeypatch):
    """Tokens that pass the first block: the prompts' once, then one a cell and word."""
    seen, original = [], model.blocks[0]._qkv
    monkeypatch.setattr(model.blocks[0], "_qkv", lambda x: (seen.append(len(x)), original(x))[1])
    found = complete(model, prompts, SAMPLED)
    n_last = int((~found.has_ended).sum())  # nothing is asked after a last word
    said = found.offsets[-1] - found.has_ended.sum() - n_last
    assert sum(seen) == prompts.n_tokens + said


def test_memory_is_bounded_by_the_budget(model, prompts, monkeypatch):
    """Of a group: its cells times the longest they may get; and one group's at a time."""
    rooms, alive = [], weakref.WeakSet()
    original = cache_module.WordCache.__init__

    def note(self, n_layers, cells, most):
        assert not alive, "the group before still holds its cache"
        alive.add(self)
        original(self, n_layers, cells, most)
        rooms.append(len(cells.lengths) * most)

    monkeypatch.setattr(cache_module.WordCache, "__init__", note)
    complete(model, prompts, SAMPLED, max_tokens=110)
    assert rooms == [3 * (13 + 12), 2 * (32 + 12)]  # prompts are their genes and a task word


def test_nothing_is_kept_for_a_gradient(model, prompts):
    found = complete(model, prompts, SAMPLED, keep=1)
    assert not found.prompt_states.requires_grad
    assert found.states.shape == (len(LENGTHS), 1, 32)


def test_task_words_are_where_the_vocabulary_says():
    vocab = scmulan_vocab()
    assert [vocab.tokens[i] for i in (0, 51, 53, 55, 57)] == [
        *("<E>", "Blood", "Immune", "T cell", "<PCT>")
    ]
