"""Sentences of cells: what is said, in which order, and that a cell's sentence is its own."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats

from scfm.errors import ConfigError, LabelError, ScfmWarning
from scfm.tokens.rng import cell_keys
from scfm.tokens.sentence import SentenceTokenizer
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.target_depth import TargetDepth
from scfm.tokens.vocab import GeneVocab

N_GENES = 120
ORGANS, COARSE, FINE = ("Blood", "Heart"), ("B cell", "T cell"), ("CD4 T", "CD8 T", "NK")
COLUMNS = ("organ", "coarse", "fine")
CONFIG = SentenceConfig(columns=COLUMNS, types=("coarse", "fine"), max_genes=500)


@dataclass(frozen=True)
class Cells:
    """Obs columns of some cells, as a store hands them out."""

    columns: dict[str, list[str | None]]
    name: str = "toy.h5ad"

    def column(self, name: str) -> tuple[np.ndarray, list[str]]:
        if name not in self.columns:
            raise LabelError(f"{self.name} has no obs column '{name}'.")
        texts = sorted({text for text in self.columns[name] if text is not None})
        codes = [-1 if text is None else texts.index(text) for text in self.columns[name]]
        return np.array(codes, dtype=np.int32), texts


@pytest.fixture(scope="module")
def vocab() -> GeneVocab:
    """<E> 0, genes 1 to 120, words from 121 on; "B cell" is coarse and fine."""
    words = [*ORGANS, *COARSE, *FINE, "<PCT>", "<SPToken1>", "<SPToken2>"]
    kinds = ["organ", "organ", "coarse,fine", "coarse", *["fine"] * 3, *["special"] * 3]
    names = tuple(f"GENE{i:03}" for i in range(N_GENES))
    terms = ["", "", "CL:0000236", "CL:0000084", *[""] * 6]
    return GeneVocab(names, ("",) * N_GENES, ("<E>",), tuple(words), tuple(kinds), tuple(terms))


@pytest.fixture
def labels() -> Cells:
    """40 cells: B cells of one word, T cells of two; organs missing here and there."""
    return Cells(
        {
            "organ": [[*ORGANS, None, "unknown"][i % 4] for i in range(40)],
            "coarse": [COARSE[i % 2] for i in range(40)],
            "fine": ["B cell" if i % 2 == 0 else FINE[i % 3] for i in range(40)],
        }
    )


@pytest.fixture
def shuffled_genes(rng) -> np.ndarray:
    """The gene of each of 300 columns: two columns for some genes, none for most columns."""
    genes = np.full(300, -1)
    genes[rng.choice(300, 130, replace=False)] = [*range(N_GENES), *range(10)]
    return genes


def said(batch, cell: int):
    own = slice(batch.offsets[cell], batch.offsets[cell + 1])
    return batch.gene_ids[own], batch.values[own], batch.is_target[own], batch.target_values[own]


def reference_bins(cells: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(cell, gene) bins by numpy alone, 0 where not expressed."""
    counts = np.stack([cells[:, columns == gene].sum(1) for gene in range(N_GENES)], axis=1)
    logs = np.log1p(1e4 * counts / cells.sum(1, keepdims=True))
    edges = [np.linspace(0, row.max(), 11) for row in logs]
    return np.stack([np.digitize(r, e, right=True) for r, e in zip(logs, edges, strict=True)])


@pytest.fixture
def tokenizer(vocab, columns, shuffled_genes, labels) -> SentenceTokenizer:
    return SentenceTokenizer(vocab, columns(shuffled_genes), CONFIG, labels)


