"""Tokenizer: against a dense NumPy reference, and invariant to batch, order and columns."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from scfm.data.counts import CountRows
from scfm.tokens.collate import TokenConfig, Tokenizer
from scfm.tokens.depth import round_expected, thin
from scfm.tokens.gather import in_vocabulary_order
from scfm.tokens.rng import cell_keys
from scfm.tokens.targets import draw_targets

N_GENES = 280  # of the vocabulary; the cells have 300 columns
CELL, T, S = 1, 2, 3


@pytest.fixture
def alignment(columns, rng):
    """300 columns: 20 outside the vocabulary, 10 genes on two columns, 10 genes not measured."""
    column_to_gene = rng.permutation(300) % 290
    return columns(np.where(column_to_gene < 270, column_to_gene, -1))


@pytest.fixture
def make(vocab_of, alignment):
    """A tokenizer with these settings."""

    def build(**settings) -> Tokenizer:
        return Tokenizer(vocab_of(N_GENES), alignment, TokenConfig(**settings))

    return build


def by_gene(cells, alignment) -> np.ndarray:
    """(cells x genes) raw counts in the vocabulary."""
    sums = np.zeros((len(cells), N_GENES), cells.dtype)
    for column, gene in enumerate(alignment.column_to_gene):
        if gene >= 0:
            sums[:, gene] += cells[:, column]
    return sums


def values_of(counts, totals) -> np.ndarray:
    return np.log1p(1e4 * counts / np.asarray(totals, dtype=float)[:, None]).astype(np.float32)


def dense(batch, name: str, fill=0) -> np.ndarray:
    """(cells x genes) of a token array; ``fill`` where a cell has no such token."""
    out = np.full((batch.n_cells, N_GENES), fill, getattr(batch, name).dtype)
    cell = np.repeat(np.arange(batch.n_cells), np.diff(batch.offsets))
    is_gene = batch.gene_ids > S
    out[cell[is_gene], batch.gene_ids[is_gene] - S - 1] = getattr(batch, name)[is_gene]
    return out


def has_token(batch) -> np.ndarray:
    return dense(batch, "gene_ids", -1) >= 0


def check_form(batch, rows: CountRows) -> None:
    """What every batch must look like."""
    dtypes = {
        "gene_ids": np.int64,
        "values": np.float32,
        "offsets": np.int32,
        "is_target": np.bool_,
        "target_values": np.float32,
        "library_size": np.float32,
        "source_depth": np.float32,
        "target_depth": np.float32,
        "cell_index": np.int64,
    }
    assert {name: getattr(batch, name).dtype for name in dtypes} == dtypes
    n_tokens, n_cells = int(batch.offsets[-1]), rows.n_cells
    for name in ("gene_ids", "values", "is_target", "target_values"):
        assert getattr(batch, name).shape == (n_tokens,)
    for name in ("library_size", "source_depth", "target_depth", "cell_index"):
        assert getattr(batch, name).shape == (n_cells,)
    np.testing.assert_array_equal(batch.cell_index, rows.cell_index)
    assert batch.offsets[0] == 0
    for i in range(n_cells):
        own = slice(batch.offsets[i], batch.offsets[i + 1])
        assert batch.gene_ids[own][:3].tolist() == [CELL, T, S]
        depths = [0, batch.target_depth[i], batch.source_depth[i]]
        np.testing.assert_array_equal(batch.values[own][:3], np.array(depths, np.float32))
        assert (np.diff(batch.gene_ids[own]) > 0).all()
        assert not batch.is_target[own][:3].any()
    assert (batch.values[batch.is_target] == 0).all()
    assert (batch.target_values[~batch.is_target] == 0).all()
    assert np.isfinite(batch.values).all()


def assert_same(one, other) -> None:
    for name, array in vars(one).items():
        if name != "labels":
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


def cells_alone(tokenize, cells, rows_of, keys):
    """Each cell of a batch, tokenized by itself."""
    return [tokenize(rows_of(cells[i : i + 1], [i]), keys[i : i + 1]) for i in range(len(cells))]


def of_cell(batch, i: int) -> list:
    own = slice(batch.offsets[i], batch.offsets[i + 1])
    tokens = [batch.gene_ids, batch.values, batch.is_target, batch.target_values]
    per_cell = [batch.library_size, batch.source_depth, batch.target_depth]
    return [array[own].tolist() for array in tokens] + [array[i] for array in per_cell]


def test_scfoundations_worked_numbers(vocab_of, columns, rows_of):
    # item A of the specification, on columns in another order and one outside the vocabulary
    rows = rows_of(np.array([[6, 3, 1]]))
    batch = Tokenizer(vocab_of(5), columns([4, 1, 2])).shown(rows)
    assert batch.gene_ids.tolist() == [CELL, T, S, 5, 6, 8]
    expected = [0, 1, 1, 8.006701, 6.908755, 8.699681]
    np.testing.assert_allclose(batch.values, expected, rtol=1e-6)
    outside = Tokenizer(vocab_of(5), columns([4, 1, -1])).shown(rows)
    np.testing.assert_allclose(outside.values, [0, 1, 1, 8.006701, 8.699681], rtol=1e-6)
    assert outside.library_size.tolist() == [10]


def test_shown_is_the_dense_reference(make, cells, alignment, rows_of):
    rows = rows_of(cells)
    batch = make().shown(rows)
    check_form(batch, rows)
    raw, totals = by_gene(cells, alignment), cells.sum(1)
    np.testing.assert_array_equal(has_token(batch), raw > 0)
    np.testing.assert_array_max_ulp(dense(batch, "values"), values_of(raw, totals), maxulp=1)
    np.testing.assert_array_equal(batch.library_size, totals)
    np.testing.assert_allclose(batch.source_depth, np.log10(totals), rtol=1e-6)
    np.testing.assert_array_equal(batch.target_depth, batch.source_depth)
    assert not batch.is_target.any()


def test_the_depth_wanted_can_be_given(make, cells, rows_of):
    rows = rows_of(cells)
    plain, wanted = make().shown(rows), np.linspace(3, 5, len(cells), dtype=np.float32)
    deep = make().shown(rows, target_depth=wanted)
    check_form(deep, rows)
    np.testing.assert_array_equal(deep.target_depth, wanted)
    np.testing.assert_array_equal(deep.source_depth, plain.source_depth)
    np.testing.assert_array_equal(dense(deep, "values"), dense(plain, "values"))
    assert set(make().shown(rows, target_depth=4.0).target_depth) == {4}


def test_shown_takes_expected_counts(make, cells, alignment, rows_of):
    expected = np.where(cells % 3 == 1, cells + 0.37, cells).astype(np.float32)
    batch = make().shown(rows_of(expected))
    theirs = values_of(by_gene(expected.astype(float), alignment), expected.sum(1, dtype=float))
    np.testing.assert_array_max_ulp(dense(batch, "values"), theirs, maxulp=2)


def test_training_without_thinning_is_the_dense_reference(make, cells, alignment, rows_of):
    rows, raw = rows_of(cells), by_gene(cells, alignment)
    batch = make(downsample_probability=0.0).training(rows, cell_keys(0, 0, rows.cell_index))
    check_form(batch, rows)
    is_target, full = dense(batch, "is_target"), values_of(raw, cells.sum(1))
    np.testing.assert_array_equal(has_token(batch), (raw > 0) | is_target)
    np.testing.assert_array_max_ulp(dense(batch, "values"), np.where(is_target, 0, full), maxulp=1)
    hidden = np.where(is_target, full, 0)
    np.testing.assert_array_max_ulp(dense(batch, "target_values"), hidden, maxulp=1)
    n_targets = np.rint(0.3 * (raw > 0).sum(1))
    np.testing.assert_array_equal((is_target & (raw > 0)).sum(1), n_targets)
    zeros = is_target & (raw == 0)
    assert not zeros[:, np.setdiff1d(np.arange(N_GENES), alignment.measured)].any()
    n_zeros = len(alignment.measured) - (raw > 0).sum(1)
    np.testing.assert_array_equal(zeros.sum(1), np.minimum(n_targets, n_zeros))
    np.testing.assert_array_equal(batch.target_depth, batch.source_depth)


@pytest.mark.parametrize("max_genes", [50, 2048])
def test_training_is_its_steps_in_sequence(make, cells, alignment, rows_of, max_genes):
    rows, keys = rows_of(cells), cell_keys(0, 0, np.arange(len(cells)))
    settings = {"max_genes": max_genes, "zero_ratio": 0.7, "target_share": 0.4}
    batch = make(downsample_probability=1.0, **settings).training(rows, keys)
    check_form(batch, rows)

    indptr, genes, counts = in_vocabulary_order(rows, alignment.column_to_gene, N_GENES)
    cell = np.repeat(np.arange(len(cells)), np.diff(indptr))
    thinned, _ = thin(indptr, counts, keys, probability=1.0)
    shown_totals = np.bincount(cell, thinned)
    shown, raw = np.zeros((2, len(cells), N_GENES + 1), int)
    shown[cell, genes], raw[cell, genes] = thinned, counts
    inside = genes < N_GENES
    targets = draw_targets(
        indptr - np.arange(len(indptr)),
        genes[inside],
        alignment.measured,
        keys,
        n_genes=N_GENES,
        **settings,
    )
    is_kept, is_target = np.zeros((2, len(cells), N_GENES), bool)
    is_kept[cell[inside], genes[inside]] = targets.is_kept
    is_target[cell[inside], genes[inside]] = targets.is_target
    zero_cell = np.repeat(np.arange(len(cells)), np.diff(targets.zero_indptr))
    is_target[zero_cell, targets.zero_genes] = True

    shown, raw = shown[:, :-1], raw[:, :-1]
    np.testing.assert_array_equal(dense(batch, "is_target"), is_target)
    np.testing.assert_array_equal(has_token(batch), is_target | (is_kept & (shown > 0)))
    visible = np.where(is_kept & ~is_target, values_of(shown, shown_totals), 0)
    np.testing.assert_array_max_ulp(dense(batch, "values"), visible, maxulp=1)
    hidden = np.where(is_target, values_of(raw, cells.sum(1)), 0)
    np.testing.assert_array_max_ulp(dense(batch, "target_values"), hidden, maxulp=1)
    np.testing.assert_allclose(batch.source_depth, np.log10(shown_totals), rtol=1e-6)
    np.testing.assert_allclose(batch.target_depth, np.log10(cells.sum(1)), rtol=1e-6)
    np.testing.assert_array_equal(batch.library_size, cells.sum(1))


def test_depths_have_the_published_moments(vocab_of, columns, rows_of):
    # item E of the specification, as the model sees it; half the molecules outside the vocabulary
    rows = rows_of(np.tile([1, 4, 45, 450, 2000, 2500], (8000, 1)))
    tokenizer = Tokenizer(vocab_of(5), columns([4, 3, 2, 1, 0, -1]))
    batch = tokenizer.training(rows, cell_keys(0, 0, rows.cell_index))
    share = 10.0 ** (batch.source_depth.astype(float) - batch.target_depth)
    is_thinned = batch.source_depth < batch.target_depth
    assert is_thinned.mean() == pytest.approx(0.5, abs=0.02)
    assert share[is_thinned].mean() == pytest.approx(0.5, abs=0.012)
    assert share[is_thinned].var() == pytest.approx(0.05004, abs=0.003)
    assert (batch.target_depth == np.float32(np.log10(5000))).all()


def test_a_cell_is_its_own(make, cells, rows_of):
    keys = cell_keys(5, 2, np.arange(len(cells)))
    tokenizer = make(max_genes=60)
    together = tokenizer.training(rows_of(cells), keys)
    for i, alone in enumerate(cells_alone(tokenizer.training, cells, rows_of, keys)):
        assert of_cell(alone, 0) == of_cell(together, i)
    backwards = tokenizer.training(rows_of(cells[::-1], np.arange(len(cells))[::-1]), keys[::-1])
    last = len(cells) - 1
    assert all(of_cell(together, i) == of_cell(backwards, last - i) for i in range(len(cells)))
    shown = tokenizer.shown(rows_of(cells))
    for i, alone in enumerate(
        cells_alone(lambda rows, _: tokenizer.shown(rows), cells, rows_of, keys)
    ):
        assert of_cell(alone, 0) == of_cell(shown, i)


def test_the_order_of_the_columns_does_not_matter(
    make, cells, alignment, rows_of, vocab_of, columns, rng
):
    order = rng.permutation(300)
    moved = Tokenizer(vocab_of(N_GENES), columns(alignment.column_to_gene[order]))
    keys = cell_keys(0, 0, np.arange(len(cells)))
    assert_same(
        moved.training(rows_of(cells[:, order]), keys), make().training(rows_of(cells), keys)
    )
    assert_same(moved.shown(rows_of(cells[:, order])), make().shown(rows_of(cells)))
    expected = (cells * 1.25).astype(np.float32)  # sums of quarters are exact in any order
    assert_same(
        moved.training(rows_of(expected[:, order]), keys), make().training(rows_of(expected), keys)
    )


def test_target_settings_do_not_move_the_thinning(make, cells, rows_of):
    rows, keys = rows_of(cells), cell_keys(0, 0, np.arange(len(cells)))
    few = make(target_share=0.1, zero_ratio=0.0).training(rows, keys)
    many = make(target_share=0.6, max_genes=70).training(rows, keys)
    np.testing.assert_array_equal(few.source_depth, many.source_depth)
    assert (few.source_depth < few.target_depth).any()
    is_visible = [has_token(batch) & ~dense(batch, "is_target") for batch in (few, many)]
    both = is_visible[0] & is_visible[1]
    assert both.any()
    np.testing.assert_array_equal(dense(few, "values")[both], dense(many, "values")[both])


def test_epochs_differ(make, cells, rows_of):
    rows = rows_of(cells)
    first, second = (make().training(rows, cell_keys(0, e, rows.cell_index)) for e in (0, 1))
    assert (first.source_depth != second.source_depth).any()
    assert (dense(first, "is_target") != dense(second, "is_target")).any()


def test_two_columns_of_a_gene_are_their_sum(vocab_of, columns, rows_of):
    keys = cell_keys(0, 0, np.arange(1))
    apart = rows_of(np.array([[700, 0, 3, 800, 5]]))
    summed = rows_of(np.array([[1500, 0, 3, 5]]))
    twice = Tokenizer(vocab_of(4), columns([2, 1, 0, 2, 3]))
    once = Tokenizer(vocab_of(4), columns([2, 1, 0, 3]))
    assert_same(twice.training(apart, keys), once.training(summed, keys))
    assert_same(twice.shown(apart), once.shown(summed))


def test_at_most_max_genes_are_kept(make, cells, alignment, rows_of):
    rows, raw = rows_of(cells), by_gene(cells, alignment)
    batch = make(max_genes=40).training(rows, cell_keys(0, 0, rows.cell_index))
    is_expressed = has_token(batch) & (raw > 0)
    assert (is_expressed.sum(1) <= 40).all()
    np.testing.assert_array_equal((dense(batch, "is_target") & (raw > 0)).sum(1), 12)
    assert (np.diff(make(max_genes=40).shown(rows).offsets) - 3 == (raw > 0).sum(1)).all()


def test_a_panel_with_next_to_no_zeros(vocab_of, columns, rows_of):
    counts = np.full((30, 200), 8)
    counts[:, :3] = 0
    rows = rows_of(counts)
    tokenizer = Tokenizer(vocab_of(N_GENES), columns(np.arange(200)))
    batch = tokenizer.training(rows, cell_keys(0, 0, rows.cell_index))
    check_form(batch, rows)
    assert dense(batch, "is_target")[:, :3].all()
    assert (dense(batch, "is_target").sum(1) == 59 + 3).all()


def test_cells_without_a_gene_of_the_vocabulary(vocab_of, columns, rows_of):
    rows = rows_of(np.array([[0, 0, 5000], [0, 0, 0], [2, 0, 0]]))
    tokenizer = Tokenizer(vocab_of(3), columns([0, 2, -1]))
    for batch in (
        tokenizer.shown(rows),
        tokenizer.training(rows, cell_keys(0, 0, rows.cell_index)),
    ):
        check_form(batch, rows)
        assert batch.offsets[:3].tolist() == [0, 3, 6]
        assert batch.library_size.tolist() == [5000, 0, 2]
        assert batch.target_depth[1] == 0  # not minus infinity
    # the one gene is the target, and the one zero that was measured
    assert batch.is_target.tolist()[6:] == [False] * 3 + [True] * 2
    assert batch.gene_ids.tolist()[9:] == [4, 6]


def test_no_cells(make, rows_of):
    rows = rows_of(np.zeros((0, 300), int))
    for batch in (make().shown(rows), make().training(rows, cell_keys(0, 0, rows.cell_index))):
        check_form(batch, rows)
        assert (batch.n_cells, batch.n_tokens) == (0, 0)


def test_most_possible_tokens_fit(vocab_of, columns, rows_of):
    # every bound at once: few genes, the largest shares, many zeros a target
    rows = rows_of(np.tile([[1, 0, 0], [1, 1, 0]], (50, 20)))
    tokenizer = Tokenizer(
        vocab_of(N_GENES), columns(np.arange(60)), TokenConfig(target_share=0.99, zero_ratio=9.5)
    )
    batch = tokenizer.training(rows, cell_keys(0, 0, rows.cell_index))
    check_form(batch, rows)
    assert (np.diff(batch.offsets) == 63).all()


def test_expected_counts_are_rounded_by_the_cells_key(make, cells, alignment, rows_of):
    rows = rows_of((cells * 0.9).astype(np.float32))
    keys = cell_keys(0, 0, rows.cell_index)
    batch = make().training(rows, keys)
    check_form(batch, rows)
    whole = round_expected(rows, alignment.column_to_gene, N_GENES, keys)
    assert_same(batch, make().training(whole, keys))
    np.testing.assert_array_equal(batch.library_size % 1, 0)


def test_another_layout_of_the_vocabulary(cells, alignment, rows_of, vocab_of):
    vocab = replace(
        vocab_of(N_GENES), specials_before=(), specials_after=("[T]", "[S]", "[CELL]", "[PAD]")
    )
    theirs = Tokenizer(vocab_of(N_GENES), alignment).shown(rows_of(cells))
    ours = Tokenizer(vocab, alignment).shown(rows_of(cells))
    assert ours.gene_ids[:3].tolist() == [N_GENES + 2, N_GENES, N_GENES + 1]
    is_gene = theirs.gene_ids > S
    np.testing.assert_array_equal(ours.gene_ids[is_gene], theirs.gene_ids[is_gene] - 4)
    np.testing.assert_array_equal(ours.values, theirs.values)


@pytest.mark.parametrize(
    ("setting", "wrong", "wanted"),
    [
        ("max_genes", 0, "at least 1, got 0"),
        ("target_share", 0.0, r"in \(0, 1\), got 0.0"),
        ("target_share", 1.0, r"in \(0, 1\), got 1.0"),
        ("zero_ratio", -1.0, r"in \[0, 100\], got -1.0"),
        ("zero_ratio", float("nan"), r"in \[0, 100\], got nan"),
        ("zero_ratio", 1e9, r"in \[0, 100\], got 1"),
        ("downsample_probability", 1.5, r"in \[0, 1\], got 1.5"),
        ("downsample_min_counts", 0, "at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(setting, wrong, wanted):
    with pytest.raises(ValueError, match=f"tokens.{setting} must be {wanted}"):
        TokenConfig(**{setting: wrong})


def test_the_defaults_are_the_published_ones():
    assert asdict(TokenConfig()) == {
        "max_genes": 2048,
        "target_share": 0.3,
        "zero_ratio": 1.0,
        "downsample_probability": 0.5,
        "downsample_min_counts": 1000,
    }


def test_a_gene_outside_measured_is_our_fault(vocab_of, columns):
    wrong = replace(columns([0, 1, 2]), measured=np.array([0, 1], dtype=np.int32))
    with pytest.raises(AssertionError, match="not among the measured"):
        Tokenizer(vocab_of(3), wrong)
