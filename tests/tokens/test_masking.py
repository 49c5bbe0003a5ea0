"""MaskedTokenizer: against a slow reference gene by gene, published moments, invariances."""

from dataclasses import replace

import numpy as np
import pytest

from scfm.batch import CellBatch
from scfm.tokens.depth import thin
from scfm.tokens.inputs import tokenizer_for
from scfm.tokens.masking import MaskConfig, MaskedTokenizer
from scfm.tokens.packed import CellTokenizer
from scfm.tokens.pool import concatenate, renumber
from scfm.tokens.rng import (
    CORRUPTION,
    RANDOM_VALUES,
    TARGETS,
    ZEROS,
    below,
    cell_keys,
    open_stream,
    uniform,
    word,
)
from scfm.tokens.tables import DatasetAlignment
from scfm.tokens.vocab import GeneVocab

N_GENES = 280  # of the vocabulary; the cells have 300 columns
T, S = N_GENES, N_GENES + 1


def vocab_of(n_genes: int) -> GeneVocab:
    names = tuple(f"GENE{i}" for i in range(n_genes))
    return GeneVocab(names, ("",) * n_genes, (), ("[T]", "[S]", "[PAD]"))


@pytest.fixture
def alignment(columns, rng):
    """300 columns: 20 outside the vocabulary, 10 genes on two columns, 10 genes not measured."""
    column_to_gene = rng.permutation(300) % 290
    return columns(np.where(column_to_gene < 270, column_to_gene, -1))


@pytest.fixture
def make(alignment):
    def build(**settings) -> MaskedTokenizer:
        return MaskedTokenizer(vocab_of(N_GENES), alignment, MaskConfig(**settings))

    return build


def by_gene(cells, alignment) -> np.ndarray:
    sums = np.zeros((len(cells), N_GENES), cells.dtype)
    for column, gene in enumerate(alignment.column_to_gene):
        if gene >= 0:
            sums[:, gene] += cells[:, column]
    return sums


def values_of(counts) -> np.ndarray:
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    return np.log1p(1e4 * counts / totals).astype(np.float32)


def dense(batch: CellBatch, array, n_genes: int = N_GENES, fill=0) -> np.ndarray:
    """(cells x genes) of a token array; ``fill`` where a cell has no such token."""
    out = np.full((batch.n_cells, n_genes), fill, array.dtype)
    cell = np.repeat(np.arange(batch.n_cells), np.diff(batch.offsets))
    is_gene = batch.gene_ids < n_genes
    out[cell[is_gene], batch.gene_ids[is_gene]] = array[is_gene]
    return out


def parts(batch: CellBatch, n_genes: int = N_GENES) -> dict[str, np.ndarray]:
    """Dense arrays of a training batch, and which genes have a token."""
    names = ("values", "is_target", "target_values", "is_hidden")
    found = {name: dense(batch, getattr(batch, name), n_genes) for name in names}
    return found | {"has_token": dense(batch, batch.gene_ids, n_genes, -1) >= 0}


def check_form(batch: CellBatch) -> None:
    """[T], [S], genes ascending; depths are shown and never asked for."""
    assert batch.is_hidden is None or batch.is_hidden.dtype == bool
    for i in range(batch.n_cells):
        own = slice(batch.offsets[i], batch.offsets[i + 1])
        assert batch.gene_ids[own][:2].tolist() == [T, S]
        depths = [batch.target_depth[i], batch.source_depth[i]]
        np.testing.assert_array_equal(batch.values[own][:2], depths)
        assert (np.diff(batch.gene_ids[own][2:]) > 0).all()
        assert not batch.hidden[own][:2].any()
        assert not batch.is_target[own][:2].any()
    assert (batch.target_values[~batch.is_target] == 0).all()
    assert np.isfinite(batch.values).all()


def assert_same(one: CellBatch, other: CellBatch) -> None:
    for name, array in vars(one).items():
        if name != "labels":
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


