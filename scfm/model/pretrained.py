"""The default model: encoder over expressed genes, query decoder over targets.

in   CellBatch
out  CellStates, and log1p(cp10k) of the targets
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scfm.batch import CellBatch, CellStates
from scfm.model import flops
from scfm.model.attention import Packing
from scfm.model.base import CellModel, offsets_of
from scfm.model.config import ScfmConfig
from scfm.model.decoder import CellHead, QueryDecoder
from scfm.model.embed import TokenEmbedding
from scfm.model.encoder import Encoder
from scfm.model.init import initialise
from scfm.model.recompute import Recompute
from scfm.tokens.collate import N_SPECIALS, TokenConfig
from scfm.tokens.vocab import GeneVocab

Pooling = Literal["cell", "mean", "max", "S", "T"]


class ScfmModel(CellModel):
    """Encoder over expressed genes, query decoder over targets, a head on the cell state."""

    config_class = ScfmConfig
    base_model_prefix = "scfm"
    config: ScfmConfig
    poolings = get_args(Pooling)

    def __init__(self, config: ScfmConfig, vocab: GeneVocab | None = None):
        super().__init__(config, vocab)
        sizes = config.sizes
        self.embedding = TokenEmbedding(config.n_tokens, sizes.n_bins, sizes.d_model)
        self.encoder = Encoder(sizes)
        self.decoder = QueryDecoder(sizes)
        self.cell_head = CellHead(sizes)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.sizes)

    def forward(self, cells: CellBatch) -> CellStates:
        """Encode what may be seen: targets are left out before the first matrix product."""
        is_visible = ~cells.is_target
        visible = Packing(visible_offsets(cells))
        x = self.embedding(cells.gene_ids[is_visible], cells.values[is_visible])
        tokens = self.encoder(x, visible)
        cell = tokens[visible.offsets[:-1].long()]
        return CellStates(tokens=tokens, offsets=visible.offsets, cell=cell)

    def predict_targets(
        self, cells: CellBatch, states: CellStates
    ) -> dict[str, Float[Tensor, " target"]]:
        """The targets' log1p(cp10k): "query" by the decoder, "cell" from the cell state alone."""
        visible, targets = Packing(states.offsets), Packing(cells.offsets - states.offsets)
        genes = self.embedding.gene(cells.gene_ids[cells.is_target])
        first = states.offsets[:-1].long()
        depth = states.tokens[first + 1] + states.tokens[first + 2]
        by_query = self.decoder(genes, depth, states.tokens, targets, visible)
        # The cell head gets the depth as a number only: an encoded [T] would tell of the cell.
        wanted = cells.offsets[:-1].long() + 1
        bare_depth = self.embedding(cells.gene_ids[wanted], cells.values[wanted])
        by_cell = self.cell_head(states.cell, bare_depth, genes, targets.cell_of)
        return {"query": by_query, "cell": by_cell}

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, which are sharded, compiled and recomputed one by one."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def recompute(self, how: Recompute) -> None:
        """Which activations of the blocks are made again in the backward pass."""
        self.encoder.recompute = self.decoder.recompute = how

    @property
    def token_config(self) -> TokenConfig:
        return TokenConfig(max_genes=self.config.max_genes)

    def batch_flops(
        self, visible: Int[Any, " cell"] | list[int], targets: Int[Any, " cell"] | list[int]
    ) -> float:
        """Operations of one forward and backward pass (scfm.model.flops)."""
        return flops.batch_flops(self.config.sizes, visible, targets)

    def pool(self, states: CellStates, how: str | None = None) -> Float[Tensor, "cell d"]:
        """One vector a cell: the [CELL] state, the mean or max over genes, or the S or T state.

        A cell without a gene of the vocabulary has the [CELL] state for mean and max.
        """
        how = self.checked_pooling(how)
        if how == "cell":
            return states.cell
        first = states.offsets[:-1].long()
        if how in ("T", "S"):
            return states.tokens[first + ("T", "S").index(how) + 1]
        pooled = [
            _pool_genes(tokens, how)
            for tokens in states.tokens.split(Packing(states.offsets).lengths)
        ]
        return torch.stack(pooled)


def visible_offsets(cells: CellBatch) -> Tensor:
    """Where each cell's tokens lie once the targets are taken out."""
    return offsets_of(~cells.is_target, cells.offsets)


def _pool_genes(tokens: Tensor, how: str) -> Tensor:
    genes = tokens[N_SPECIALS:]
    if len(genes) == 0:
        return tokens[0]
    return genes.mean(0) if how == "mean" else genes.amax(0)
