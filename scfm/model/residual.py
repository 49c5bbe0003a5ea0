"""The layer that writes into a pre-norm residual stream.

in   what a sublayer made of a token
out  what is added to the token
"""

from torch import nn


class IntoResidual(nn.Linear):
    """A linear layer whose weights begin smaller the more layers write into the stream.

    A class of its own so that `scfm.model.init` knows it: transformers hands it modules with
    weights of their own one by one, never the sublayer they belong to.
    """
