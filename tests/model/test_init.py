"""Where weights begin. Oracle: the standard deviations of GPT-2's scheme, in closed form."""

import math

import pytest
import torch

from scfm.model.residual import IntoResidual
from tests.toys import toy_model, toy_scfoundation, toy_vocab


def writes_into_stream(model):
    return [module for module in model.modules() if isinstance(module, IntoResidual)]


@pytest.mark.parametrize("family", ["scfm", "scfoundation"])
def test_what_writes_into_the_residual_stream_begins_smaller(family):
    """Also through transformers, which sets each module's weights on its own."""
    if family == "scfm":
        model = toy_model(toy_vocab(400), d_model=64, n_layers=3, n_decoder_layers=2)
        depth, n_sublayers = 5, 10
    else:
        model = toy_scfoundation(400, d_decoder=64, n_decoder_layers=3)
        depth, n_sublayers = 3, 6
    sizes, found = model.config.sizes, writes_into_stream(model)
    assert len(found) == n_sublayers
    for module in found:
        wanted = sizes.initializer_range / math.sqrt(2 * depth)
        assert module.weight.std().item() == pytest.approx(wanted, rel=0.1)
    others = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.numel() > 2000]
    assert others
    usual = [m.weight.std().item() for m in others]
    assert sorted(usual)[len(usual) // 2] == pytest.approx(sizes.initializer_range, rel=0.1)
