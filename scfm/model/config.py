"""The sizes of a model, and the form in which transformers stores them (config.json).

in   sizes, from a run's YAML or a model folder
out  ModelSizes for the modules, ScfmConfig for the folder
"""

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig


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


class ScfmConfig(PreTrainedConfig):
    """config.json of a model folder.

    Attributes
    ----------
    n_tokens, vocab_hash
        Length of the vocabulary, special tokens included, and which one it is.
    max_genes
        Most genes of a cell seen in training; embedding takes all and says when that is more.
    architecture
        ModelSizes as a mapping.
    """

    model_type = "scfm"

    n_tokens: int = 0
    vocab_hash: str = ""
    max_genes: int = 2048
    architecture: dict[str, Any] | None = None

    @property
    def sizes(self) -> ModelSizes:
        return ModelSizes(**(self.architecture or {}))

    @classmethod
    def of(
        cls, sizes: ModelSizes, *, n_tokens: int, vocab_hash: str, max_genes: int
    ) -> "ScfmConfig":
        return cls(
            n_tokens=n_tokens,
            vocab_hash=vocab_hash,
            max_genes=max_genes,
            architecture=asdict(sizes),
        )