def test_shown_is_the_genes_from_last_to_first_and_the_task(
    tokenizer, cells, rows_of, columns, shuffled_genes, vocab
):
    batch, bins = tokenizer.shown(rows_of(cells)), reference_bins(cells, shuffled_genes)
    for cell in range(40):
        ids, values, is_target, _ = said(batch, cell)
        genes = np.flatnonzero(bins[cell])[::-1]
        np.testing.assert_array_equal(ids, [*(1 + genes), vocab.id_of("<PCT>")])
        np.testing.assert_array_equal(values, [*bins[cell, genes], 0])
        assert not is_target.any()
    assert bins.max(1).min() == 10
    np.testing.assert_array_equal(batch.library_size, cells.sum(1))
    np.testing.assert_allclose(batch.source_depth, np.log10(cells.sum(1)), rtol=1e-6)
    assert batch.is_hidden is None
    config = replace(CONFIG, prompt_order="sorted")
    ascending = SentenceTokenizer(vocab, columns(shuffled_genes), config)
    ids = said(ascending.shown(rows_of(cells)), 0)[0]
    assert (np.diff(ids[:-1]) > 0).all()


def check_sentence(words, ids, values, is_target, target_values, bins, cell_words):
    """One training example against what its task allows; returns the task's word."""
    n_prompt = int((~is_target).sum())
    assert not is_target[:n_prompt].any()  # the prompt comes first
    assert is_target[n_prompt:].all()
    task, end = ids[n_prompt - 1], ids[-1]
    assert end == words.end_id
    assert len(set(ids)) == len(ids)  # nothing is said twice
    prompt, target = ids[: n_prompt - 1], ids[n_prompt:-1]
    genes = np.where(words.is_gene(ids), ids - 1, 0)
    np.testing.assert_array_equal(values, np.where(words.is_gene(ids), bins[genes], 0))
    np.testing.assert_array_equal(target_values, np.where(is_target, values, 0))
    is_gene = words.is_gene(prompt)
    if task == words.annotate_id:
        assert is_gene.all()
        assert list(target) == list(dict.fromkeys(cell_words[1:]))
    elif task == words.generate_id:
        assert set(prompt) <= set(cell_words)
        assert words.is_gene(target).all()
    else:
        assert task == words.complete_id
        told = prompt[~is_gene]
        assert not is_gene[is_gene.sum() :].any()  # genes before words
        assert len(target)
        own = list(dict.fromkeys(word for word in cell_words if word >= 0))
        assert [word for word in own if word not in told] == list(target)
        assert [word for word in own if word in told] == list(told)
    return int(task)


def test_training_examples_are_the_three_sentences(
    tokenizer, cells, rows_of, shuffled_genes, labels
):
    words, bins = tokenizer.words, reference_bins(cells, shuffled_genes)
    cell_words = [
        [
            -1 if text in (None, "unknown") else words.id_of(column, text)
            for column, text in zip(COLUMNS, texts, strict=True)
        ]
        for texts in zip(*(labels.columns[column] for column in COLUMNS), strict=True)
    ]
    tasks, n_genes = Counter(), (bins > 0).sum(1)
    for epoch in range(20):
        batch = tokenizer.training(rows_of(cells), cell_keys(0, epoch, np.arange(40)))
        assert batch.is_hidden is not None
        assert not batch.is_hidden.any()
        for cell in range(40):
            ids, *others = said(batch, cell)
            tasks[check_sentence(words, ids, *others, bins[cell], cell_words[cell])] += 1
            assert words.is_gene(ids).sum() == n_genes[cell]
    shares = np.array([tasks[words.task_id(task)] for task in ("annotate", "generate", "complete")])
    assert scipy.stats.chisquare(shares, 800 * np.array([0.4, 0.4, 0.2])).pvalue > 1e-3


def test_a_cell_s_sentence_hangs_on_its_key_alone(
    tokenizer, vocab, cells, rows_of, columns, shuffled_genes, labels, rng
):
    keys = cell_keys(7, 3, np.arange(40))
    expected = tokenizer.training(rows_of(cells), keys)
    order, moved = rng.permutation(40), rng.permutation(300)
    other = SentenceTokenizer(vocab, columns(shuffled_genes[moved]), CONFIG, labels)
    batch = other.training(rows_of(cells[order][:, moved], cell_index=order), keys[order])
    shown, shown_moved = (
        tokenizer.shown(rows_of(cells)),
        other.shown(rows_of(cells[order][:, moved])),
    )
    for place, cell in enumerate(order):
        for found, wanted in zip(said(batch, place), said(expected, cell), strict=True):
            np.testing.assert_array_equal(found, wanted)
        for found, wanted in zip(said(shown_moved, place), said(shown, cell), strict=True):
            np.testing.assert_array_equal(found, wanted)
    again = tokenizer.training(rows_of(cells), cell_keys(7, 4, np.arange(40)))
    assert any(list(said(again, i)[0]) != list(said(expected, i)[0]) for i in range(40))


