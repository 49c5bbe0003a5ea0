"""Which type a cell is: a linear layer on standardised features of the cell.

in   features (n_cells, n_features) as `CellModel.cell_features` makes them
out  a score a type (n_cells, n_types); which type is which stands in the model's config.json
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
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
        "embedding": that vector alone. "genes": the sum over the cell's genes of value times gene
        embedding, which passes by the encoder. "both", side by side.
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
    """Features of a cell, standardised as those of the training cells were -> a score a type."""

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: ClassifierSpec, n_features: int):
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.linear = nn.Linear(n_features, len(spec.labels))

    def forward(self, features: Float[Tensor, "cell feature"]) -> Float[Tensor, "cell type"]:
        # a feature that hardly varied must not be blown up by cells in which it does
        standard = (features.float() - self.mean) / self.scale
        return self.linear(standard.to(self.linear.weight.dtype)).float()

    @torch.no_grad()
    def know(
        self,
        mean: Float[Tensor, " feature"],
        scale: Float[Tensor, " feature"],
        weight: Float[Tensor, "type feature"],
        bias: Float[Tensor, " type"],
    ) -> "CellClassifier":
        """Take in what was found elsewhere, by a solver."""
        for own, found in (
            *((self.mean, mean), (self.scale, scale)),
            *((self.linear.weight, weight), (self.linear.bias, bias)),
        ):
            own.copy_(found)
        return self
