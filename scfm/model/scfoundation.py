"""scFoundation: an encoder of expressed genes, a decoder of all of them.

in   CellBatch: of every cell [T], [S], then genes ascending
out  CellStates of what the encoder sees; decoder states and log1p(cp10k) of any of the genes

Source: Hao et al. 2024, doi:10.1038/s41592-024-02305-7. Unlike the original's, a batch of cells
gives what each gives alone: there is no padding, and no cell's keys scale another's.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scfm.batch import CellBatch, CellStates
from scfm.errors import ModelError
from scfm.model import scfoundation_flops
from scfm.model.attention import Packing
from scfm.model.base import CellModel, offsets_of
from scfm.model.config import ScfoundationConfig
from scfm.model.embed import MaskedValue
from scfm.model.init import initialise
from scfm.model.performer import Chosen, PerformerDecoder
from scfm.model.postnorm import PostNormEncoder
from scfm.model.recompute import Recompute
from scfm.tokens.masking import N_SPECIALS, MaskConfig
from scfm.tokens.vocab import GeneVocab

MOST_AT_ONCE = 2**25  # numbers of the decoder's input, in inference: 3 cells of the 100m size


class ScfoundationModel(CellModel):
    """Post-norm encoder over shown expressed genes, Performer decoder over the whole vocabulary."""

    config_class = ScfoundationConfig
    base_model_prefix = "scfoundation"
    config: ScfoundationConfig
    poolings = ("all", "max", "mean", "S", "T")
    default_target_depth = "t4"

    def __init__(self, config: ScfoundationConfig, vocab: GeneVocab | None = None):
        super().__init__(config, vocab)
        if vocab is not None:
            check_layout(vocab)
        sizes = config.sizes
        self.position = nn.Embedding(config.n_tokens, sizes.d_model)
        self.value = MaskedValue(sizes.n_bins, sizes.d_model)
        self.encoder = PostNormEncoder(sizes)
        self.decoder_in = nn.Linear(sizes.d_model, sizes.d_decoder)
        self.decoder = PerformerDecoder(sizes)
        self.value_out = nn.Linear(sizes.d_decoder, 1)
        self.drawn: tuple[int, int] | None = None  # seed and number of the features' last draw
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.sizes)

    @property
    def token_config(self) -> MaskConfig:
        return MaskConfig(max_genes=self.config.max_genes)

    @property
    def n_positions(self) -> int:
        """What the decoder runs over: all genes, [T] and [S]."""
        return self.config.n_tokens - 1

    @property
    def n_genes(self) -> int:
        return self.n_positions - N_SPECIALS

    def forward(self, cells: CellBatch) -> CellStates:
        """Encode [T], [S] and the expressed genes that are shown. ``cell`` is the S state."""
        is_seen = seen(cells)
        packing = Packing(offsets_of(is_seen, cells.offsets))
        x = self.position(cells.gene_ids[is_seen]) + self.value.of(cells.values[is_seen])
        tokens = self.encoder(x, packing)
        cell = tokens[packing.offsets[:-1].long() + 1]
        return CellStates(tokens=tokens, offsets=packing.offsets, cell=cell)

    def predict_targets(
        self, cells: CellBatch, states: CellStates
    ) -> dict[str, Float[Tensor, " target"]]:
        """The targets' log1p(cp10k) at the depth asked for."""
        at = self._rows(cells)[cells.is_target]
        lengths = Packing(offsets_of(cells.is_target, cells.offsets)).lengths
        found = self._decoded(cells, states, Chosen(at, lengths), self._values)
        return {"decoder": torch.cat(list(found))}

    def decode(
        self, cells: CellBatch, states: CellStates, genes: Int[Tensor, " gene"] | None = None
    ) -> Float[Tensor, "cell gene d"]:
        """Context embeddings: the decoder's normed states of these genes (vocabulary ids), or all.

        In inference cells go through the decoder a few at a time, so memory beyond the answer does
        not grow with them; with the "global" stabiliser they must go together.
        """
        found = self._decoded(cells, states, self._choose(cells, genes), lambda x: x)
        return torch.cat(list(found)).unflatten(0, (cells.n_cells, -1))

    def predict(
        self, cells: CellBatch, states: CellStates, genes: Int[Tensor, " gene"] | None = None
    ) -> Float[Tensor, "cell gene"]:
        """log1p(cp10k) of these genes (vocabulary ids), or all, at the depth asked for."""
        found = self._decoded(cells, states, self._choose(cells, genes), self._values)
        return torch.cat(list(found)).unflatten(0, (cells.n_cells, -1))

    def _values(self, x: Float[Tensor, "query d"]) -> Float[Tensor, " query"]:
        return self.value_out(x).squeeze(-1)

    def _choose(self, cells: CellBatch, genes: Tensor | None) -> Chosen:
        device = cells.gene_ids.device
        genes = torch.arange(self.n_genes, device=device) if genes is None else genes.to(device)
        first = torch.arange(cells.n_cells, device=device) * self.n_positions
        return Chosen((first[:, None] + genes).flatten(), [len(genes)] * cells.n_cells)

    def _rows(self, cells: CellBatch) -> Int[Tensor, " token"]:
        """Row of every token in (cell x position)."""
        return Packing(cells.offsets).cell_of * self.n_positions + cells.gene_ids

    def _decoded(
        self,
        cells: CellBatch,
        states: CellStates,
        chosen: Chosen,
        read: Callable[[Tensor], Tensor],
    ) -> Iterator[Tensor]:
        """What ``read`` makes of the chosen positions' states, some cells at a time."""
        bounds = np.concatenate([[0], np.cumsum(chosen.lengths)])
        input_of = self._decoder_input(cells, states)
        for first, last in self._groups(cells.n_cells):
            at = chosen.at[bounds[first] : bounds[last]] - first * self.n_positions
            asked = Chosen(at, chosen.lengths[first:last])
            yield read(self.decoder(input_of(first, last), asked))

    def _groups(self, n_cells: int) -> list[tuple[int, int]]:
        sizes = self.config.sizes
        together = torch.is_grad_enabled() or sizes.stabiliser == "global"
        some = max(1, MOST_AT_ONCE // (self.n_positions * sizes.d_decoder))
        step = n_cells if together else some
        return [(first, min(first + step, n_cells)) for first in range(0, n_cells, max(1, step))]

    def _decoder_input(
        self, cells: CellBatch, states: CellStates
    ) -> Callable[[int, int], Float[Tensor, "cell position d"]]:
        """The decoder's input of any range of cells: encoded where seen, the mask where hidden,
        else a zero. A value that is there but hidden is for the decoder alone.

        The layer into the decoder is linear, so positions and the zero go through it once, not
        once a cell.
        """
        rows, is_seen, has_value = self._rows(cells), seen(cells), cells.values > 0
        is_told, is_masked = cells.hidden & has_value, cells.hidden & ~has_value
        bounds, encoded_bounds = cells.offsets.tolist(), states.offsets.tolist()
        weight = self.decoder_in.weight
        # float32 whatever autocast says: this is where the residual stream begins
        positions = self.decoder_in(self.position.weight[: self.n_positions]).float()
        unexpressed = positions + F.linear(self.value.zero, weight)
        mask = F.linear(self.value.masked, weight)

        def input_of(first: int, last: int) -> Tensor:
            own = slice(bounds[first], bounds[last])
            encoded = states.tokens[encoded_bounds[first] : encoded_bounds[last]]
            genes, at = cells.gene_ids[own], rows[own] - first * self.n_positions
            x = unexpressed.repeat(last - first, 1)
            told = F.linear(self.value.of(cells.values[own][is_told[own]]), weight)
            for is_here, value in (
                (is_seen[own], F.linear(encoded, weight)),
                (is_told[own], told),
                (is_masked[own], mask),
            ):
                x = x.index_copy(0, at[is_here], positions[genes[is_here]] + value)
            return x.unflatten(0, (last - first, -1))

        return input_of

    def batch_flops(
        self, visible: Int[Any, " cell"] | list[int], targets: Int[Any, " cell"] | list[int]
    ) -> float:
        """Operations of one forward and backward pass (scfm.model.scfoundation_flops)."""
        return scfoundation_flops.batch_flops(self.config.sizes, self.n_positions, visible, targets)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, which are sharded, compiled and recomputed one by one."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def recompute(self, how: Recompute) -> None:
        """Which activations of the blocks are made again in the backward pass."""
        self.encoder.recompute = self.decoder.recompute = how

    @torch.no_grad()
    def before_step(self, seed: int, step: int) -> None:
        """Draw the decoder's random features anew every ``redraw_every`` optimiser steps.

        What is drawn hangs on the seed, the number of the draw and the layer alone: a resumed run,
        or one on other numbers of processes, has the same features.
        """
        every = self.config.sizes.redraw_every
        draw = (seed, step // every if every else 0)
        if draw != self.drawn:
            n_layers = len(self.decoder.blocks)
            states = np.random.SeedSequence(list(draw)).generate_state(n_layers, np.uint32)
            self.decoder.redraw([int(state) for state in states])
            self.drawn = draw

    def width(self, how: str | None = None) -> int:
        """Length of the vector that `pool` makes of a cell."""
        d = self.config.sizes.d_model
        return 4 * d if self.checked_pooling(how) == "all" else d

    def pool(self, states: CellStates, how: str | None = None) -> Float[Tensor, "cell width"]:
        """One vector a cell.

        "all" is [S, T, max over genes, mean over genes], four times as wide; "max" is over genes
        and both depths, as released; "mean" over genes; "S" and "T" those states. A cell without
        a gene has the S state for a mean or max over genes.
        """
        how = self.checked_pooling(how)
        cells = states.tokens.split(Packing(states.offsets).lengths)
        return torch.stack([_pool_one(tokens, how) for tokens in cells])


def seen(cells: CellBatch) -> Bool[Tensor, " token"]:
    """What the encoder gets: [T] and [S] always, and every gene that is shown and expressed."""
    is_seen = ~cells.hidden & (cells.values > 0)
    first = cells.offsets[:-1].long()
    is_depth = torch.cat([first, first + 1])
    return is_seen.index_fill(0, is_depth, True)


def check_layout(vocab: GeneVocab) -> None:
    """Genes from id 0, then [T], [S], [PAD]. Raises ModelError."""
    wanted = ("[T]", "[S]", "[PAD]")
    if vocab.specials_before or vocab.specials_after != wanted:
        raise ModelError(
            f"An scFoundation vocabulary has its genes first and then {', '.join(wanted)}; this "
            f"one has {', '.join(vocab.specials_before) or 'nothing'} before its genes and "
            f"{', '.join(vocab.specials_after) or 'nothing'} after. Use GeneVocab.scfoundation()."
        )


def _pool_one(tokens: Float[Tensor, "token d"], how: str) -> Float[Tensor, " width"]:
    t, s, genes = tokens[0], tokens[1], tokens[N_SPECIALS:]
    if how in ("S", "T"):
        return s if how == "S" else t
    if how == "max":
        return tokens.amax(0)
    genes = genes if len(genes) else tokens[1:2]
    if how == "mean":
        return genes.mean(0)
    return torch.cat([s, t, genes.amax(0), genes.mean(0)])