def test_gene_orders_and_uniform_subsets(vocab, columns, labels, rows_of):
    counts = np.arange(1, 13)[None].repeat(40, axis=0)  # one cell of twelve genes, 40 times
    config = replace(CONFIG, max_genes=5, generate_share=0, annotate_share=1, complete_share=0)
    seen = {}
    for order in ("shuffled", "sorted", "reversed"):
        own = replace(config, gene_order=order)
        tokenizer = SentenceTokenizer(vocab, columns(np.arange(12)), own, labels)
        genes = []
        for epoch in range(20):
            batch = tokenizer.training(rows_of(counts), cell_keys(1, epoch, np.arange(40)))
            genes += [said(batch, cell)[0][:5] for cell in range(40)]
        seen[order] = np.array(genes)
    assert (np.diff(seen["sorted"]) > 0).all()
    assert (np.diff(seen["reversed"]) < 0).all()
    for genes in seen.values():  # every gene as often as any other
        assert scipy.stats.chisquare(np.bincount(genes.ravel())[1:]).pvalue > 1e-3
    for place in seen["shuffled"].T:  # and at every place
        assert scipy.stats.chisquare(np.bincount(place, minlength=13)[1:]).pvalue > 1e-3


def test_subsets_of_words_are_all_as_likely(vocab, columns, rows_of):
    cells = Cells({"organ": ["Blood"] * 200, "coarse": ["T cell"] * 200, "fine": ["NK"] * 200})
    config = replace(CONFIG, annotate_share=0, generate_share=0.5, complete_share=0.5)
    tokenizer = SentenceTokenizer(vocab, columns(np.arange(3)), config, cells)
    rows, told = rows_of(np.ones((200, 3), int)), {"generate": Counter(), "complete": Counter()}
    for epoch in range(6):
        batch = tokenizer.training(rows, cell_keys(2, epoch, np.arange(200)))
        for cell in range(200):
            ids, _, is_target, _ = said(batch, cell)
            prompt = ids[~is_target]
            task = "generate" if prompt[-1] == tokenizer.words.generate_id else "complete"
            told[task][tuple(prompt[:-1][~tokenizer.words.is_gene(prompt[:-1])])] += 1
    assert (len(told["generate"]), len(told["complete"])) == (8, 7)  # all, and all but the whole
    for counts in told.values():
        assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_cells_that_lack_words_become_what_they_can(vocab, columns, rows_of):
    cells = Cells(
        {
            "organ": ["Blood", None, None],
            "coarse": [None, None, "T cell"],
            "fine": ["NA", "Unclassified", "unknown"],
        }
    )
    config = replace(CONFIG, annotate_share=1, generate_share=0, complete_share=0)
    tokenizer = SentenceTokenizer(vocab, columns(np.arange(3)), config, cells)
    batch = tokenizer.training(rows_of(np.ones((3, 3), int)), cell_keys(0, 0, np.arange(3)))
    words = tokenizer.words
    first, second, third = (said(batch, cell)[0] for cell in range(3))
    assert list(first[3:]) == [words.complete_id, words.id_of("organ", "Blood"), words.end_id]
    assert second[0] == words.generate_id
    assert words.is_gene(second[1:-1]).all()
    assert third[-2] == words.id_of("coarse", "T cell")


def test_an_empty_cell_is_its_task_alone(tokenizer, rows_of):
    empty = rows_of(np.zeros((2, 300), int))
    shown = tokenizer.shown(empty)
    np.testing.assert_array_equal(shown.gene_ids, [tokenizer.words.annotate_id] * 2)
    np.testing.assert_array_equal(shown.source_depth, [0, 0])
    assert tokenizer.training(empty, cell_keys(0, 0, np.arange(2))).n_cells == 2


