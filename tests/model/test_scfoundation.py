"""scFoundation's own promises: what is encoded, pooled, decoded; no cell touches another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scfm.batch import CellBatch
from scfm.errors import ConfigError, ModelError
from scfm.model import performer, scfoundation
from scfm.model.base import save_model
from scfm.model.config import ScfoundationConfig, ScfoundationSizes
from scfm.model.families import load_model
from scfm.model.performer import stabilised
from scfm.model.pretrained import ScfmModel
from scfm.model.scfoundation import ScfoundationModel, seen
from scfm.model.scfoundation_flops import flops_by_part
from scfm.tokens.vocab import GeneVocab
from tests.model.test_invariance import one_cell
from tests.toys import masked_cells, scfoundation_vocab, toy_model, toy_scfoundation, toy_vocab

LENGTHS = [14, 30, 0, 7]
TABLES = {"position", "value", "encoder", "decoder", "decoder_in", "value_out"}


def cells_of(cells):
    """Every cell alone."""
    return [one_cell(cells, number) for number in range(cells.n_cells)]


def shown_cells(values: list[dict[int, float]], n_genes: int, depths: tuple[float, float]):
    """Cells with nothing hidden, from their genes' values."""
    ids = [[n_genes, n_genes + 1, *sorted(cell)] for cell in values]
    tokens = [[*depths, *(cell[gene] for gene in sorted(cell))] for cell in values]
    n, n_cells = sum(map(len, ids)), len(values)
    return CellBatch(
        gene_ids=torch.tensor(np.concatenate(ids)).long(),
        values=torch.tensor(np.concatenate(tokens)).float(),
        offsets=torch.tensor(np.cumsum([0, *map(len, ids)])).int(),
        is_target=torch.zeros(n, dtype=torch.bool),
        target_values=torch.zeros(n),
        **{k: torch.ones(n_cells) for k in ("library_size", "source_depth", "target_depth")},
        cell_index=torch.arange(n_cells),
    )


def test_only_what_is_expressed_is_gathered():
    """The worked rows, of 40 genes: ids and values as published, but for the padding, which is not.

    Published: [[1,2,3,4,3.2,pad], [.5,1.5,2.5,4,4,3.3]] at [[1,5,9,40,41,pad], [0,2,3,30,40,41]].
    """
    rows = [{1: 1.0, 5: 2.0, 9: 3.0}, {0: 0.5, 2: 1.5, 3: 2.5, 30: 4.0}]
    cells = shown_cells(rows, 40, (4.0, 3.2))
    cells.values[cells.offsets[1].long() + 1] = 3.3
    model, got = toy_scfoundation(40), {}
    model.position.register_forward_hook(lambda _, args, out: got.update(ids=args[0]))
    model.value.of.register_forward_hook(lambda _, args, out: got.update(values=args[0]))
    states = model(cells)
    assert states.offsets.tolist() == [0, 5, 11]
    assert got["ids"].tolist() == [40, 41, 1, 5, 9, 40, 41, 0, 2, 3, 30]
    wanted = torch.tensor([4, 3.2, 1, 2, 3, 4, 3.3, 0.5, 1.5, 2.5, 4])
    torch.testing.assert_close(got["values"], wanted)


def test_hidden_zero_and_sentinel_values(rng):
    """Hidden or zero is not encoded; depths always are; 102 and 103 are values like others."""
    cells = masked_cells(rng, [14])
    wanted = ~cells.hidden & (cells.values > 0)
    assert torch.equal(seen(cells), wanted)
    bare = replace(cells, values=torch.zeros_like(cells.values))
    assert seen(bare).nonzero().flatten().tolist() == [0, 1]
    model = toy_scfoundation()
    odd = torch.tensor([101.0, 102.0, 103.0, 104.0])
    assert torch.equal(model.value.of(odd)[1:3], model.value.of(odd[1:3]))
    for value, mark in zip(model.value.of(odd[1:3]), model.value.marks, strict=True):
        assert (value - mark).abs().max() > 0.01


