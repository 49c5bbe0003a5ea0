"""Converted weights do what the original does with them.

Two originals: the authors' released code, whose outputs for small weights lie beside a development
checkout (not in every clone: those tests are skipped), and the network written plainly
(plain_scmulan.py). The second is always there.
"""

import json

import numpy as np
import pytest
import torch

from scfm.batch import CellBatch
from scfm.model.config import ScmulanConfig, ScmulanSizes
from scfm.model.convert.scmulan import load_published, read_vocab
from scfm.model.generate import complete
from scfm.model.sampling import Decoding
from scfm.model.scmulan import ScmulanModel
from scfm.tokens.sentence_values import prompts_from_values
from scfm.tokens.vocab import GeneVocab
from tests.parity.plain_scmulan import (
    Plain,
    Shape,
    random_prompts,
    random_weights,
    write_published,
)

LOGITS, EMBEDDING = 1e-4, 2e-5  # largest absolute differences allowed
GENES = range(1, 2001)


def batch_of(prompts: list[tuple[list[int], list[int]]]) -> CellBatch:
    """Prompts by hand: words and bins of each cell."""
    n, n_cells = sum(len(words) for words, _ in prompts), len(prompts)
    return CellBatch(
        gene_ids=torch.tensor([word for words, _ in prompts for word in words]),
        values=torch.tensor([float(value) for _, bins in prompts for value in bins]),
        offsets=torch.tensor([0, *(len(words) for words, _ in prompts)]).cumsum(0).int(),
        is_target=torch.zeros(n, dtype=torch.bool),
        target_values=torch.zeros(n),
        library_size=torch.full((n_cells,), 1e4),
        source_depth=torch.full((n_cells,), 4.0),
        target_depth=torch.full((n_cells,), 4.0),
        cell_index=torch.arange(n_cells),
    )


@pytest.fixture(scope="module")
def oracle(shared_oracles):
    """The file the original's outputs were made with, what they are, and its prompts."""
    if shared_oracles is None:
        pytest.skip("the original's outputs are not beside this checkout")
    folder = shared_oracles / "scmulan"
    prompts = json.loads((folder / "expected.json").read_text())
    with np.load(folder / "expected.npz") as file:
        return folder, dict(file), prompts


@pytest.fixture(scope="module")
def converted(oracle):
    return load_published(oracle[0] / "ckpt_scMulan.pt")


@pytest.fixture(scope="module")
def prompts(oracle):
    return batch_of(list(zip(oracle[2]["prompt_ids"], oracle[2]["prompt_bins"], strict=True)))


def test_the_shipped_vocabulary_is_the_released(oracle):
    path = oracle[0] / "vocab.json"
    assert list(GeneVocab.scmulan().tokens) == json.loads(path.read_text())["tokens"]
    assert read_vocab(path) == GeneVocab.scmulan()


def test_our_prompts_are_the_original_s(oracle, converted, prompts):
    lognorm = oracle[1]["lognorm"]
    cell, gene = np.nonzero(lognorm)
    indptr = np.searchsorted(cell, np.arange(len(lognorm) + 1))
    ours = prompts_from_values(
        indptr, gene, lognorm[cell, gene], converted.vocab, converted.token_config
    )
    assert np.array_equal(ours.gene_ids, prompts.gene_ids.numpy())
    assert np.array_equal(ours.values, prompts.values.numpy())
    assert np.array_equal(ours.offsets, prompts.offsets.numpy())


@torch.no_grad()
def test_both_heads_are_the_original_s(oracle, converted, prompts):
    states = converted(prompts)
    for ours, theirs, allowed in (
        (converted.word_logits(states.cell), "next_logits", LOGITS),
        (converted.value_logits(states.cell), "next_values", LOGITS),
        (states.cell, "prompt_hidden", EMBEDDING),
    ):
        assert np.abs(ours.numpy() - oracle[1][theirs]).max() <= allowed


@pytest.mark.parametrize("cache", [True, False])
def test_generated_words_are_the_original_s(oracle, converted, prompts, cache):
    how = Decoding(max_words=3, top_k=1, repeats="last")
    found = complete(converted, prompts, how, keep=1, cache=cache)
    assert np.array_equal(found.words.numpy().reshape(-1, 3), oracle[1]["generated"])
    assert np.array_equal(found.values.numpy().reshape(-1, 3), oracle[1]["generated_values"])
    assert np.abs(found.states[:, 0].numpy() - oracle[1]["embedding"]).max() <= EMBEDDING


def test_embedding_is_the_original_s(oracle, converted, prompts):
    """The state at the coarse type, which the original chose among all words."""
    found = converted.embed(prompts).numpy()
    assert np.abs(found - oracle[1]["embedding"]).max() <= EMBEDDING
    coarse = [converted.vocab.tokens[word] for word in oracle[1]["generated"][:, 0]]
    assert coarse == oracle[2]["coarse"]


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_equal_to_the_network_written_plainly(tmp_path, rng, bias):
    shape = Shape(bias=bias)
    weights = random_weights(shape)
    model = load_published(write_published(tmp_path / "ckpt.pt", shape, weights))
    plain, prompts = Plain(weights, shape), random_prompts(rng, [40, 7, 0, 23])
    states = model(batch_of(prompts))
    words, values = model.word_logits(states.cell), model.value_logits(states.cell)
    for cell, prompt in enumerate(prompts):
        own = states.tokens[states.offsets[cell] : states.offsets[cell + 1]]
        logits, bins = plain.heads(*prompt)
        for ours, theirs in (
            (own, plain.states(*prompt)),
            (words[cell], logits),
            (values[cell], bins),
        ):
            torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=LOGITS)


@pytest.mark.parametrize("again", [False, True])
def test_generation_is_the_plain_one_s(tmp_path, rng, again):
    shape = Shape()
    weights = random_weights(shape)
    model = load_published(write_published(tmp_path / "ckpt.pt", shape, weights))
    plain, prompts = Plain(weights, shape), random_prompts(rng, [40, 7, 0, 23])
    how = Decoding(max_words=12, top_k=1, repeats="last" if again else "never")
    found = complete(model, batch_of(prompts), how)
    for cell, prompt in enumerate(prompts):
        own = slice(found.offsets[cell], found.offsets[cell + 1])
        words, bins = plain.say(*prompt, 12, GENES, again=again)
        assert found.words[own].tolist() == words
        assert found.values[own].tolist() == bins


def test_published_size():
    """As the authors print it: 368.80M, which is without biases."""
    with torch.device("meta"):
        sizes = ScmulanSizes()
        model = ScmulanModel(ScmulanConfig.of(sizes, n_tokens=2222, vocab_hash="", max_genes=1550))
    assert sum(weight.numel() for weight in model.parameters()) == 368_800_320
