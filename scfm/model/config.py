"""The sizes of a model, and the form in which transformers stores them (config.json).

in   sizes, from a run's YAML or a model folder
out  ModelSizes, ScfoundationSizes or ScmulanSizes for the modules, a CellConfig for the folder
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from transformers import PreTrainedConfig

Stabiliser = Literal["per_sample", "global"]


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Everything about an scfm model's shape but its vocabulary.

    Attributes
    ----------
    d_model, n_layers, n_heads
        Encoder width, depth and heads; ``d_model`` must divide by ``n_heads``.
    n_bins
        Soft bins of the value embedding (xTrimoGene's auto-discretisation, B).
    n_decoder_layers
        Cross-attention blocks of the query decoder.
    attention
        "auto", or one of scfm.model.attention.BACKENDS.
    """

    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 2
    n_bins: int = 100
    n_decoder_layers: int = 1
    dropout: float = 0.0
    initializer_range: float = 0.02
    attention: str = "auto"

    def __post_init__(self) -> None:
        if min(self.d_model, self.n_heads) < 1:
            raise ValueError("model.d_model and model.n_heads must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")
        if not self.initializer_range > 0:
            raise ValueError(
                f"model.initializer_range must be positive, got {self.initializer_range}"
            )
        if self.d_model % self.n_heads:
            raise ValueError(
                f"model.d_model ({self.d_model}) must divide by model.n_heads ({self.n_heads})"
            )
        if min(self.n_layers, self.n_decoder_layers, self.n_bins) < 1:
            raise ValueError("model.n_layers, n_decoder_layers and n_bins must be at least 1")

    @property
    def d_feedforward(self) -> int:
        """Hidden width of the gated layers: 8/3 of ``d_model``, up to a multiple of 16, so that
        their three matrices cost what two of four times the width do."""
        return 16 * -(-8 * self.d_model // 48)


@dataclass(frozen=True, kw_only=True)
class ScfoundationSizes:
    """Everything about an scFoundation model's shape but its vocabulary; defaults are the released.

    Attributes
    ----------
    d_model, n_layers, n_heads
        Encoder width, depth and heads; ``d_model`` must divide by ``n_heads``.
    d_decoder, n_decoder_layers, n_decoder_heads, d_head
        Decoder width, depth, heads and the width of a head, which need not multiply to
        ``d_decoder``.
    n_bins
        Soft bins of the value embedding.
    n_features
        Random features of a decoder head; None: ``int(d_head ln d_head)``, 266 for 64.
    redraw_every
        Optimiser steps between draws of new random features; 0: never.
    stabiliser
        What is subtracted in the exponent of the keys' features: the largest of their own cell
        ("per_sample") or of the whole batch ("global", as the original, whose results so hang on
        batch mates).
    dropout
        Of the encoder's layers in training: attention weights and both sublayers, as in
        torch.nn.TransformerEncoderLayer, whose default the original kept.
    attention
        "auto", or one of scfm.model.attention.BACKENDS; of the encoder.
    """

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_decoder: int = 512
    n_decoder_layers: int = 6
    n_decoder_heads: int = 8
    d_head: int = 64
    n_bins: int = 100
    n_features: int | None = None
    redraw_every: int = 1000
    stabiliser: Stabiliser = "per_sample"
    dropout: float = 0.1
    initializer_range: float = 0.02
    attention: str = "auto"

    def __post_init__(self) -> None:
        for name in (
            *("d_model", "n_layers", "n_heads", "d_decoder", "n_decoder_layers"),
            *("n_decoder_heads", "d_head", "n_bins"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"model.d_model ({self.d_model}) must divide by model.n_heads ({self.n_heads})"
            )
        if self.features < 1:
            raise ValueError(
                f"model.n_features must be at least 1, got {self.features} (d_head {self.d_head})"
            )
        if self.redraw_every < 0:
            raise ValueError(f"model.redraw_every must be at least 0, got {self.redraw_every}")
        if self.stabiliser not in get_args(Stabiliser):
            known = ", ".join(get_args(Stabiliser))
            raise ValueError(f"model.stabiliser is '{self.stabiliser}'; known are {known}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")
        if not self.initializer_range > 0:
            raise ValueError(
                f"model.initializer_range must be positive, got {self.initializer_range}"
            )

    @property
    def features(self) -> int:
        """Random features of a decoder head."""
        if self.n_features is not None:
            return self.n_features
        return int(self.d_head * math.log(self.d_head))


@dataclass(frozen=True, kw_only=True)
class ScmulanSizes:
    """Everything about an scMulan model's shape but its vocabulary; defaults are the released.

    Attributes
    ----------
    d_model, n_layers, n_heads
        Width, depth and heads; ``d_model`` must divide by ``n_heads``.
    n_bins
        Largest value a word can have; 0 is that of words that have none.
    bias
        Whether linear layers and norms have one.
    dropout
        Of attention weights, both sublayers and the embedding, in training.
    attention
        "auto", or one of scfm.model.attention.BACKENDS.
    """

    d_model: int = 1120
    n_layers: int = 24
    n_heads: int = 20
    n_bins: int = 10
    bias: bool = False
    dropout: float = 0.0
    initializer_range: float = 0.02
    attention: str = "auto"

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "n_bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"model.d_model ({self.d_model}) must divide by model.n_heads ({self.n_heads})"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")
        if not self.initializer_range > 0:
            raise ValueError(
                f"model.initializer_range must be positive, got {self.initializer_range}"
            )


class CellConfig(PreTrainedConfig):
    """config.json of a model folder, whatever the family.

    Attributes
    ----------
    n_tokens, vocab_hash
        Length of the vocabulary, special tokens included, and which one it is.
    max_genes
        Most genes of a cell seen in training; embedding takes all and says when that is more.
    architecture
        The family's sizes as a mapping.
    classifier
        What a fine-tuned model says of a cell (`scfm.model.classifier.ClassifierSpec`); None for
        a model that was not fine-tuned to say types.
    """

    n_tokens: int = 0
    vocab_hash: str = ""
    max_genes: int = 2048
    architecture: dict[str, Any] | None = None
    classifier: dict[str, Any] | None = None

    @property
    def sizes(self) -> ModelSizes | ScfoundationSizes | ScmulanSizes:
        raise NotImplementedError

    @classmethod
    def of(cls, sizes: Any, *, n_tokens: int, vocab_hash: str, max_genes: int) -> Self:
        return cls(
            n_tokens=n_tokens,
            vocab_hash=vocab_hash,
            max_genes=max_genes,
            architecture=asdict(sizes),
        )


class ScfmConfig(CellConfig):
    """config.json of the default family."""

    model_type = "scfm"

    @property
    def sizes(self) -> ModelSizes:
        return ModelSizes(**(self.architecture or {}))


class ScfoundationConfig(CellConfig):
    """config.json of the scFoundation family."""

    model_type = "scfoundation"

    @property
    def sizes(self) -> ScfoundationSizes:
        return ScfoundationSizes(**(self.architecture or {}))


class ScmulanConfig(CellConfig):
    """config.json of the scMulan family.

    Attributes
    ----------
    types
        How many type words an annotation says and from which columns, coarse first; () for a model
        that annotates nothing.
    """

    model_type = "scmulan"
    types: list[str] | None = None

    @property
    def sizes(self) -> ScmulanSizes:
        return ScmulanSizes(**(self.architecture or {}))
