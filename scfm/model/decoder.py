"""What the hidden genes are: asked gene by gene, of the cell's tokens or of its one state.

in   target gene ids, the cell's encoded tokens ([CELL] state for CellHead), the depth wanted
out  one value a target, log1p of counts per 10,000 at the target depth

Cost follows the number of targets, not the 19,000 genes of the vocabulary.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from scfm.model.attention import Packing
from scfm.model.blocks import CrossBlock
from scfm.model.config import ModelSizes
from scfm.model.recompute import Recompute, run_block


class QueryDecoder(nn.Module):
    """Query = gene embedding + depth; cross-attention to the encoder's states; a scalar out."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        d = sizes.d_model
        self.gene_in = nn.Linear(d, d, bias=False)
        self.depth_in = nn.Linear(d, d, bias=False)
        self.context_in = nn.Linear(d, d, bias=False)
        self.blocks = nn.ModuleList(
            CrossBlock(d, sizes.n_heads, sizes.d_feedforward, sizes.dropout, sizes.attention)
            for _ in range(sizes.n_decoder_layers)
        )
        self.norm = nn.RMSNorm(d, eps=1e-6)
        self.value_out = nn.Linear(d, 1)
        self.recompute: Recompute = "none"

    def forward(
        self,
        genes: Float[Tensor, "target d"],
        depth: Float[Tensor, "cell d"],
        context: Float[Tensor, "visible d"],
        targets: Packing,
        visible: Packing,
    ) -> Float[Tensor, " target"]:
        x = self.gene_in(genes) + self.depth_in(depth)[targets.cell_of]
        context = self.context_in(context)
        for block in self.blocks:
            x = run_block(block, self.recompute, x, context, targets, visible)
        return self.value_out(self.norm(x)).squeeze(-1)


class CellHead(nn.Module):
    """The same targets from the cell state, the gene and the depth wanted: a small MLP.

    Without it nothing presses the cell into [CELL]. Depth is given, as it is to the query decoder,
    and comes straight from the [T] token's embedding: were it not, it would be what [CELL] mostly
    held, since values in log1p(cp10k) hang on depth before anything else. The first layer is
    linear in all three, so it is computed once a cell and once a target and added.
    """

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        d = sizes.d_model
        self.cell_in = nn.Linear(d, d)
        self.depth_in = nn.Linear(d, d, bias=False)
        self.gene_in = nn.Linear(d, d, bias=False)
        self.hidden = nn.Linear(d, d)
        self.value_out = nn.Linear(d, 1)

    def forward(
        self,
        cell: Float[Tensor, "cell d"],
        depth: Float[Tensor, "cell d"],
        genes: Float[Tensor, "target d"],
        cell_of: Int[Tensor, " target"],
    ) -> Float[Tensor, " target"]:
        x = F.silu((self.cell_in(cell) + self.depth_in(depth))[cell_of] + self.gene_in(genes))
        return self.value_out(F.silu(self.hidden(x))).squeeze(-1)