def test_worked_numbers_of_values_and_depths(columns, rows_of):
    # item A of the specification, the columns in another order and one outside the vocabulary
    tokenizer = MaskedTokenizer(vocab_of(5), columns([4, 1, 2, -1]))
    batch = tokenizer.shown(rows_of(np.array([[6, 3, 1, 90]])))
    assert batch.gene_ids.tolist() == [5, 6, 1, 2, 4]
    expected = [1, 1, 8.006701, 6.908755, 8.699681]
    np.testing.assert_allclose(batch.values, expected, rtol=1e-6)
    assert batch.library_size.tolist() == [10]  # of the vocabulary's genes, as released
    assert batch.is_hidden is None
    assert not batch.hidden.any()
    deeper = tokenizer.shown(rows_of(np.array([[6, 3, 1, 90]])), np.array([4.0], np.float32))
    np.testing.assert_allclose(deeper.values, [4, *expected[1:]], rtol=1e-6)


def test_shown_is_the_dense_reference(make, cells, alignment, rows_of):
    batch, raw = make().shown(rows_of(cells)), by_gene(cells, alignment)
    check_form(batch)
    values = dense(batch, batch.values)
    np.testing.assert_array_equal(dense(batch, batch.gene_ids, fill=-1) >= 0, raw > 0)
    np.testing.assert_array_max_ulp(values, values_of(raw), maxulp=1)
    np.testing.assert_array_equal(batch.library_size, raw.sum(1))
    np.testing.assert_allclose(batch.source_depth, np.log10(raw.sum(1)), rtol=1e-6)


def draws_of_genes(key, purpose: int) -> list[int]:
    """Gene g's uniform number: bit g % 64 of 64 words, the first its highest digit."""
    stream = tuple(np.uint64(part) for part in open_stream(key, purpose))
    drawn = []
    for gene in range(N_GENES):
        first, bit = gene // 64 * 64, gene % 64
        digits = [int(word(stream, first + digit)) >> bit & 1 for digit in range(64)]
        drawn.append(int("".join(map(str, digits)), 2))
    return drawn


