"""The shape of a model of TF binding: everything but its tasks.

in   a run's YAML, or config.json of a model folder
out  BindingConfig

Two families. ``seqacc``: towers of DNA and of accessibility, fused. ``scfan``: the published
network, layer by layer; of the sizes it reads ``length``, ``n_tracks`` and the penalties alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

POOLED_BASES = 100  # bases a position of the last feature map stands for, over both pools
SMALL_POOL, LARGE_POOL = 4, 25


@dataclass(frozen=True, kw_only=True)
class BindingConfig:
    """The shape of a binding model.

    Attributes
    ----------
    length
        Bases of a window.
    n_tracks
        Rows of accessibility; 0 reads sequence alone.
    d_cell
        Width of the cell embedding that conditions the trunk; 0 for none.
    first_filters, first_kernel
        Of the first convolution, over the four bases.
    first_activation
        Of the first convolution only; those after it are ReLU. Exponential makes a filter either
        silent or loud, so that it becomes a whole motif even under a small pool.
    first_pool, second_pool
        None: a first pool of 4 after the exponential and of 25 after ReLU, which learns whole
        motifs only where it cannot tell from the positions within a pool; and a second one so that
        both together take 100 bases, as far as the window has them. Source: Koo & Eddy 2019,
        doi:10.1371/journal.pcbi.1007560; Koo & Ploenzke 2021, doi:10.1038/s42256-020-00291-x.
    track_filters, track_kernel
        Of the accessibility tower's convolution.
    d_model, kernel, n_blocks, is_dilated
        Width and kernel of the fused trunk, its residual blocks, and whether the n-th of them is
        dilated by 2^n.
    n_attention, n_heads
        Attention layers after the blocks, and their heads.
    pooling
        How positions become one vector: side by side, their mean or largest, or a mean by learned
        weights.
    d_hidden
        Width of the dense layer before the head; 0 for none.
    head
        "linear": weights of its own for each TF. "embedding": the dot product of the window's
        vector and a TF's embedding, of width ``d_task``.
    cell_dropout
        Share of windows that are shown the null embedding in training, so that the model works
        where no RNA was measured.
    conv_l2, dense_l1
        Penalties on weights, added to the loss.
    both_strands
        Whether predictions are the mean of the two strands'. The original scFAN reads one.
    """

    family: Literal["seqacc", "scfan"] = "seqacc"
    length: int = 1000
    n_tracks: int = 1
    d_cell: int = 0
    first_filters: int = 128
    first_kernel: int = 19
    first_activation: Literal["exponential", "relu"] = "exponential"
    first_pool: int | None = None
    second_pool: int | None = None
    track_filters: int = 32
    track_kernel: int = 19
    d_model: int = 128
    kernel: int = 5
    n_blocks: int = 3
    is_dilated: bool = True
    n_attention: int = 0
    n_heads: int = 4
    pooling: Literal["flatten", "mean", "max", "attention"] = "flatten"
    d_hidden: int = 256
    head: Literal["linear", "embedding"] = "linear"
    d_task: int = 64
    first_dropout: float = 0.1
    trunk_dropout: float = 0.1
    hidden_dropout: float = 0.5
    cell_dropout: float = 0.2
    conv_l2: float = 1e-6
    dense_l1: float = 0.0
    both_strands: bool = True

    def __post_init__(self) -> None:
        for name in ("length", "first_filters", "track_filters", "d_model", "n_heads", "d_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("n_tracks", "d_cell", "n_blocks", "n_attention", "d_hidden"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("first_kernel", "track_kernel", "kernel"):
            if getattr(self, name) % 2 != 1:
                raise ValueError(
                    f"model.{name} must be odd, so that it has a middle; got {getattr(self, name)}"
                )
        for name in ("first_dropout", "trunk_dropout", "hidden_dropout", "cell_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("conv_l2", "dense_l1"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"model.{name} must be at least 0, got {getattr(self, name)}")
        if self.family == "scfan":
            self._check_scfan()
        else:
            self._check_seqacc()

    @property
    def pools(self) -> tuple[int, int]:
        """The first and the second pool, in bases and in positions of the first."""
        small_or_large = SMALL_POOL if self.first_activation == "exponential" else LARGE_POOL
        first = self.first_pool or min(small_or_large, self.length)
        second = self.second_pool or max(1, min(POOLED_BASES, self.length) // first)
        return first, second

    @property
    def n_positions(self) -> int:
        """Positions of the last feature map."""
        first, second = self.pools
        return self.length // first // second

    def _check_seqacc(self) -> None:
        for name in ("first_pool", "second_pool"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"model.{name} must be at least 1, got {value}")
        if self.n_positions < 1:
            raise ValueError(
                f"model.first_pool and second_pool are {self.pools}: no position of a window of "
                f"{self.length} bases is left"
            )
        if self.n_attention and self.d_model % self.n_heads:
            raise ValueError(
                f"model.d_model ({self.d_model}) must divide by model.n_heads ({self.n_heads})"
            )

    def _check_scfan(self) -> None:
        if self.d_cell or self.head != "linear":
            raise ValueError(
                "model.family scfan is the published network, which has no cell embedding and a "
                "linear head; use family seqacc"
            )
        if self.length < 16:
            raise ValueError(
                f"model.length must be at least 16, which scfan pools; got {self.length}"
            )
