"""What a perturbation does to a cell: a small head on a frozen model's gene embeddings.

in   control cells (n_cells, n_genes) in log1p(cp10k), which genes are perturbed
out  the same cells, perturbed, in log1p(cp10k)

After GEARS (Roohani et al. 2024, doi:10.1038/s41587-023-01905-6), with the decoder's context
embeddings in the place of its gene nodes, as scFoundation uses it (Hao et al. 2024,
doi:10.1038/s41592-024-02305-7). Other than there:

- The graph of perturbed genes is of similar embeddings, not of shared GO terms: GO is no part of
  scfm, and an embedding exists for every gene of the vocabulary, measured or not.
- Gene embeddings are means over control cells; what is a cell's own comes in through its values.
  A cell's own embeddings would be n_genes x d_decoder numbers: 10 MB a cell at 5,000 genes.
- The perturbed gene itself is marked, LayerNorm stands for BatchNorm (a prediction must not hang
  on batch mates), and the last layer begins at zero: an untrained head predicts no change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scfm.tokens.vocab import GeneVocab


@dataclass(frozen=True, kw_only=True)
class PerturbationSizes:
    """A perturbation head's shape; the defaults are GEARS', but for the threshold.

    Attributes
    ----------
    d_model, d_cross
        Width of a gene's state, and of the state of all genes together.
    n_neighbours, coexpression_threshold
        A gene listens to at most so many others, of |Pearson's r| in control cells above this.
        GEARS has 0.4, which in shallow data leaves no edge.
    n_similar
        A perturbed gene is joined by so many of the most similar genes; 0: by none.
    """

    d_model: int = 64
    d_cross: int = 16
    n_neighbours: int = 20
    coexpression_threshold: float = 0.1
    n_similar: int = 20
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.d_model, self.d_cross, self.n_neighbours) < 1 or self.n_similar < 0:
            raise ValueError(
                "head.d_model, d_cross and n_neighbours must be at least 1, n_similar at least 0"
            )
        if not 0 <= self.coexpression_threshold < 1:
            raise ValueError(
                f"head.coexpression_threshold must be in [0, 1), got {self.coexpression_threshold}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"head.dropout must be in [0, 1), got {self.dropout}")


class PerturbedGenes(NamedTuple):
    """The genes some perturbations act on, once each."""

    positions: Int[Tensor, " target"]  # among the vocabulary's genes
    states: Float[Tensor, "target d_embedding"]  # own embedding and that of similar genes


class GeneGraph(NamedTuple):
    """To whom each gene listens, and how much; places not filled have weight 0."""

    neighbours: Int[Tensor, "gene neighbour"]
    weights: Float[Tensor, "gene neighbour"]


class PerturbationHead(nn.Module):
    """Control cells and perturbed genes -> perturbed cells.

    Attributes
    ----------
    vocab
        The genes that can be perturbed; saved and loaded with the head.
    genes
        Positions, among the vocabulary's genes, of those it predicts; ascending.
    embeddings
        Of every gene of the vocabulary, standardised over genes.
    control_mean
        Mean of the control cells it was trained with.
    provenance
        Data, split, settings, and which model the embeddings are from.
    """

    genes: Tensor
    embeddings: Tensor
    control_mean: Tensor
    neighbours: Tensor
    neighbour_weights: Tensor

    def __init__(
        self, sizes: PerturbationSizes, vocab: GeneVocab, *, n_genes: int, d_embedding: int
    ):
        super().__init__()
        self.sizes, self.vocab, self.provenance = sizes, vocab, {}
        d, k = sizes.d_model, min(sizes.n_neighbours, n_genes)
        self.register_buffer("genes", torch.zeros(n_genes, dtype=torch.long))
        self.register_buffer("embeddings", torch.zeros(vocab.n_genes, d_embedding))
        self.register_buffer("control_mean", torch.zeros(n_genes))
        self.register_buffer("neighbours", torch.zeros(n_genes, k, dtype=torch.long))
        self.register_buffer("neighbour_weights", torch.zeros(n_genes, k))
        self.gene = nn.Linear(d_embedding, d)
        self.message = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(1, d, bias=False)
        self.is_perturbed = nn.Parameter(torch.zeros(d))
        self.perturbation = _two_layers(d_embedding, d, d)
        self.combination = _two_layers(d, d, d)
        self.norm = nn.LayerNorm(d)
        self.recover = _two_layers(d, 2 * d, d)
        self.dropout = nn.Dropout(sizes.dropout)
        self.alone_weight = nn.Parameter(torch.randn(n_genes, d) / d**0.5)
        self.alone_bias = nn.Parameter(torch.zeros(n_genes))
        self.cross = _two_layers(n_genes, sizes.d_cross, sizes.d_cross)
        self.last_weight = nn.Parameter(torch.zeros(n_genes, 1 + sizes.d_cross))
        self.last_bias = nn.Parameter(torch.zeros(n_genes))

    @torch.no_grad()
    def know(
        self,
        genes: Int[Tensor, " gene"],
        embeddings: Float[Tensor, "vocabulary d_embedding"],
        control_mean: Float[Tensor, " gene"],
        graph: GeneGraph,
    ) -> "PerturbationHead":
        """Take in what is not learned: the genes, their embeddings, the mean cell, the graph."""
        self.genes.copy_(genes)
        self.embeddings.copy_(standardised(embeddings))
        self.control_mean.copy_(control_mean)
        self.neighbours.copy_(graph.neighbours)
        self.neighbour_weights.copy_(graph.weights)
        return self

    @torch.no_grad()
    def perturbed_genes(self, positions: Int[Tensor, " target"]) -> PerturbedGenes:
        """Each gene's own embedding plus the mean of the most similar genes', by cosine."""
        own = self.embeddings[positions]
        if self.sizes.n_similar == 0:
            return PerturbedGenes(positions, own)
        similarity = F.normalize(own, dim=-1) @ F.normalize(self.embeddings, dim=-1).T
        similarity.scatter_(1, positions[:, None], -2.0)  # not itself
        closest = similarity.topk(min(self.sizes.n_similar, self.vocab.n_genes - 1), dim=1)
        weights = closest.values.clamp_min(0)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-6)
        joined = (weights[..., None] * self.embeddings[closest.indices]).sum(1)
        return PerturbedGenes(positions, own + joined)

    def forward(
        self,
        control: Float[Tensor, "cell gene"],
        acts_on: Bool[Tensor, "cell target"],
        perturbed: PerturbedGenes,
    ) -> Float[Tensor, "cell gene"]:
        """Control cells after the perturbation of the genes that ``acts_on`` marks."""
        return control + self.change(control, acts_on.float(), perturbed)

    def change(
        self,
        control: Float[Tensor, "cell gene"],
        acts_on: Float[Tensor, "cell target"],
        perturbed: PerturbedGenes,
    ) -> Float[Tensor, "cell gene"]:
        """What is added to the control cells."""
        combined = self.combination(acts_on @ self.perturbation(perturbed.states))
        is_own = (perturbed.positions[:, None] == self.genes).float()
        state = self.gene_states() + combined[:, None] + self.value(control[..., None])
        state = state + (acts_on @ is_own)[..., None] * self.is_perturbed
        state = self.dropout(self.recover(self.norm(state)))
        alone = (state * self.alone_weight).sum(-1) + self.alone_bias
        together = self.cross(alone) @ self.last_weight[:, 1:].T
        return alone * self.last_weight[:, 0] + together + self.last_bias

    def gene_states(self) -> Float[Tensor, "gene d"]:
        """Embeddings after one round of messages over the co-expression graph."""
        own = self.gene(self.embeddings[self.genes])
        heard = (self.neighbour_weights[..., None] * own[self.neighbours]).sum(1)
        return own + F.relu(self.message(heard))


def coexpression_graph(
    correlation: Float[Tensor, "gene gene"], sizes: PerturbationSizes
) -> GeneGraph:
    """The strongest correlations of each gene, signed, weights of absolute sum one.

    ``correlation`` is Pearson's r over control cells; genes without variance have zeros.
    """
    r = correlation.clone().fill_diagonal_(0)
    n = min(sizes.n_neighbours, len(r))
    strongest = r.abs().topk(n, dim=1)
    weights = r.gather(1, strongest.indices)
    weights = torch.where(strongest.values > sizes.coexpression_threshold, weights, 0.0)
    return GeneGraph(
        strongest.indices, weights / weights.abs().sum(1, keepdim=True).clamp_min(1e-6)
    )


def standardised(embeddings: Float[Tensor, "gene d"]) -> Float[Tensor, "gene d"]:
    """Mean 0 and variance 1 over genes: what all genes share would make all of them similar."""
    centred = embeddings - embeddings.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp_min(1e-6)


def marks(
    combinations: Sequence[Sequence[int]], positions: Sequence[int]
) -> Bool[Tensor, "combination target"]:
    """Which of ``positions`` each combination of genes holds."""
    place = {position: i for i, position in enumerate(positions)}
    acts_on = torch.zeros(len(combinations), len(positions), dtype=torch.bool)
    for row, combination in enumerate(combinations):
        acts_on[row, [place[position] for position in combination]] = True
    return acts_on


def _two_layers(d_in: int, d_hidden: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_in, d_hidden), nn.ReLU(), nn.Linear(d_hidden, d_out))
