"""DNA and accessibility -> how likely each TF is bound, for windows of one strand.

in   sequence (n, 4, length), signal (n, track, length), for conditioned models a cell embedding
out  logits (n, task)

The mean over both strands is taken outside the module, by ``strand_mean``: a network that is run
twice inside another one cannot be attributed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scfm.batch import RegionBatch
from scfm.model.dna_config import BindingConfig
from scfm.model.dna_layers import (
    ConvLayer,
    DnaTower,
    Film,
    PositionMixer,
    ResidualBlock,
    TaskEmbeddings,
    TrackTower,
    pooling,
)
from scfm.model.dna_scfan import ScfanTrunk

Logits = Float[Tensor, "window task"]


class SeqaccTrunk(nn.Module):
    """A tower of DNA and one of accessibility, fused after the first pool; residual blocks."""

    def __init__(self, config: BindingConfig):
        super().__init__()
        first, second = config.pools
        self.dna = DnaTower(
            config.first_filters,
            config.first_kernel,
            config.first_activation,
            first,
            config.first_dropout,
        )
        width, d_model = config.first_filters, config.d_model
        self.tracks: nn.Module | None = None
        if config.n_tracks:
            self.tracks = TrackTower(
                config.n_tracks, config.track_filters, config.track_kernel, first
            )
            width += config.track_filters
        self.fuse = ConvLayer(width, d_model, config.kernel)
        dilations = [2**n if config.is_dilated else 1 for n in range(config.n_blocks)]
        self.blocks = nn.ModuleList(
            ResidualBlock(d_model, config.kernel, dilation, config.trunk_dropout)
            for dilation in dilations
        )
        n_films = 1 + config.n_blocks if config.d_cell else 0
        self.films = nn.ModuleList(Film(config.d_cell, d_model) for _ in range(n_films))
        self.mixers = nn.ModuleList(
            PositionMixer(d_model, config.n_heads, config.trunk_dropout)
            for _ in range(config.n_attention)
        )
        self.second_pool = nn.MaxPool1d(second)
        self.dropout = nn.Dropout(config.trunk_dropout)
        self.pool, width = pooling(config.pooling, d_model, config.n_positions)
        self.dense = _Dense(width, config.d_hidden, config.hidden_dropout)
        self.d_out = config.d_hidden or width

    def forward(
        self,
        sequence: Float[Tensor, "window 4 base"],
        signal: Float[Tensor, "window track base"],
        cell: Float[Tensor, "window d"] | None,
    ) -> Float[Tensor, "window hidden"]:
        x = self.dna(sequence)
        if self.tracks is not None:
            x = torch.cat([x, self.tracks(signal)], 1)
        x = self._conditioned(self.fuse(x), cell, 0)
        for number, block in enumerate(self.blocks, 1):
            x = self._conditioned(block(x), cell, number)
        for mixer in self.mixers:
            x = mixer(x)
        return self.dense(self.pool(self.dropout(self.second_pool(x))))

    def _conditioned(self, x: Tensor, cell: Tensor | None, number: int) -> Tensor:
        return x if cell is None else self.films[number](x, cell)


class _Dense(nn.Sequential):
    """Dense, norm, ReLU; nothing where the width is 0."""

    def __init__(self, d_in: int, d_out: int, dropout: float):
        if not d_out:
            super().__init__()
            return
        super().__init__(
            nn.Linear(d_in, d_out, bias=False),
            nn.BatchNorm1d(d_out),
            nn.ReLU(),
            nn.Dropout(dropout),
        )


class BindingModel(nn.Module):
    """A binding model of one strand.

    Attributes
    ----------
    config, tasks
        Its shape, and the TFs (or "TF:cell") that its logits are of, in order.
    provenance
        What made it.
    null_cell
        The embedding of cells whose RNA is not known.
    """

    def __init__(self, config: BindingConfig, tasks: tuple[str, ...]):
        super().__init__()
        if not tasks:
            raise ValueError("a binding model needs at least one task")
        self.config, self.tasks = config, tuple(tasks)
        self.provenance: dict[str, Any] = {}
        self.trunk = ScfanTrunk(config) if config.family == "scfan" else SeqaccTrunk(config)
        d_out, n_tasks = self.trunk.d_out, len(self.tasks)
        if config.head == "embedding":
            self.head = TaskEmbeddings(d_out, config.d_task, n_tasks)
        else:
            self.head = nn.Linear(d_out, n_tasks)
        self.null_cell = nn.Parameter(torch.zeros(config.d_cell)) if config.d_cell else None

    def forward(
        self,
        sequence: Float[Tensor, "window 4 base"],
        signal: Float[Tensor, "window track base"],
        cell: Float[Tensor, "window d"] | None = None,
        has_cell: Bool[Tensor, " window"] | None = None,
    ) -> Logits:
        """Logits of one strand.

        ``cell`` of None, or False in ``has_cell``: the null embedding, if the model knows cells
        at all; else both are not read.
        """
        dtype = self.head.bias.dtype
        sequence, signal = sequence.to(dtype), signal.to(dtype)
        if isinstance(self.trunk, ScfanTrunk):
            return self.head(self.trunk(sequence, signal))
        shown = None if self.null_cell is None else self._shown_cell(len(sequence), cell, has_cell)
        return self.head(self.trunk(sequence, signal, shown))

    def _shown_cell(
        self, n: int, cell: Tensor | None, has_cell: Tensor | None
    ) -> Float[Tensor, "window d"]:
        null = self.null_cell
        assert null is not None
        if cell is None:
            return null.expand(n, -1)
        is_known = torch.ones(n, 1, dtype=torch.bool, device=cell.device)
        if has_cell is not None:
            is_known = has_cell[:, None]
        if self.training and self.config.cell_dropout:
            is_kept = torch.rand(n, 1, device=cell.device) >= self.config.cell_dropout
            is_known = is_known & is_kept
        return torch.where(is_known, cell.to(null.dtype), null)

    @torch.no_grad()
    def expect(self, prevalence: Float[Tensor, " task"]) -> None:
        """Begin at the log odds of how often each TF is bound; not at one in two."""
        self.head.bias.copy_(torch.logit(prevalence.clamp(1e-4, 1 - 1e-4)))

    def penalty(self) -> Float[Tensor, ""]:
        """What the weights add to the loss: squares of the convolutions', sizes of the dense."""
        convs = [m.weight for m in self.modules() if isinstance(m, nn.Conv1d)]
        dense = [m.weight for m in self.modules() if isinstance(m, nn.Linear)]
        total = convs[0].new_zeros(())
        if self.config.conv_l2:
            total = total + self.config.conv_l2 * sum(w.square().sum() for w in convs)
        if self.config.dense_l1:
            total = total + self.config.dense_l1 * sum(w.abs().sum() for w in dense)
        return total