def test_bounds_hold(tokenizer, cells, rows_of):
    rows = rows_of(cells)
    batch = tokenizer.training(rows, cell_keys(0, 1, np.arange(40)))
    assert (np.diff(batch.offsets) <= tokenizer.most_tokens(np.diff(rows.indptr))).all()


def test_prompts_of_real_cells(tokenizer, cells, rows_of):
    rows, words = rows_of(cells), tokenizer.words
    told = tokenizer.prompts(rows, "complete", {"coarse": "T cell", "organ": "heart"})
    expected = [words.id_of("organ", "Heart"), words.id_of("coarse", "T cell"), words.complete_id]
    for cell in range(40):
        assert list(said(told, cell)[0][-3:]) == expected
        assert words.is_gene(said(told, cell)[0][:-3]).all()
    by_obs = tokenizer.prompts(rows, "generate", ["fine", "organ"])
    organ, fine = words.id_of("organ", "Blood"), words.id_of("fine", "B cell")
    assert list(said(by_obs, 0)[0]) == [organ, fine, words.generate_id]
    assert list(said(by_obs, 2)[0]) == [fine, words.generate_id]  # its organ is not known
    with pytest.raises(ConfigError, match="with genes alone; words were given: organ"):
        tokenizer.prompts(rows, "annotate", {"organ": "Heart"})
    with pytest.raises(ConfigError, match="known are annotate, generate, complete"):
        tokenizer.prompts(rows, "translate")
    with pytest.raises(LabelError, match="no obs column 'donor'"):
        tokenizer.prompts(rows, "generate", ["donor"])


def test_values_that_are_no_words_are_told(vocab, columns, rows_of):
    cells = Cells({"organ": ["Blood"] * 3, "coarse": ["B cell"] * 3, "fine": ["NK", "NKT", "pDC"]})
    tokenizer = SentenceTokenizer(vocab, columns(np.arange(3)), CONFIG, cells)
    with pytest.warns(ScfmWarning, match=r"2 cells of toy.h5ad have values of fine .*'NKT', 'pDC'"):
        tokenizer.training(rows_of(np.ones((3, 3), int)), cell_keys(0, 0, np.arange(3)))


def test_ontology_ids_name_words_whatever_the_text(vocab, columns, rows_of):
    cells = Cells(
        {
            "organ": ["Blood"] * 2,
            "coarse": ["lymphocyte of B lineage", "T cell"],
            "fine": ["NK", "NK"],
            "term": ["CL:0000236", "unknown"],
        }
    )
    config = replace(CONFIG, ontology={"coarse": "term", "fine": "not there"})
    tokenizer = SentenceTokenizer(vocab, columns(np.arange(3)), config, cells)
    coarse = tokenizer._labels[:, 1]
    assert list(coarse) == [vocab.id_of("B cell"), vocab.id_of("T cell")]


def test_no_depth_can_be_asked_for(tokenizer, cells, rows_of):
    with pytest.raises(ConfigError, match="no read depth"):
        tokenizer.shown(rows_of(cells), 4.0)
    with pytest.raises(ConfigError, match="no read depth"):
        tokenizer.asked_for(tokenizer.shown(rows_of(cells)), TargetDepth("t", 4.0))
    shown = tokenizer.shown(rows_of(cells))
    assert tokenizer.asked_for(shown, TargetDepth()) is shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": ("a", "a")}, "names a column twice"),
        ({"columns": ("a,b",)}, "'a,b' cannot make words"),
        ({"types": ("a",)}, "tokens.types names a, which is not among tokens.columns"),
        ({"columns": ("a",), "ontology": {"b": "c"}}, "tokens.ontology names b"),
        ({"n_bins": 0}, "tokens.n_bins must be at least 1"),
        ({"max_genes": 0}, "tokens.max_genes must be at least 1"),
        ({"annotate_share": 0.5}, "together 1, got 0.5, 0.4, 0.2"),
        ({"columns": tuple(f"c{i}" for i in range(31))}, "may name 30 columns, got 31"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SentenceConfig(**settings)