def example_of(raw, shown, measured, key, config: MaskConfig) -> dict[str, list]:
    """One cell's training example, gene by gene, as the docstrings tell it."""
    truth, seen = values_of(raw[None])[0], values_of(shown[None])[0]
    of_expressed, of_zeros = draws_of_genes(key, TARGETS), draws_of_genes(key, ZEROS)
    corruption, random_values = (
        tuple(np.uint64(part) for part in open_stream(key, purpose))
        for purpose in (CORRUPTION, RANDOM_VALUES)
    )
    out = {name: [] for name in ("genes", "values", "is_target", "target_values", "is_hidden")}
    for gene in range(N_GENES):
        expressed = (raw if config.expressed_by == "raw" else shown)[gene] > 0
        may_be_zero = config.zeros_from == "all" or gene in measured
        if expressed:
            is_target = of_expressed[gene] < int(config.mask_expressed * 2.0**64)
        else:
            is_target = may_be_zero and of_zeros[gene] < int(config.mask_zero * 2.0**64)
        if not is_target and shown[gene] == 0:
            continue
        value, hidden = seen[gene], False
        if is_target:
            u = uniform(corruption, gene)
            others = [seen[g] for g in range(N_GENES) if shown[g] > 0 and g != gene]
            if u < config.replace_share:
                value, hidden = 0, True
            elif u < config.replace_share + config.random_share:
                if config.random_value == "cell":
                    value = others[below(random_values, gene * 64, len(others))[0]]
                else:
                    value = np.float32((1 - uniform(random_values, gene * 64)) * seen.max())
                hidden = not config.corrupted_in_encoder
            else:
                hidden = not config.corrupted_in_encoder and shown[gene] > 0
        out["genes"].append(gene)
        out["values"].append(value)
        out["is_target"].append(is_target)
        out["target_values"].append(truth[gene] if is_target else 0)
        out["is_hidden"].append(hidden)
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"expressed_by": "raw", "zeros_from": "all", "mask_zero": 0.2},
        {"random_value": "uniform", "corrupted_in_encoder": False, "mask_expressed": 0.6},
        {"replace_share": 0.2, "random_share": 0.5, "mask_zero": 0.4},
    ],
)
def test_training_is_the_slow_reference(make, cells, alignment, rows_of, settings):
    cells = cells[:12]
    rows, keys = rows_of(cells), cell_keys(3, 1, np.arange(len(cells)))
    tokenizer = make(downsample_probability=0.7, **settings)
    batch = tokenizer.training(rows, keys)
    check_form(batch)
    raw = by_gene(cells, alignment)
    # thinning, which has an oracle of its own, walks along the expressed genes
    cell, gene = np.nonzero(raw)
    indptr = np.concatenate([[0], np.cumsum((raw > 0).sum(1))])
    shown = np.zeros_like(raw)
    shown[cell, gene], rates = thin(indptr, raw[cell, gene], keys, probability=0.7)
    assert (rates < 1).any()
    assert ((raw > 0) & (shown == 0)).any()
    measured = set(alignment.measured.tolist())
    for i in range(len(cells)):
        own = slice(batch.offsets[i] + 2, batch.offsets[i + 1])
        expected = example_of(raw[i], shown[i], measured, keys[i], tokenizer.config)
        assert batch.gene_ids[own].tolist() == expected["genes"]
        assert batch.is_target[own].tolist() == expected["is_target"]
        assert batch.is_hidden[own].tolist() == expected["is_hidden"]
        for name in ("values", "target_values"):
            theirs = np.array(expected[name], np.float32)
            np.testing.assert_array_max_ulp(getattr(batch, name)[own], theirs, maxulp=1)
    np.testing.assert_allclose(batch.source_depth, np.log10(shown.sum(1)), rtol=1e-6)
    np.testing.assert_allclose(batch.target_depth, np.log10(raw.sum(1)), rtol=1e-6)
    np.testing.assert_array_equal(batch.library_size, raw.sum(1))


@pytest.fixture(scope="module")
def published() -> CellBatch:
    """Item F: 200 cells of 2,000 expressed genes among 19,264, whole."""
    from tests.tokens.conftest import ColumnGenes, to_rows

    counts = np.zeros((200, 19_264), np.int32)
    counts[:, :: 19_264 // 2000][:, :2000] = 1 + np.arange(2000) % 7
    tokenizer = MaskedTokenizer(
        vocab_of(19_264), ColumnGenes.of(np.arange(19_264)), MaskConfig(downsample_probability=0.0)
    )
    return tokenizer.training(to_rows(counts), cell_keys(0, 0, np.arange(200)))


def test_worked_numbers_of_masking(published):
    found = parts(published, 19_264)
    is_expressed = found["has_token"] & ~(found["is_target"] & (found["target_values"] == 0))
    assert (is_expressed.sum(1) == 2000).all()
    of_expressed = (found["is_target"] & is_expressed).sum(1)
    of_zeros = (found["is_target"] & ~is_expressed).sum(1)

    def assert_binomial(drawn, n, p):
        mean, spread = n * p, np.sqrt(n * p * (1 - p))
        assert drawn.mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(len(drawn)))
        assert drawn.std() == pytest.approx(spread, rel=0.25)

    assert_binomial(of_expressed, 2000, 0.3)  # 600
    assert_binomial(of_zeros, 17_264, 0.03)  # 517.9
    wrong = (
        (found["values"] > 0) & ~found["is_hidden"] & (found["values"] != found["target_values"])
    )
    is_hidden = found["is_hidden"] & found["is_target"]
    n = {"all": found["is_target"].sum(), "hidden": is_hidden.sum()}
    assert n["all"] / 200 == pytest.approx(1117.9, abs=8)
    assert n["hidden"] / 200 == pytest.approx(894.3, abs=8)
    kept = found["is_target"] & ~is_hidden & (found["values"] == found["target_values"])
    # a wrong value may by chance be the right one: there are but seven of them
    alike = 1 / 7 * 600 / 1117.9
    assert (wrong & found["is_target"]).sum() / 200 == pytest.approx(111.8 * (1 - alike), abs=4)
    assert kept.sum() / 200 == pytest.approx(111.8 * (1 + alike), abs=4)
    assert (found["values"][is_hidden] == 0).all()
    assert not published.is_target[np.isin(published.gene_ids, [19_264, 19_265])].any()


