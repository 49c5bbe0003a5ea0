"""Converted weights do what the original does with them.

Two originals: the authors' released code, whose outputs for small weights over all 19,264 genes
lie beside a development checkout (not in every clone: those tests are skipped), and the network
written plainly (plain_scfoundation.py), over weights in the published layout. The second is always
there.
"""

import numpy as np
import pytest
import torch

from scfm.batch import CellBatch
from scfm.model.convert.scfoundation import load_published
from scfm.model.performer import LinearAttention
from tests.parity.plain_scfoundation import (
    Plain,
    Shape,
    dense_values,
    random_weights,
    write_published,
)
from tests.toys import masked_cells, scfoundation_vocab

EMBEDDING, EXPRESSION = 2e-5, 1e-4  # largest absolute differences allowed
SHAPE = Shape()
DEPTHS = {"t4": lambda s: 4.0, "f2": lambda s: s + np.log10(2), "a1": lambda s: s + 1}


def shown(counts: np.ndarray, how: str) -> CellBatch:
    """Cells by hand: log1p(1e4) of the expressed genes, T and S as published."""
    n_genes, tokens = counts.shape[1], {"gene_ids": [], "values": []}
    for cell in counts:
        dense, genes = dense_values(cell, 0.0).double().numpy(), np.flatnonzero(cell)
        tokens["gene_ids"].append([n_genes, n_genes + 1, *genes])
        tokens["values"].append([DEPTHS[how](dense[-1]), dense[-1], *dense[genes]])
    total, n = counts.sum(1), sum(map(len, tokens["values"]))
    return CellBatch(
        gene_ids=np.concatenate(tokens["gene_ids"]).astype(np.int64),
        values=np.concatenate(tokens["values"]).astype(np.float32),
        offsets=np.cumsum([0, *map(len, tokens["values"])]).astype(np.int32),
        is_target=np.zeros(n, bool),
        target_values=np.zeros(n, np.float32),
        library_size=total.astype(np.float32),
        source_depth=np.log10(total).astype(np.float32),
        target_depth=DEPTHS[how](np.log10(total)) * np.ones(len(total), np.float32),
        cell_index=np.arange(len(counts)),
    ).map(torch.from_numpy)


def set_stabiliser(model, name):
    for module in model.modules():
        if isinstance(module, LinearAttention):
            module.stabiliser = name
    return model


@pytest.fixture(scope="module")
def oracle(shared_oracles):
    """The original's outputs, and the file they were made with."""
    if shared_oracles is None:
        pytest.skip("the original's outputs are not beside this checkout")
    folder = shared_oracles / "scfoundation"
    with np.load(folder / "expected.npz") as file:
        return folder / "models.ckpt", dict(file)


@pytest.fixture(scope="module", params=["cell", "rde", "gene"])
def of_key(request, oracle):
    """One of the file's models, converted, and what is expected."""
    path, expected = oracle
    return request.param, load_published(path, request.param), expected


@torch.no_grad()
@pytest.mark.parametrize("how", DEPTHS)
def test_embeddings_are_the_original_s(of_key, how):
    key, model, expected = of_key
    states = model(shown(expected["counts"], how))
    if key != "gene":
        for pooling in ("all", "max"):
            gap = np.abs(model.pool(states, pooling).numpy() - expected[f"{key}_{how}_{pooling}"])
            assert gap.max() <= EMBEDDING


