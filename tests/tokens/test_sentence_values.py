"""Prompts of log-normalised values are the original's; prompts by hand say what is asked."""

import json

import numpy as np
import pytest

from scfm.errors import ConfigError, CountsError
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.sentence_values import prompt_of, prompts_from_values
from scfm.tokens.vocab import GeneVocab


def csr(dense):
    cell, gene = np.nonzero(dense)
    return np.searchsorted(cell, np.arange(len(dense) + 1)), gene, dense[cell, gene]


def test_prompts_are_the_original_s(shared_oracles):
    if shared_oracles is None:
        pytest.skip("the original's outputs are not beside this checkout")
    expected = json.loads((shared_oracles / "scmulan" / "expected.json").read_text())
    with np.load(shared_oracles / "scmulan" / "expected.npz") as file:
        cells = prompts_from_values(*csr(file["lognorm"]), GeneVocab.scmulan())
    for cell, (ids, bins) in enumerate(
        zip(expected["prompt_ids"], expected["prompt_bins"], strict=True)
    ):
        own = slice(cells.offsets[cell], cells.offsets[cell + 1])
        np.testing.assert_array_equal(cells.gene_ids[own], ids)
        np.testing.assert_array_equal(cells.values[own], bins)
    assert cells.n_cells == len(expected["prompt_ids"]) == 4


def test_the_published_list_is_the_oracle_s(shared_oracles):
    if shared_oracles is None:
        pytest.skip("the original's outputs are not beside this checkout")
    listed = json.loads((shared_oracles / "scmulan" / "vocab.json").read_text())
    assert list(GeneVocab.scmulan().tokens) == listed["tokens"]


def test_a_prompt_is_genes_reversed_and_the_task():
    # worked number I: the values' bins, last gene first, then <PCT> with value 0
    values = np.array([0.5, 1.2, 3.0, 2.4, 0.01])
    vocab, indptr, genes = GeneVocab.scmulan(), np.array([0, 5, 5]), np.array([3, 5, 8, 9, 1000])
    cells = prompts_from_values(indptr, genes, values, vocab)
    np.testing.assert_array_equal(cells.offsets, [0, 6, 7])
    np.testing.assert_array_equal(cells.gene_ids, [1001, 10, 9, 6, 4, 2206, 2206])
    np.testing.assert_array_equal(cells.values, [1, 8, 10, 4, 2, 0, 0])
    assert not cells.is_target.any()
    ascending = SentenceConfig(prompt_order="sorted")
    cells = prompts_from_values(indptr, genes, values, vocab, ascending, "complete")
    np.testing.assert_array_equal(cells.gene_ids, [4, 6, 9, 10, 1001, 2208, 2208])


@pytest.mark.parametrize(
    ("value", "message"), [(-1.0, "not above 0"), (np.nan, "no number"), (17.0, "raw counts")]
)
def test_values_that_are_no_logarithms_of_shares(value, message):
    with pytest.raises(CountsError, match=message):
        prompts_from_values(np.array([0, 1]), np.array([0]), np.array([value]), GeneVocab.scmulan())


def test_a_prompt_for_generation():
    vocab = GeneVocab.scmulan()
    said = {"cell_type": "b cell", "sex": "F", "organ": "Heart", "age": "45 year"}
    prompt = prompt_of(said, {"CD34": 8, "A2M": 0}, vocab, n_cells=2)
    tokens = [vocab.tokens[word] for word in prompt.gene_ids]
    expected = ["Heart", "B cell", "45 year", "F", "<SPToken1>", "CD34", "A2M"]
    assert tokens == [*expected, *expected]
    np.testing.assert_array_equal(prompt.values[:7], [0, 0, 0, 0, 0, 8, 0])
    np.testing.assert_array_equal(prompt.offsets, [0, 7, 14])
    order = prompt_of(said, {}, vocab, columns=("sex", "age", "cell_type", "organ"))
    assert [vocab.tokens[word] for word in order.gene_ids][:2] == ["F", "45 year"]
    complete = prompt_of({"organ": "Heart"}, {"CD34": 8}, vocab, "complete")
    assert [vocab.tokens[word] for word in complete.gene_ids] == ["CD34", "Heart", "<SPToken2>"]


@pytest.mark.parametrize(
    ("words", "genes", "message"),
    [
        ({"organ": "Hart"}, {}, "the nearest are 'Heart'"),
        ({"organ": ["Heart", "Lung"]}, {}, "organ is 'Lung' and 'Heart'. Name one"),
        ({}, {"CD34": 11}, "the bin 11; wanted a whole number from 0"),
        ({}, {"CD34": -1}, "the bin -1"),
        ({}, {"CD34": 1, "ENSG00000174059": 2}, "CD34 twice"),
        ({}, {"CD3": 1}, "'CD3' is"),
        ({"tissue": "Heart"}, {}, "no words of 'tissue'"),
    ],
)
def test_prompts_that_cannot_be(words, genes, message):
    with pytest.raises(ConfigError, match=message):
        prompt_of(words, genes, GeneVocab.scmulan())


def test_a_word_said_twice_is_said_once():
    vocab = GeneVocab(
        *(("A",), ("",), ("<E>",), ("B cell", "<SPToken1>")),
        kinds=("coarse,fine", "special"),
    )
    prompt = prompt_of({"fine": "B cell", "coarse": ["B cell", "b cell"]}, {}, vocab)
    np.testing.assert_array_equal(prompt.gene_ids, [2, 3])