def with_cells(model: BindingModel, d_cell: int) -> BindingModel:
    """The same model, made to read a cell embedding; as yet it gives the same logits."""
    conditioned = BindingModel(replace(model.config, d_cell=d_cell), model.tasks)
    missing = conditioned.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert all(name == "null_cell" or name.startswith("trunk.films.") for name in missing)
    conditioned.provenance = dict(model.provenance)
    return conditioned


def reverse_complement(batch: RegionBatch) -> RegionBatch:
    """The other strand of the same windows: bases and accessibility from the other end."""
    return replace(
        batch,
        # A, C, G, T backwards is T, G, C, A: each base's complement
        sequence=batch.sequence.flip(1, 2),
        signal=batch.signal.flip(2),
    )


def strand_logits(model: Callable[..., Logits], batch: RegionBatch) -> Logits:
    """Logits of the strand that the batch holds."""
    return model(batch.sequence, batch.signal, batch.cell, batch.has_cell)


def strand_mean(model: Callable[..., Logits], batch: RegionBatch) -> Logits:
    """The mean logits of both strands: the same whichever of them a file holds."""
    other = strand_logits(model, reverse_complement(batch))
    return (strand_logits(model, batch) + other) / 2


def binding_logits(model: BindingModel, batch: RegionBatch) -> Logits:
    """Logits as the model's config has them: of both strands, or of the one given."""
    of_strands = strand_mean if model.config.both_strands else strand_logits
    return of_strands(model, batch)
