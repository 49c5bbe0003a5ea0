"""Visible tokens -> hidden states. Targets never enter.

in   token embeddings (n_visible, d), packed
out  hidden states of the same shape, normalised
"""

from jaxtyping import Float
from torch import Tensor, nn

from scfm.model.attention import Packing
from scfm.model.blocks import SelfBlock
from scfm.model.config import ModelSizes
from scfm.model.recompute import Recompute, run_block


class Encoder(nn.Module):
    """A stack of self-attention blocks and a last norm."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.blocks = nn.ModuleList(
            SelfBlock(
                sizes.d_model, sizes.n_heads, sizes.d_feedforward, sizes.dropout, sizes.attention
            )
            for _ in range(sizes.n_layers)
        )
        self.norm = nn.RMSNorm(sizes.d_model, eps=1e-6)
        self.recompute: Recompute = "none"

    def forward(self, x: Float[Tensor, "token d"], cells: Packing) -> Float[Tensor, "token d"]:
        for block in self.blocks:
            x = run_block(block, self.recompute, x, cells)
        return self.norm(x)
