"""Genes taken out of prompts and put in: against lists edited one cell at a time."""

import numpy as np
import pytest

from scfm.batch import CellBatch
from scfm.tokens.prompt_edits import with_genes, with_words, without_genes
from scfm.tokens.vocab import GeneVocab

VOCAB = GeneVocab(
    symbols=tuple(f"G{i}" for i in range(8)),
    ensembl_ids=("",) * 8,
    specials_before=("<E>",),
    specials_after=("T cell", "<PCT>"),
)
TASK = VOCAB.id_of("<PCT>")


def prompts_of(sentences: list[dict[int, int]], descending: bool) -> CellBatch:
    """Prompts of {gene id: bin}, in the order of ids, each ending in the task word."""
    cells = [[*sorted(s.items(), reverse=descending), (TASK, 0)] for s in sentences]
    n_cells, n_tokens = len(cells), sum(map(len, cells))
    return CellBatch(
        gene_ids=np.array([g for c in cells for g, _ in c], dtype=np.int64),
        values=np.array([v for c in cells for _, v in c], dtype=np.float32),
        offsets=np.cumsum([0] + [len(c) for c in cells]).astype(np.int32),
        is_target=np.zeros(n_tokens, bool),
        target_values=np.zeros(n_tokens, np.float32),
        library_size=np.arange(n_cells, dtype=np.float32),
        source_depth=np.ones(n_cells, np.float32),
        target_depth=np.ones(n_cells, np.float32),
        cell_index=np.arange(10, 10 + n_cells),
    )


def assert_same(found: CellBatch, expected: CellBatch) -> None:
    for name, array in vars(expected).items():
        if name not in ("labels", "is_hidden"):
            theirs = getattr(found, name)
            np.testing.assert_array_equal(theirs, array, err_msg=name)
            assert theirs.dtype == array.dtype, name


def edited(sentences, is_changed, descending):
    """The changed sentences, as prompts, under the numbers of their cells."""
    everything = prompts_of(sentences, descending)
    kept = np.flatnonzero(is_changed)
    part = prompts_of([sentences[i] for i in kept], descending)
    per_cell = ("library_size", "source_depth", "target_depth", "cell_index")
    arrays = {name: getattr(everything, name)[kept] for name in per_cell}
    return CellBatch(**{**vars(part), **arrays})


@pytest.fixture
def sentences(rng):
    """Cells of no to eight genes."""
    return [
        {int(g): int(rng.integers(1, 11)) for g in rng.choice(8, rng.integers(0, 9), False) + 1}
        for _ in range(30)
    ]


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("genes", [[3], [1, 8], [5, 2, 6]])
def test_taken_out(sentences, genes, descending):
    found, is_changed = without_genes(prompts_of(sentences, descending), genes)
    assert is_changed.tolist() == [any(g in s for g in genes) for s in sentences]
    without = [{g: v for g, v in s.items() if g not in genes} for s in sentences]
    assert_same(found, edited(without, is_changed, descending))


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("genes", [[3], [1, 8], [5, 2, 6]])
def test_put_in(sentences, genes, descending):
    prompts = prompts_of(sentences, descending)
    found, is_changed = with_genes(prompts, genes, 10, VOCAB, descending=descending)
    assert is_changed.tolist() == [any(s.get(g) != 10 for g in genes) for s in sentences]
    with_them = [{**s, **dict.fromkeys(genes, 10)} for s in sentences]
    assert_same(found, edited(with_them, is_changed, descending))


def test_out_and_in_again_is_where_it_was(sentences):
    """Every cell that had the gene at its top bin is back at its first prompt."""
    sentences = [{**s, 4: 10} for s in sentences]
    prompts = prompts_of(sentences, True)
    out, _ = without_genes(prompts, [4])
    back, _ = with_genes(out, [4], 10, VOCAB, descending=True)
    assert_same(back, prompts)


def test_one_more_word(sentences):
    prompts = prompts_of(sentences, True)
    words = np.full(prompts.n_cells, VOCAB.id_of("T cell"))
    found = with_words(prompts, words, np.arange(prompts.n_cells))
    for cell in range(prompts.n_cells):
        was = slice(*prompts.offsets[cell : cell + 2])
        now = slice(*found.offsets[cell : cell + 2])
        assert found.gene_ids[now].tolist() == [*prompts.gene_ids[was], VOCAB.id_of("T cell")]
        assert found.values[now].tolist() == [*prompts.values[was], cell]
    assert found.offsets.dtype == np.int32
    assert len(found.is_target) == found.n_tokens == len(found.target_values)


def test_nothing_to_change_leaves_no_cells(sentences):
    found, is_changed = without_genes(prompts_of([{1: 3}, {}], True), [2])
    assert not is_changed.any()
    assert (found.n_cells, found.n_tokens) == (0, 0)
