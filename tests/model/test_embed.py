"""The value embedding against worked numbers and its limits."""

import pytest
import torch

from scfm.model.embed import TokenEmbedding, ValueEmbedding


@pytest.fixture
def worked_example() -> ValueEmbedding:
    """Three bins, two dimensions: scFoundation's formula worked by hand."""
    embedding = ValueEmbedding(3, 2)
    with torch.no_grad():
        embedding.spread.weight.copy_(torch.tensor([[1.0], [-1.0], [0.5]]))
        embedding.spread.bias.copy_(torch.tensor([0.0, 0.5, -0.25]))
        embedding.mix.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0], [0.5, 0, -1]]))
        embedding.mix.bias.copy_(torch.tensor([0.0, 0.1, 0.2]))
        embedding.bins.copy_(torch.tensor([[1.0, 0], [0, 1], [2, -1]]))
    return embedding


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, [0.47987133, 0.52012873]),
        (1.0, [1.10261917, -0.10261922]),
        (2.5, [1.02385509, -0.02385515]),
    ],
)
def test_equals_worked_numbers(worked_example, value, expected):
    found = worked_example(torch.tensor([value]))[0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_weights_equal_worked_numbers(worked_example):
    weights = worked_example.weights(torch.tensor([0.0, 1.0]))
    expected = [[0.13938379, 0.69037247, 0.17024377], [0.71363997, 0.09187038, 0.19448960]]
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=0, atol=1e-6)


def test_gene_and_value_add_up():
    embedding = TokenEmbedding(7, 3, 4)
    torch.nn.init.normal_(embedding.value.bins)
    ids, values = torch.tensor([2, 2, 5]), torch.tensor([0.3, 1.2, 0.3])
    found = embedding(ids, values)
    amounts, genes = embedding.value(values), embedding.gene.weight
    torch.testing.assert_close(found[1] - found[0], amounts[1] - amounts[0])
    torch.testing.assert_close(found[2] - found[0], genes[5] - genes[2])