@torch.no_grad()
@pytest.mark.parametrize("stabiliser", ["per_sample", "global"])
@pytest.mark.parametrize("batch", [1, 3])
def test_genes_are_the_original_s(oracle, stabiliser, batch):
    """One cell at a time under either stabiliser; together under the one that keeps cells apart."""
    path, expected = oracle
    model = set_stabiliser(load_published(path, "gene"), stabiliser)
    genes = torch.tensor(expected["gene_idx"])
    for first in range(0, 3, batch):
        some = slice(first, first + batch)
        cells = shown(expected["counts"][some], "t4")
        states = model(cells)
        gaps = [
            model.decode(cells, states, genes).numpy() - expected["gene_embedding_t4"][some],
            model.predict(cells, states).numpy() - expected["gene_expression_t4"][some],
        ]
        as_original = stabiliser == "per_sample" or batch == 1
        assert (np.abs(gaps[0]).max() <= EMBEDDING) == as_original
        assert (np.abs(gaps[1]).max() <= EXPRESSION) == as_original


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The network written plainly, and ours converted from the same weights."""
    weights = random_weights(SHAPE)
    path = write_published(tmp_path_factory.mktemp("plain") / "models.ckpt", SHAPE, cell=weights)
    return Plain(weights, SHAPE), load_published(path, "cell", scfoundation_vocab(SHAPE.n_genes))


@torch.no_grad()
@pytest.mark.parametrize("how", DEPTHS)
def test_embeddings_are_the_plain_network_s(plain, rng, how):
    theirs, ours = plain
    counts = rng.poisson(2, (4, SHAPE.n_genes)) * (rng.random((4, SHAPE.n_genes)) < 0.5)
    cells = shown(counts, how)
    states = ours(cells)
    for pooling in ("all", "max"):
        wanted = [
            theirs.embed(dense_values(cell, float(depth)), pooling)
            for cell, depth in zip(counts, cells.target_depth, strict=True)
        ]
        torch.testing.assert_close(
            ours.pool(states, pooling), torch.stack(wanted), rtol=0, atol=EMBEDDING
        )


@torch.no_grad()
@pytest.mark.parametrize("stabiliser", ["per_sample", "global"])
def test_masked_cells_are_the_plain_network_s(plain, rng, stabiliser):
    """All kinds of tokens: shown, masked, random, kept, zeros, dropped; batched."""
    theirs, ours = plain[0], set_stabiliser(plain[1], stabiliser)
    cells = masked_cells(rng, [14, 30, 7], SHAPE.n_genes)
    dense = as_dense(cells)
    together = [dense] if stabiliser == "global" else [[cell] for cell in dense]
    states = ours(cells)
    wanted = torch.cat([theirs.decode(some) for some in together])[:, : SHAPE.n_genes]
    torch.testing.assert_close(ours.decode(cells, states), wanted, rtol=0, atol=EXPRESSION)
    wanted = torch.cat([theirs.expression(some) for some in together])
    torch.testing.assert_close(ours.predict(cells, states), wanted, rtol=0, atol=EXPRESSION)


def as_dense(cells: CellBatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Values and masks over all positions, a cell each."""
    found = []
    for first, last in zip(cells.offsets[:-1], cells.offsets[1:], strict=True):
        values = torch.zeros(SHAPE.n_genes + 2)
        hidden = torch.zeros(SHAPE.n_genes + 2, dtype=torch.bool)
        values[cells.gene_ids[first:last]] = cells.values[first:last]
        hidden[cells.gene_ids[first:last]] = cells.hidden[first:last]
        found.append((values, hidden))
    return found


def test_the_plain_network_needs_every_weight(plain):
    """The control: a weight that was put in the wrong place would be seen."""
    theirs, ours = plain
    counts = np.random.default_rng(0).poisson(2, (1, SHAPE.n_genes)) + 1
    cells = shown(counts, "t4")
    dense = [(dense_values(counts[0], 4.0), torch.zeros(SHAPE.n_genes + 2, dtype=torch.bool))]
    with torch.no_grad():
        before = ours.predict(cells, ours(cells))
        for name, weight in theirs.w.items():
            if "calls" in name or "emb_" in name.split(".")[-2]:
                continue
            changed = Plain({**theirs.w, name: weight + 0.3 * torch.randn_like(weight)}, SHAPE)
            if name.endswith(("to_k.bias", "in_proj_bias")):
                continue  # softmax forgets a constant in the keys, wholly or nearly
            gap = (changed.expression(dense) - before).abs().max()
            assert gap > 10 * EXPRESSION, name


def test_alpha_is_folded_into_the_mix(tmp_path):
    """``alpha v + W v`` for another alpha than the released 1."""
    weights = random_weights(SHAPE)
    path = write_published(tmp_path / "models.ckpt", SHAPE, cell=weights)
    content = torch.load(path, weights_only=True)
    content["cell"]["config"]["model_config"]["mae_autobin"]["bin_alpha"] = 2.5
    torch.save(content, path)
    ours = load_published(path, "cell", scfoundation_vocab(SHAPE.n_genes))
    x = torch.tensor([0.0, 1.0, 2.5])
    plain = Plain(weights, SHAPE)
    v1 = torch.nn.functional.leaky_relu(plain.linear("token_emb.mlp", x[:, None]), 0.1)
    wanted = torch.softmax(2.5 * v1 + plain.linear("token_emb.mlp2", v1), dim=-1)
    torch.testing.assert_close(ours.value.of.weights(x), wanted, rtol=0, atol=1e-6)