def test_worked_numbers_of_depth(columns, rows_of):
    # item E; as many counts outside the vocabulary, which neither count nor are thinned
    counts = np.tile([1, 4, 45, 450, 2000, 2500, 5000], (8000, 1))
    tokenizer = MaskedTokenizer(vocab_of(7), columns([4, 3, 2, 1, 0, 6, -1]))
    rows = rows_of(counts)
    batch = tokenizer.training(rows, cell_keys(0, 0, rows.cell_index))
    share = 10.0 ** (batch.source_depth.astype(float) - batch.target_depth)
    is_thinned = batch.source_depth < batch.target_depth
    assert is_thinned.mean() == pytest.approx(0.5, abs=0.02)
    assert share[is_thinned].mean() == pytest.approx(0.5, abs=0.012)
    assert share[is_thinned].var() == pytest.approx(0.05004, abs=0.003)
    assert (share[is_thinned] < 0.1).mean() == pytest.approx(0.028, abs=0.01)
    assert (share[is_thinned] < 0.2).mean() == pytest.approx(0.104, abs=0.02)
    assert (batch.target_depth == np.float32(np.log10(5000))).all()
    # small cells are never thinned, whatever lies outside the vocabulary
    few = rows_of(np.tile([1, 4, 45, 450, 400, 99, 5000], (500, 1)))
    few = tokenizer.training(few, cell_keys(0, 0, few.cell_index))
    np.testing.assert_array_equal(few.source_depth, few.target_depth)


def test_what_is_shown_and_asked_for_of_a_thinned_cell(make, cells, alignment, rows_of):
    rows, raw = rows_of(cells), by_gene(cells, alignment)
    keys = cell_keys(0, 0, rows.cell_index)
    settings = {"downsample_probability": 1.0, "downsample_min_counts": 1}
    batch = make(replace_share=0.0, random_share=0.0, **settings).training(rows, keys)
    found, totals = parts(batch), np.rint(10.0 ** batch.source_depth.astype(float))
    shown = np.expm1(found["values"].astype(float)) * totals[:, None] / 1e4
    np.testing.assert_allclose(shown, np.rint(shown), atol=1e-3)  # whole molecules
    assert (np.rint(shown) <= raw).all()  # so zeros stay zero
    assert (np.rint(shown).sum(1) == totals).all()
    truth = np.where(found["is_target"], values_of(raw), 0)  # at the raw depth
    np.testing.assert_array_max_ulp(found["target_values"], truth, maxulp=1)


def test_lost_genes_are_asked_for_as_often_as_true_zeros(columns, rows_of):
    counts = np.tile(np.repeat([1, 30], [N_GENES - 40, 40]), (3000, 1))
    counts[:, :100] = 0
    rows = rows_of(counts)
    keys = cell_keys(0, 0, rows.cell_index)
    share = {}
    for by in ("shown", "raw"):
        config = MaskConfig(downsample_probability=1.0, expressed_by=by)
        tokenizer = MaskedTokenizer(vocab_of(N_GENES), columns(np.arange(N_GENES)), config)
        found = parts(tokenizer.training(rows, keys))
        lone = slice(100, N_GENES - 40)
        is_lost = ~(found["has_token"] & ~found["is_target"])[:, lone]
        asked = (found["is_target"] & found["is_hidden"])[:, lone]
        zeros = found["is_target"][:, :100].mean()
        assert zeros == pytest.approx(0.03, abs=0.003)
        share[by] = asked.sum() / is_lost.sum()
    # half of these genes are lost: 0.15 + 0.015 of 0.65, and 0.3 of 0.65, four fifths hidden
    assert share["raw"] > 1.5 * share["shown"]


