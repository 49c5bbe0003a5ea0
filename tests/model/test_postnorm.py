"""The packed post-norm encoder against torch's own, padded."""

import pytest
import torch
from torch import nn

from scfm.errors import ConfigError
from scfm.model.attention import Packing, attend
from scfm.model.postnorm import PostNormBlock

D, HEADS, LENGTHS = 12, 3, [5, 9, 1]


def same_blocks(dropout=0.0):
    """One of ours and torch's with the same weights."""
    torch.manual_seed(0)
    ours = PostNormBlock(D, HEADS, dropout, "auto").eval()
    theirs = nn.TransformerEncoderLayer(D, HEADS, 4 * D, dropout, batch_first=True).eval()
    pairs = {
        theirs.self_attn.out_proj: ours.out,
        theirs.norm1: ours.attention_norm,
        theirs.linear1: ours.expand,
        theirs.linear2: ours.contract,
        theirs.norm2: ours.feedforward_norm,
    }
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
        for target, source in pairs.items():
            for parameter, value in zip(target.parameters(), source.parameters(), strict=True):
                value.add_(0.3 * torch.randn_like(value))
                parameter.copy_(value)
    return ours, theirs


def test_equals_torch_s_layer_on_padded_cells():
    ours, theirs = same_blocks()
    x = torch.randn(sum(LENGTHS), D)
    packing = Packing(torch.tensor([0, 5, 14, 15], dtype=torch.int32))
    padded = nn.utils.rnn.pad_sequence(list(x.split(LENGTHS)), batch_first=True)
    is_padding = torch.arange(9)[None] >= torch.tensor(LENGTHS)[:, None]
    wanted = theirs(padded, src_key_padding_mask=is_padding)[~is_padding]
    torch.testing.assert_close(ours(x, packing), wanted, rtol=1e-5, atol=1e-5)


def test_dropout_is_in_training_alone_and_everywhere():
    ours, _ = same_blocks(dropout=0.5)
    x, packing = torch.randn(15, D), Packing(torch.tensor([0, 15], dtype=torch.int32))
    assert torch.equal(ours(x, packing), ours(x, packing))
    ours.train()
    assert not torch.equal(ours(x, packing), ours(x, packing))
    # of the attention weights too: the same rows, attended to twice, differ
    assert not torch.equal(ours.attention(x, packing), ours.attention(x, packing))


@pytest.mark.parametrize("backend", ["documents", "padded"])
def test_dropped_attention_weights_keep_their_mean(backend):
    torch.manual_seed(0)
    q, k = torch.randn(2, 400, 1, 4)
    packing = Packing(torch.tensor([0, 400], dtype=torch.int32))
    ones = torch.ones(400, 1, 4)
    found = attend(q, k, ones, packing, packing, backend=backend, dropout=0.5)
    assert found.std() > 0.02
    assert abs(float(found.mean()) - 1) < 0.02


def test_varlen_with_dropout_is_refused():
    q, packing = torch.randn(4, 1, 4), Packing(torch.tensor([0, 4], dtype=torch.int32))
    with pytest.raises(ConfigError, match="no dropout"):
        attend(q, q, q, packing, packing, backend="varlen", dropout=0.1)
