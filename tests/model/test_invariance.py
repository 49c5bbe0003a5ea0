"""A cell's result is its own: batch mates, batch size, gene order, backend cannot change it."""

from dataclasses import replace

import pytest
import torch

from scfm.model.pretrained import visible_offsets
from scfm.tokens.collate import N_SPECIALS
from tests.toys import toy_cells, toy_model

LENGTHS = [12, 30, 1, 7]


def one_cell(cells, number):
    """The cell alone, as a batch of one."""
    start, end = cells.offsets[number], cells.offsets[number + 1]
    alone = {
        name: getattr(cells, name)[start:end]
        for name in ("gene_ids", "values", "is_target", "target_values", "is_hidden")
        if getattr(cells, name) is not None
    }
    per_cell = {
        name: getattr(cells, name)[number : number + 1]
        for name in ("library_size", "source_depth", "target_depth", "cell_index")
    }
    offsets = torch.tensor([0, end - start], dtype=torch.int32)
    return replace(cells, **alone, **per_cell, offsets=offsets)


@torch.no_grad()
def everything(model, cells):
    states = model(cells)
    by_query, by_cell = model.predict_targets(cells, states).values()
    return states, by_query, by_cell


@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_batched_equals_single(rng, backend):
    model, cells = toy_model(attention=backend), toy_cells(rng, LENGTHS)
    states, by_query, by_cell = everything(model, cells)
    first_target = 0
    for number in range(len(LENGTHS)):
        own, own_query, own_cell = everything(model, one_cell(cells, number))
        targets = slice(first_target, first_target + len(own_query))
        torch.testing.assert_close(states.cell[number : number + 1], own.cell)
        torch.testing.assert_close(by_query[targets], own_query)
        torch.testing.assert_close(by_cell[targets], own_cell)
        first_target += len(own_query)
    assert first_target == len(by_query) == int(cells.is_target.sum())


def test_gene_order_cannot_matter(rng):
    model, cells = toy_model(), toy_cells(rng, [20])
    shuffled = torch.cat([torch.arange(N_SPECIALS), N_SPECIALS + torch.randperm(20)])
    permuted = replace(
        cells,
        **{n: getattr(cells, n)[shuffled] for n in ("gene_ids", "values", "is_target")},
    )
    with torch.no_grad():
        for how in ("cell", "mean", "max", "S", "T"):
            torch.testing.assert_close(
                model.pool(model(cells), how), model.pool(model(permuted), how)
            )


def test_backends_agree(rng):
    cells = toy_cells(rng, LENGTHS)
    one, other = (
        everything(toy_model(attention=backend), cells) for backend in ("documents", "padded")
    )
    torch.testing.assert_close(one[0].cell, other[0].cell)
    torch.testing.assert_close(one[1], other[1])


def test_hidden_values_cannot_leak(rng):
    """Whatever stands in a target's value, nothing the model says may change."""
    model, cells = toy_model(), toy_cells(rng, LENGTHS)
    spoiled = replace(cells, values=torch.where(cells.is_target, 99.0, cells.values))
    torch.testing.assert_close(everything(model, cells)[1], everything(model, spoiled)[1])
    torch.testing.assert_close(everything(model, cells)[2], everything(model, spoiled)[2])


def test_shown_values_and_depths_do_matter(rng):
    """The control of the tests above: a model that ignored its input would pass them all."""
    model, cells = toy_model(), toy_cells(rng, LENGTHS)
    for changed in (
        cells.values + (cells.values > 1),
        torch.where(cells.gene_ids == model.vocab.target_depth_id, 5.0, cells.values),
    ):
        other = everything(model, replace(cells, values=changed))
        assert (everything(model, cells)[0].cell - other[0].cell).abs().max() > 1e-2
        assert (everything(model, cells)[1] - other[1]).abs().max() > 1e-3


def test_visible_offsets_count_what_is_not_target(rng):
    cells = toy_cells(rng, LENGTHS)
    counted = [
        int((~cells.is_target[a:b]).sum())
        for a, b in zip(cells.offsets[:-1], cells.offsets[1:], strict=True)
    ]
    assert visible_offsets(cells).diff().tolist() == counted


def test_pooling_definitions(rng):
    model, cells = toy_model(), toy_cells(rng, LENGTHS)
    with torch.no_grad():
        states = model(cells)
    for number in range(len(LENGTHS)):
        own = states.tokens[states.offsets[number] : states.offsets[number + 1]]
        genes = own[N_SPECIALS:]
        expected = {"cell": own[0], "T": own[1], "S": own[2]}
        if len(genes):
            expected |= {"mean": genes.mean(0), "max": genes.max(0).values}
        for how, wanted in expected.items():
            torch.testing.assert_close(model.pool(states, how)[number], wanted)