@torch.no_grad()
def test_pooling_is_s_t_max_mean_and_max_over_everything(rng):
    model, cells = toy_scfoundation(), masked_cells(rng, LENGTHS)
    states = model(cells)
    for number in range(len(LENGTHS)):
        own = states.tokens[states.offsets[number] : states.offsets[number + 1]]
        t, s, genes = own[0], own[1], own[2:] if len(own) > 2 else own[1:2]
        expected = {
            "all": torch.cat([s, t, genes.max(0).values, genes.mean(0)]),
            "max": own.max(0).values,
            **{"mean": genes.mean(0), "S": s, "T": t},
        }
        assert set(expected) == set(model.poolings)
        for how, wanted in expected.items():
            assert model.width(how) == len(wanted)
            torch.testing.assert_close(model.pool(states, how)[number], wanted)
        torch.testing.assert_close(states.cell[number], s)
    assert torch.equal(model.pool(states), model.pool(states, "all"))
    with pytest.raises(ConfigError, match="known are all, max, mean, S, T"):
        model.pool(states, "cell")


@torch.no_grad()
@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_batched_equals_single(rng, backend):
    """Where the original's batches differ from single cells by up to 2.5."""
    model, cells = toy_scfoundation(attention=backend), masked_cells(rng, LENGTHS)
    states = model(cells)
    together = {
        "all": model.pool(states),
        "max": model.pool(states, "max"),
        "decoded": model.decode(cells, states),
        "expression": model.predict(cells, states),
    }
    targets = model.predict_targets(cells, states)["decoder"]
    for number, own in enumerate(cells_of(cells)):
        alone = model(own)
        found = {
            "all": model.pool(alone),
            "max": model.pool(alone, "max"),
            "decoded": model.decode(own, alone),
            "expression": model.predict(own, alone),
        }
        for name, value in found.items():
            torch.testing.assert_close(together[name][number], value[0], rtol=1e-4, atol=1e-5)
        n = int(own.is_target.sum())
        wanted, targets = targets[:n], targets[n:]
        found_targets = model.predict_targets(own, alone)["decoder"]
        torch.testing.assert_close(found_targets, wanted, rtol=1e-4, atol=1e-5)
    assert len(targets) == 0


