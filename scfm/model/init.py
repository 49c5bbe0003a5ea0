"""Where every weight begins. The only place that draws one.

Normal with the sizes' ``initializer_range``; matrices that write into a pre-norm residual stream
are divided by sqrt(2 x depth) (Radford et al. 2019, GPT-2), so that its variance does not grow with
depth; norms at one, biases at zero. The value embedding's first layer is spread over the range
that log1p values take, so that the bins differ before anything is learned.

scFoundation differs in two ways. Its encoder norms after every sum, so depth needs no correction
there. And its decoder adds a gene's position and value vectors to encoder states of variance one:
those tables begin as unit normals (torch's default for an embedding, which the original kept), or a
masked gene, which has nothing else to be known by, would be lost beside the encoded ones.

scMulan is GPT-2's scheme throughout.
"""

import math

import torch
from torch import nn

from scfm.model.config import ModelSizes, ScfoundationSizes, ScmulanSizes
from scfm.model.embed import MaskedValue, ValueEmbedding
from scfm.model.performer import LinearAttention
from scfm.model.residual import IntoResidual

LARGEST_VALUE = 9.3  # log1p(1e4): the most a gene can be


@torch.no_grad()
def initialise(module: nn.Module, sizes: ModelSizes | ScfoundationSizes | ScmulanSizes) -> None:
    """Set one module's own parameters; transformers walks the tree, children first."""
    std, table_std = sizes.initializer_range, sizes.initializer_range
    depth = sizes.n_layers
    if isinstance(sizes, ModelSizes):
        depth += sizes.n_decoder_layers
    elif isinstance(sizes, ScfoundationSizes):
        table_std, depth = 1.0, sizes.n_decoder_layers
    if isinstance(module, nn.Linear):
        is_last = isinstance(module, IntoResidual)
        nn.init.normal_(module.weight, std=std / math.sqrt(2 * depth) if is_last else std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=table_std)
    elif isinstance(module, nn.RMSNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ValueEmbedding):
        nn.init.normal_(module.bins, std=table_std)
        nn.init.uniform_(module.spread.weight, -1.0, 1.0)
        nn.init.uniform_(module.spread.bias, -LARGEST_VALUE / 2, LARGEST_VALUE / 2)
    elif isinstance(module, MaskedValue):
        nn.init.normal_(module.marks, std=table_std)
    elif isinstance(module, LinearAttention):
        module.redraw()
