"""Which type a cell is: a linear layer on the cell's standardised vector, and a weight a gene.

in   vectors (n_cells, d) as `CellModel.pool` makes them; the cells' genes and their values
out  a score a type (n_cells, n_types); which type is which stands in the model's config.json

The weights a gene make a plain linear model of the expression profile, beside the encoder: what a
cell's one vector has no room for is not lost to the answer.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Features = Literal["both", "embedding", "genes"]


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """What a model's classifier says of a cell, and what it reads.

    Attributes
    ----------
    labels
        Names of the types, sorted.
    terms
        Their Cell Ontology ids, where they have one.
    label_key
        The obs column they are from.
    pooling
        Which of the model's vectors of a cell it reads.
    features
        "embedding": that vector alone. "genes": the values of the cell's genes alone, with no
        encoder. "both".
    """

    labels: tuple[str, ...]
    pooling: str
    features: Features = "both"
    label_key: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if list(self.labels) != sorted(set(self.labels)) or len(self.labels) < 2:
            raise ValueError(f"a classifier needs two sorted labels or more, got {self.labels}")
        if self.features not in get_args(Features):
            known = ", ".join(get_args(Features))
            raise ValueError(f"features is '{self.features}'; known are {known}")

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "ClassifierSpec":
        """From config.json. Raises TypeError, ValueError or KeyError for what is none."""
        return cls(**{**found, "labels": tuple(map(str, found["labels"]))})

    def to_dict(self) -> dict[str, Any]:
        """For config.json."""
        return {**asdict(self), "labels": list(self.labels), "terms": dict(self.terms)}


class CellClassifier(nn.Module):
    """Vectors standardised as those of the training cells were, and genes -> a score a type."""

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: ClassifierSpec, d: int, n_tokens: int):
        super().__init__()
        self.spec = spec
        n_types = len(spec.labels)
        self.bias = nn.Parameter(torch.zeros(n_types))
        self.linear = self.gene_weight = None
        if spec.features != "genes":
            self.register_buffer("mean", torch.zeros(d))
            self.register_buffer("scale", torch.ones(d))
            self.linear = nn.Linear(d, n_types, bias=False)
        if spec.features != "embedding":
            self.gene_weight = nn.Embedding(n_tokens, n_types)

    def forward(
        self,
        vectors: Float[Tensor, "cell d"],
        gene_ids: Int[Tensor, " token"],
        values: Float[Tensor, " token"],
        offsets: Int[Tensor, " bound"],
    ) -> Float[Tensor, "cell type"]:
        """``values`` are 0 for tokens that are no genes."""
        scores = self.bias.float().expand(len(offsets) - 1, -1)
        if self.linear is not None:
            standard = (vectors.float() - self.mean) / self.scale
            scores = scores + self.linear(standard.to(self.linear.weight.dtype)).float()
        if self.gene_weight is not None:
            weighted = self.gene_weight(gene_ids).float() * values.float()[:, None]
            # cell by cell, so that no sum hangs on batch mates
            lengths = offsets.diff().long()
            scores = scores + torch.segment_reduce(
                weighted, "sum", lengths=lengths, axis=0, unsafe=True
            )
        return scores

    @torch.no_grad()
    def know(self, found: Mapping[str, Tensor]) -> "CellClassifier":
        """Take in what was found elsewhere, by a solver: every weight and buffer by its name."""
        self.load_state_dict(dict(found))
        return self
