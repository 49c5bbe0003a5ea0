"""Token = what it is (gene) + how much of it (value).

in   vocabulary ids and values, packed
out  (n_tokens, d)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

LEAK = 0.1  # negative slope of the bin logits, as released with scFoundation


class ValueEmbedding(nn.Module):
    """A scalar as a soft mixture of ``n_bins`` learned vectors ("auto-discretisation").

    ``v1 = LeakyReLU(w1 x + b1); w = softmax(v1 + W2 v1 + b2); e = w @ E``, with a slope of 0.1.
    Source: xTrimoGene (Gong et al. 2023, arXiv:2311.15156), Hao et al. 2024,
    doi:10.1038/s41592-024-02305-7, with alpha = 1.
    """

    def __init__(self, n_bins: int, d: int):
        super().__init__()
        self.spread = nn.Linear(1, n_bins)
        self.mix = nn.Linear(n_bins, n_bins)
        self.bins = nn.Parameter(torch.empty(n_bins, d))

    def weights(self, values: Float[Tensor, " token"]) -> Float[Tensor, "token bin"]:
        """How much of each bin a value takes; rows sum to one."""
        # Written out rather than self.spread(...), which half precision would round: depths and
        # values differ in the third digit, bfloat16 has two.
        spread = values[:, None] * self.spread.weight[:, 0].float() + self.spread.bias.float()
        v1 = F.leaky_relu(spread, LEAK).to(self.mix.weight.dtype)
        return torch.softmax(v1 + self.mix(v1), dim=-1)

    def forward(self, values: Float[Tensor, " token"]) -> Float[Tensor, "token d"]:
        weights = self.weights(values)
        return weights @ self.bins.to(weights.dtype)


class MaskedValue(nn.Module):
    """What stands in a gene's place beside its position: its value's vector, or that of a mask.

    ``marks`` holds the mask and, as released, the padding, which nothing here ever reads.
    """

    def __init__(self, n_bins: int, d: int):
        super().__init__()
        self.of = ValueEmbedding(n_bins, d)
        self.marks = nn.Parameter(torch.empty(2, d))

    @property
    def masked(self) -> Float[Tensor, "1 d"]:
        return self.marks[:1]

    @property
    def zero(self) -> Float[Tensor, "1 d"]:
        """Of a gene that is not expressed: made once for all of them."""
        return self.of(torch.zeros(1, device=self.marks.device))


class TokenEmbedding(nn.Module):
    """Gene embedding plus value embedding. No positions: the order of genes cannot matter."""

    def __init__(self, n_tokens: int, n_bins: int, d: int):
        super().__init__()
        self.gene = nn.Embedding(n_tokens, d)
        self.value = ValueEmbedding(n_bins, d)

    def forward(
        self, gene_ids: Int[Tensor, " token"], values: Float[Tensor, " token"]
    ) -> Float[Tensor, "token d"]:
        return self.gene(gene_ids) + self.value(values)