def test_at_most_max_genes_reach_the_encoder(make, cells, alignment, rows_of):
    rows, raw = rows_of(cells), by_gene(cells, alignment)
    keys = cell_keys(0, 0, rows.cell_index)
    batch = make(max_genes=40, downsample_probability=0.0).training(rows, keys)
    check_form(batch)
    found = parts(batch)
    is_dropped = found["is_hidden"] & ~found["is_target"]
    n_expressed = (raw > 0).sum(1)
    np.testing.assert_array_equal(is_dropped.sum(1), np.maximum(n_expressed - 40, 0))
    assert (is_dropped <= (raw > 0)).all()
    assert (found["values"][is_dropped] == 0).all()
    is_seen = (raw > 0) & ~found["is_hidden"] & (found["values"] > 0)
    assert (is_seen.sum(1) <= 40).all()
    assert is_seen.any()
    plenty = parts(make(max_genes=N_GENES, downsample_probability=0.0).training(rows, keys))
    np.testing.assert_array_equal(found["is_target"], plenty["is_target"] & ~is_dropped)
    assert (np.diff(make(max_genes=40).shown(rows).offsets) - 2 == n_expressed).all()


def test_a_cell_is_its_own(make, cells, rows_of):
    keys, tokenizer = cell_keys(5, 2, np.arange(len(cells))), make(max_genes=60)
    together = tokenizer.training(rows_of(cells), keys)
    alone = [
        tokenizer.training(rows_of(cells[i : i + 1], [i]), keys[i : i + 1])
        for i in range(len(cells))
    ]
    assert_same(concatenate(alone), together)
    backwards = tokenizer.training(rows_of(cells[::-1], np.arange(len(cells))[::-1]), keys[::-1])
    assert_same(concatenate(alone[::-1]), backwards)
    other = cell_keys(5, 3, np.arange(len(cells)))
    assert (tokenizer.training(rows_of(cells), other).values[:500] != together.values[:500]).any()


def test_the_order_of_the_columns_does_not_matter(make, cells, alignment, rows_of, columns, rng):
    order, keys = rng.permutation(300), cell_keys(0, 0, np.arange(len(cells)))
    moved = MaskedTokenizer(vocab_of(N_GENES), columns(alignment.column_to_gene[order]))
    for counts in (cells, (cells * 1.25).astype(np.float32)):  # quarters: exact in any order
        assert_same(
            moved.training(rows_of(counts[:, order]), keys), make().training(rows_of(counts), keys)
        )
        assert_same(moved.shown(rows_of(counts[:, order])), make().shown(rows_of(counts)))


def test_other_data_sets_in_the_source_do_not_matter(make, cells, alignment, rows_of):
    half, keys = np.arange(150), cell_keys(0, 0, np.arange(len(cells)))
    has_column = np.isin(np.arange(300), half)
    genes = np.where(has_column, alignment.column_to_gene, -1).astype(np.int32)
    measured = np.unique(genes[genes >= 0]).astype(np.int32)
    some = DatasetAlignment(genes, measured, has_column)
    every = DatasetAlignment(alignment.column_to_gene, alignment.measured, np.ones(300, bool))
    cells = np.where(np.arange(len(cells))[:, None] % 2 & ~has_column, 0, cells)
    for settings in ({}, {"zeros_from": "all", "mask_zero": 0.5}):
        config = MaskConfig(**settings)
        joint = MaskedTokenizer(vocab_of(N_GENES), [every, some], config)
        alone = [MaskedTokenizer(vocab_of(N_GENES), [one], config) for one in (every, some)]
        rows = replace(rows_of(cells), dataset=np.arange(len(cells)) % 2)
        expected = concatenate(
            [
                alone[i % 2].training(rows_of(cells[i : i + 1], [i]), keys[i : i + 1])
                for i in range(len(cells))
            ]
        )
        assert_same(joint.training(rows, keys), expected)
        asked = np.flatnonzero(parts(expected)["is_target"][1::2].any(0))
        assert np.isin(asked, measured).all() == (config.zeros_from == "measured")