@torch.no_grad()
def test_targets_and_chosen_genes_are_those_of_all(rng, monkeypatch):
    model, cells = toy_scfoundation(), masked_cells(rng, LENGTHS)
    states = model(cells)
    everything, decoded = model.predict(cells, states), model.decode(cells, states)
    assert everything.shape == (4, 50)
    assert decoded.shape == (4, 50, 16)
    cell_of = torch.repeat_interleave(torch.arange(4), cells.offsets.diff().long())
    wanted = everything[cell_of[cells.is_target], cells.gene_ids[cells.is_target]]
    found = model.predict_targets(cells, states)["decoder"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    genes = torch.tensor([7, 49, 0])
    monkeypatch.setattr(scfoundation, "MOST_AT_ONCE", 1)  # cell by cell
    for some, of_all in (
        (model.predict(cells, states, genes), everything),
        (model.decode(cells, states, genes), decoded),
    ):
        torch.testing.assert_close(some, of_all[:, genes], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("stabiliser", "together"), [("per_sample", 1), ("global", 4)])
def test_cells_that_share_a_stabiliser_are_decoded_together(rng, monkeypatch, stabiliser, together):
    """The largest exponent of all cells is subtracted: a part of them would have another."""
    cells, n_stabilised = masked_cells(rng, LENGTHS), set()
    model = toy_scfoundation(stabiliser=stabiliser, initializer_range=0.3)
    states = model(cells)

    def predictions():
        targets = model.predict_targets(cells, states)["decoder"]
        return model.predict(cells, states), model.decode(cells, states), targets

    def spy(sums, how):
        n_stabilised.add(len(sums))
        return stabilised(sums, how)

    wanted = predictions()
    monkeypatch.setattr(scfoundation, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(performer, "stabilised", spy)
    for ours, theirs in zip(predictions(), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-6)
    assert n_stabilised == {together}


@torch.no_grad()
def test_hidden_values_and_targets_cannot_leak(rng):
    """Nothing hidden reaches the encoder, whatever its value; no target reaches anything."""
    model, cells = toy_scfoundation(), masked_cells(rng, LENGTHS)
    spoiled = replace(cells, values=torch.where(cells.hidden, 99.0, cells.values))
    assert torch.equal(model(cells).tokens, model(spoiled).tokens)
    spoiled = replace(cells, target_values=cells.target_values + 1)
    one, other = (model.predict(c, model(c)) for c in (cells, spoiled))
    assert torch.equal(one, other)


@torch.no_grad()
def test_what_is_shown_hidden_and_asked_for_matters(rng):
    """The control: values, the depth wanted, and masks all change what is predicted."""
    model, cells = toy_scfoundation(), masked_cells(rng, [14, 30])
    before = model.predict(cells, model(cells))
    is_t = cells.gene_ids == model.vocab.target_depth_id
    for changed in (
        {"values": cells.values + (cells.values > 1)},
        {"values": torch.where(is_t, 5.0, cells.values)},
        {"is_hidden": cells.hidden & cells.is_target},  # dropped genes become zeros
    ):
        other = replace(cells, **changed)
        assert (model.predict(other, model(other)) - before).abs().max() > 1e-3


@torch.no_grad()
def test_a_zero_gene_named_is_a_zero_gene_unnamed():
    """A kept zero is what the decoder sees of every gene that is not in the batch."""
    model = toy_scfoundation()
    bare = shown_cells([{3: 1.0, 9: 2.0}], 50, (4.0, 3.0))
    named = shown_cells([{3: 1.0, 9: 2.0, 20: 0.0}], 50, (4.0, 3.0))
    named.is_target[-1] = True
    named = replace(named, is_hidden=torch.zeros(5, dtype=torch.bool))
    assert torch.equal(model.predict(named, model(named)), model.predict(bare, model(bare)))


def test_parameters_of_the_published_size():
    """The released network's, part by part."""
    with torch.device("meta"):
        config = ScfoundationConfig.of(
            ScfoundationSizes(), n_tokens=19_267, vocab_hash="", max_genes=15_000
        )
        model = ScfoundationModel(config)
    counted = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in TABLES}
    norms = sum(p.numel() for p in model.decoder.value_norm.parameters())
    assert counted["encoder"] == 85_056_000
    assert counted["position"] == 14_797_056
    assert counted["decoder"] - norms == 18_915_328
    assert counted["value"] == 88_636
    assert counted["decoder_in"] == 393_728
    assert sum(p.numel() for p in model.parameters()) == 119_252_285
    for block in model.decoder.blocks:
        assert block.attention.directions.shape == (266, 64)


def test_features_are_a_function_of_seed_step_and_layer():
    def directions(model):
        return [block.attention.directions.clone() for block in model.decoder.blocks]

    one, other = (toy_scfoundation(seed=seed, redraw_every=10) for seed in (0, 1))
    for step in (0, 9):
        one.before_step(7, step)
    first = directions(one)
    other.before_step(7, 3)  # another history, another step before the next draw
    assert all(torch.equal(a, b) for a, b in zip(first, directions(other), strict=True))
    assert not torch.equal(*first)
    one.before_step(7, 10)
    second = directions(one)[0]
    assert not torch.equal(first[0], second)
    one.before_step(7, 9)
    assert torch.equal(first[0], directions(one)[0])
    one.before_step(8, 0)
    assert not torch.equal(first[0], directions(one)[0])
    assert not torch.equal(second, directions(one)[0])  # not of seed + number of the draw


def test_features_never_drawn_again():
    model = toy_scfoundation(redraw_every=0)
    model.before_step(7, 0)
    first = model.decoder.blocks[0].attention.directions.clone()
    model.before_step(7, 10**6)
    assert torch.equal(first, model.decoder.blocks[0].attention.directions)


def gradients(model, cells):
    loss = model.predict_targets(cells, model(cells))["decoder"].square().sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("stabiliser", ["per_sample", "global"])
def test_gradients_reach_every_parameter(rng, stabiliser):
    model = toy_scfoundation(stabiliser=stabiliser).train()
    found = gradients(model, masked_cells(rng, LENGTHS))
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        # keys' biases shift all weights of a query alike: softmax forgets them, the kernel nearly
        assert gradient.abs().sum() > 0, name
    marks = found["value.marks"]
    assert marks[0].abs().sum() > 0
    assert marks[1].abs().sum() == 0  # the padding is read by nothing


def test_nothing_hidden_still_reaches_the_mask():
    """Every parameter is in every graph: distributed training waits for each of them."""
    model = toy_scfoundation().train()
    cells = shown_cells([{3: 1.0, 9: 2.0}], 50, (4.0, 3.0))
    model.predict(cells, model(cells)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputed_gradients_are_equal(rng, how):
    cells = masked_cells(rng, [40, 25, 48])
    wanted = gradients(toy_scfoundation().train(), cells)
    model = toy_scfoundation().train()
    model.recompute(how)
    for name, gradient in gradients(model, cells).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def test_half_precision_is_near_full(rng):
    model, cells = toy_scfoundation(initializer_range=0.1).train(), masked_cells(rng, LENGTHS)
    wanted = gradients(model, cells)
    model.zero_grad(set_to_none=True)
    wanted = {name: g.clone() for name, g in wanted.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.predict_targets(cells, model(cells))["decoder"].float().square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        gap = (parameter.grad - wanted[name]).norm() / (wanted[name].norm() + 1e-3)
        assert gap < 0.2, (name, float(gap))


def test_cost_is_what_torch_counts(rng):
    """Backward too, less the features that are made again there.

    Values for the decoder alone, which no default has, are not counted.
    """
    model, cells = toy_scfoundation(attention="documents").train(), masked_cells(rng, LENGTHS)
    cells = replace(cells, is_hidden=cells.hidden & (cells.values == 0))
    visible = [int(seen(own).sum()) for own in cells_of(cells)]
    targets = [int(own.is_target.sum()) for own in cells_of(cells)]
    parts = flops_by_part(model.config.sizes, model.n_positions, visible, targets)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            found = model.predict_targets(cells, model(cells))["decoder"].sum()
        with FlopCounterMode(display=False) as back:
            found.backward()
    assert forward.get_total_flops() == sum(parts.values())
    sizes = model.config.sizes
    everywhere = len(visible) * model.n_positions
    asking = 1 * everywhere + sum(targets)  # in the first of two blocks, and in the last
    share = asking / (2 * everywhere + asking)
    # the projections, and what queries read by them; sums over keys are not needed again
    again = parts["features"] * (1 + share * (1 + 1 / sizes.d_head))
    wanted = forward.get_total_flops() + back.get_total_flops() - again
    assert model.batch_flops(visible, targets) == pytest.approx(wanted, rel=1e-12)


def test_folder_round_trip_with_features(rng, tmp_path):
    model, cells = toy_scfoundation(), masked_cells(rng, LENGTHS)
    model.before_step(3, 0)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, ScfoundationModel)
    assert loaded.vocab == model.vocab
    assert loaded.config.sizes == model.config.sizes
    with torch.no_grad():
        one, other = (m.predict(cells, m(cells)) for m in (model, loaded))
    assert torch.equal(one, other)


def test_families_are_told_apart(tmp_path):
    save_model(toy_scfoundation(), tmp_path / "one")
    save_model(toy_model(), tmp_path / "other")
    with pytest.raises(ModelError, match="family 'scfoundation'; wanted 'scfm'"):
        ScfmModel.from_pretrained(tmp_path / "one")
    with pytest.raises(ModelError, match="family 'scfm'; wanted 'scfoundation'"):
        ScfoundationModel.from_pretrained(tmp_path / "other")
    assert isinstance(load_model(tmp_path / "other"), ScfmModel)
    config = tmp_path / "one" / "config.json"
    config.write_text(config.read_text().replace('"scfoundation"', '"geneformer"'))
    with pytest.raises(ModelError, match="knows scfm, scfoundation"):
        load_model(tmp_path / "one")


def test_other_vocabularies_are_refused():
    with pytest.raises(ModelError, match=r"genes first and then \[T\], \[S\], \[PAD\]"):
        ScfoundationModel.from_scratch(toy_vocab(), ScfoundationSizes(d_model=12))
    assert GeneVocab.scfoundation().specials_after == scfoundation_vocab().specials_after


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"d_model": 10, "n_heads": 3}, "must divide"),
        ({"n_bins": 0}, "n_bins must be at least 1"),
        ({"d_head": 1}, "n_features must be at least 1"),
        ({"redraw_every": -1}, "redraw_every"),
        ({"stabiliser": "none"}, "known are per_sample, global"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"initializer_range": 0}, "initializer_range must be positive"),
    ],
)
def test_impossible_sizes_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ScfoundationSizes(**wrong)
