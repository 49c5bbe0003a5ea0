"""scFAN's network, layer by layer.

in   DNA, accessibility tracks, and the same tracks reversed in position
out  logits, one a TF

Source: sperfu/scFAN, model/GM12878/model.json (Fu et al. 2020, doi:10.1126/sciadv.aba9031). Its
third convolution is listed with 480 filters and built with 240; so here. The original ends in a
sigmoid, which here is the loss's.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scfm.model.dna_config import BindingConfig

FILTERS, KERNEL, POOL, HIDDEN = (160, 240, 240), 8, 4, 919
DROPOUTS = (0.2, 0.2, 0.5)
# Keras pads an even kernel by one more at the end than at the beginning.
PADDING = ((KERNEL - 1) // 2, KERNEL // 2)


class ScfanTrunk(nn.Module):
    """Three convolutions and a dense layer of 919, after DeepSEA."""

    def __init__(self, config: BindingConfig):
        super().__init__()
        widths = (4 + 2 * config.n_tracks, *FILTERS)
        pools: tuple[nn.Module, ...] = (nn.MaxPool1d(POOL), nn.MaxPool1d(POOL), nn.Identity())
        layers = zip(widths[:-1], widths[1:], pools, DROPOUTS, strict=True)
        self.convs = nn.ModuleList(nn.Sequential(*_layer(*layer)) for layer in layers)
        self.flatten = nn.Flatten()
        n_positions = config.length // POOL // POOL
        self.dense = nn.Linear(FILTERS[-1] * n_positions, HIDDEN)
        self.activation = nn.ReLU()
        self.d_out = HIDDEN

    def forward(
        self, sequence: Float[Tensor, "window 4 base"], signal: Float[Tensor, "window track base"]
    ) -> Float[Tensor, "window d"]:
        x = torch.cat([sequence, signal, signal.flip(2)], 1)
        for conv in self.convs:
            x = conv(x)
        return self.activation(self.dense(self.flatten(x)))


def _layer(d_in: int, d_out: int, pool: nn.Module, dropout: float) -> tuple[nn.Module, ...]:
    return (
        nn.ConstantPad1d(PADDING, 0.0),
        nn.Conv1d(d_in, d_out, KERNEL),
        nn.BatchNorm1d(d_out, eps=1e-3, momentum=0.01),  # as Keras has them
        nn.ReLU(),
        pool,
        nn.Dropout(dropout),
    )