def test_two_columns_of_a_gene_are_their_sum(columns, rows_of):
    keys = cell_keys(0, 0, np.arange(1))
    twice = MaskedTokenizer(vocab_of(4), columns([2, 1, 0, 2, 3]))
    once = MaskedTokenizer(vocab_of(4), columns([2, 1, 0, 3]))
    apart, summed = rows_of(np.array([[700, 0, 3, 800, 5]])), rows_of(np.array([[1500, 0, 3, 5]]))
    assert_same(twice.training(apart, keys), once.training(summed, keys))
    assert_same(twice.shown(apart), once.shown(summed))


def test_cells_with_nothing_or_one_gene(columns, rows_of):
    rows = rows_of(np.array([[0, 0, 5000], [0, 0, 0], [2, 0, 0]]))
    settings = {"mask_expressed": 0.999, "replace_share": 0.0, "random_share": 1.0}
    tokenizer = MaskedTokenizer(vocab_of(3), columns([0, 2, -1]), MaskConfig(**settings))
    batch = tokenizer.training(rows, cell_keys(0, 0, rows.cell_index))
    assert batch.library_size.tolist() == [0, 0, 2]
    assert batch.target_depth[:2].tolist() == [0, 0]  # not minus infinity
    last = slice(batch.offsets[2] + 2, None)
    # the wrong value of the only gene there is: hidden, for there is none to take
    assert (batch.gene_ids[last][0], batch.is_hidden[last][0], batch.values[last][0]) == (
        0,
        True,
        0,
    )
    none = rows_of(np.zeros((0, 3), int))
    for batch in (tokenizer.shown(none), tokenizer.training(none, np.zeros(0, np.uint64))):
        assert (batch.n_cells, batch.n_tokens) == (0, 0)


def test_most_tokens_is_a_bound_and_close(published, columns, make):
    tokenizer = MaskedTokenizer(vocab_of(19_264), columns([0]))
    bound = tokenizer.most_tokens(np.full(200, 2000))
    lengths = np.diff(published.offsets)
    assert (lengths <= bound).all()
    assert bound[0] < 1.15 * lengths.mean()
    bound = make(mask_zero=0.0).most_tokens(np.array([0, 100, 500]))
    assert bound.tolist() == [2, 102, 2 + N_GENES]


def test_batches_with_and_without_hidden_tokens_join(make, cells, rows_of):
    rows, tokenizer = rows_of(cells), make()
    training = tokenizer.training(rows, cell_keys(0, 0, rows.cell_index))
    shown = tokenizer.shown(rows)
    joint = concatenate([shown, training])
    np.testing.assert_array_equal(joint.hidden, np.concatenate([shown.hidden, training.hidden]))
    assert concatenate([shown, shown]).is_hidden is None
    assert renumber(shown, np.arange(len(cells)) + 7).cell_index[0] == 7
    assert shown.map(np.copy).is_hidden is None
    assert_same(training.map(np.copy), training)


def test_the_settings_choose_the_tokenizer(alignment):
    tokenizer = tokenizer_for(vocab_of(N_GENES), alignment, MaskConfig())
    assert isinstance(tokenizer, MaskedTokenizer)
    assert isinstance(tokenizer, CellTokenizer)
    assert tokenizer.n_specials == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_genes": 0}, "max_genes must be at least 1"),
        ({"mask_expressed": 1.0}, r"mask_expressed must be in \(0, 1\)"),
        ({"mask_zero": -0.1}, r"mask_zero must be in \[0, 1\)"),
        ({"replace_share": 0.8, "random_share": 0.3}, "together at most 1"),
        ({"random_share": -0.1}, "at least 0 and"),
        ({"downsample_probability": 2}, "downsample_probability"),
        ({"downsample_min_counts": 0}, "downsample_min_counts"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(**settings)
