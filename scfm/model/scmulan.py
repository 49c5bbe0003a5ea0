"""scMulan: a cell as a sentence of words with values, and a model that says the next word.

in   CellBatch: sentences, the words in the order they are said; values are bins
out  CellStates; logits of the next word, and the value it would have

Source: Bian et al. 2024, scMulan, doi:10.1101/2024.01.25.577152. No positions, as released:
what a word may look at is all that its place means.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from scfm.batch import CellBatch, CellStates
from scfm.errors import ConfigError, ModelError
from scfm.model import scmulan_flops
from scfm.model.attention import Packing
from scfm.model.base import CellModel
from scfm.model.causal import CausalDecoder
from scfm.model.config import ScmulanConfig, ScmulanSizes
from scfm.model.generate import complete
from scfm.model.init import initialise
from scfm.model.recompute import Recompute
from scfm.model.sampling import Decoding
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.words import END, Words

WordLogits = Callable[[Tensor], Tensor]  # (n, d) -> (n, word)
ValueLogits = Callable[[Tensor, Tensor], Tensor]  # (n, d), ids of k words -> (n, k)


class Head(nn.Linear):
    """A linear layer that may also lend its weight to a function, for the time of one call.

    Strategies that shard weights gather them when a module is called, and every process must call
    as often: one that uses a head as often as it has cells must borrow its weight once.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, asked: Tensor | Callable[[Tensor], Any]
    ) -> Any:
        return F.linear(asked, self.weight) if isinstance(asked, Tensor) else asked(self.weight)


class ScmulanModel(CellModel):
    """Causal decoder over words, a head for the next word and one for its value."""

    config_class = ScmulanConfig
    base_model_prefix = "scmulan"
    config: ScmulanConfig
    poolings = ("type", "prompt", "mean")
    end_id = 0

    def __init__(self, config: ScmulanConfig, vocab: GeneVocab | None = None):
        super().__init__(config, vocab)
        if vocab is not None:
            check_layout(vocab)
        sizes = config.sizes
        self.word = nn.Embedding(config.n_tokens, sizes.d_model)
        self.value = nn.Embedding(sizes.n_bins + 1, sizes.d_model)
        self.dropout = nn.Dropout(sizes.dropout)
        self.decoder = CausalDecoder(sizes)
        self.word_head = Head(sizes.d_model, config.n_tokens, bias=False)
        self.value_head = Head(sizes.d_model, config.n_tokens, bias=False)
        self.post_init()

    @classmethod
    def from_scratch(
        cls,
        vocab: GeneVocab,
        sizes: ScmulanSizes,
        *,
        max_genes: int = 1550,
        types: tuple[str, ...] = (),
    ) -> "ScmulanModel":
        """A fresh model. Draws from torch's global generator.

        ``types`` are the columns of the type words that an annotation says, coarse first.
        """
        config = ScmulanConfig.of(
            sizes, n_tokens=len(vocab), vocab_hash=vocab.hash, max_genes=max_genes
        )
        config.types = list(types)
        return cls(config, vocab)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.sizes)

    @property
    def types(self) -> tuple[str, ...]:
        """Columns of the type words that an annotation says, coarse first."""
        return tuple(self.config.types or ())

    def forward(self, cells: CellBatch) -> CellStates:
        """States after the last norm at every word; ``cell`` is that of each cell's last word."""
        packing = Packing(cells.offsets)
        x = self.dropout(self.embed_words(cells.gene_ids, cells.values))
        tokens = self.decoder(x, packing)
        cell = tokens[cells.offsets[1:].long() - 1]
        return CellStates(tokens=tokens, offsets=cells.offsets, cell=cell)

    def embed_words(
        self, words: Int[Tensor, " token"], values: Float[Tensor, " token"]
    ) -> Float[Tensor, "token d"]:
        """What is said plus how much of it; ``values`` are bins, 0 to ``n_bins``."""
        return self.word(words) + self.value(values.long())

    def word_logits(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n word"]:
        """Of each word of the vocabulary: how likely it is among those still to be said."""
        return self.word_head(states)

    def value_logits(
        self, states: Float[Tensor, "n d"], words: Int[Tensor, " word"] | None = None
    ) -> Float[Tensor, "n chosen"]:
        """The value that each word would have, in bins but not rounded; of ``words``, or all."""
        if words is None:
            return self.value_head(states)
        return self.value_head(lambda weight: F.linear(states, weight[words]))

    def with_heads(self, function: Callable[[WordLogits, ValueLogits], Any]) -> Any:
        """What a function makes of both heads, which it may ask as often as it likes.

        It gets ``word_logits`` and ``value_logits`` of the states it hands over, and returns
        tensors, one or a tuple.
        """

        def borrowed(words: Tensor, values: Tensor) -> Any:
            return function(
                lambda states: F.linear(states, words),
                lambda states, chosen: F.linear(states, values[chosen]),
            )

        return self.word_head(lambda w: self.value_head(lambda v: borrowed(w, v)))

    def values_of(
        self, states: Float[Tensor, "cell d"], words: Int[Tensor, " cell"]
    ) -> Float[Tensor, " cell"]:
        """The bin of one word a state: rounded, within 0 to ``n_bins``; 0 where it is no gene.

        The original asks the head for other words too, which were trained to be 0.
        """
        weight = self.value_head.weight[words].float()
        found = (states.float() * weight).sum(1).round()
        # what is no more than zero becomes 0, not -0
        is_bin = self.is_gene(words) & (found > 0)
        return torch.where(is_bin, found.clamp(max=self.config.sizes.n_bins), 0.0)

    def is_gene(self, words: Int[Tensor, " *n"]) -> Tensor:
        """Whether each id is a gene's."""
        vocab = self._known_vocab
        return (words >= vocab.gene_start) & (words < vocab.gene_start + vocab.n_genes)

    @property
    def _known_vocab(self) -> GeneVocab:
        if self.vocab is None:
            raise ModelError("This model has no vocabulary; build it with from_scratch.")
        return self.vocab

    def predict_targets(
        self, cells: CellBatch, states: CellStates
    ) -> dict[str, Float[Tensor, " target"]]:
        """Not of this family: a word is guessed from what was said before it (`word_logits`)."""
        raise ModelError(
            "A scmulan model says words with bins of expression; it does not predict the "
            "expression of given genes. Use a model of the scfm or scfoundation family for that, "
            "or scfm generate."
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, which are sharded, compiled and recomputed one by one."""
        return list(self.decoder.blocks)

    def recompute(self, how: Recompute) -> None:
        """Which activations of the blocks are made again in the backward pass."""
        self.decoder.recompute = how

    @cached_property
    def words(self) -> Words:
        """What the vocabulary's words mean. ModelError for one without words."""
        return Words(self._known_vocab, self.types)

    @property
    def token_config(self) -> SentenceConfig:
        """How cells become annotation prompts."""
        return SentenceConfig(
            columns=tuple(self.words.columns),
            types=self.types,
            n_bins=self.config.sizes.n_bins,
            max_genes=self.config.max_genes,
        )

    def batch_flops(
        self, visible: Int[Any, " cell"] | list[int], targets: Int[Any, " cell"] | list[int]
    ) -> float:
        """Operations of one forward and backward pass (scfm.model.scmulan_flops)."""
        sizes, n_words = self.config.sizes, self.config.n_tokens
        return scmulan_flops.batch_flops(sizes, n_words, visible, targets)

    def pool(self, states: CellStates, how: str | None = None) -> Float[Tensor, "cell d"]:
        """One vector a cell from an annotation prompt's states: genes, then the task word.

        "prompt" is the state of the last word, "mean" the mean over all before it, or again the
        last where there is none. "type" is of a word that is not yet said: `embed` says it.
        """
        how = self.checked_pooling(how)
        if how == "type":
            raise ConfigError("pooling 'type' needs a word to be said first; use model.embed.")
        if how == "prompt":
            return states.cell
        cells = states.tokens.split(Packing(states.offsets).lengths)
        return torch.stack([own[:-1].mean(0) if len(own) > 1 else own[-1] for own in cells])

    def embed(self, cells: CellBatch, how: str | None = None) -> Float[Tensor, "cell d"]:
        """One vector a cell of annotation prompts; "type" is the state at the first type word.

        That word is the likeliest of its column's, as released; ConfigError for a model that knows
        no type words.
        """
        if self.checked_pooling(how) != "type":
            return self.pool(self(cells), how)
        say = Decoding(max_words=1, top_k=1, allowed=(self.type_ids(0),))
        return complete(self, cells, say, keep=1).states[:, 0]

    def type_ids(self, number: int) -> tuple[int, ...]:
        """Ids of the type words that may be said ``number``-th. ConfigError where there is none."""
        if number >= len(self.types):
            raise ConfigError(
                f"This model says {len(self.types)} type words; asked for number {number + 1}. "
                "For an embedding take --pooling prompt."
            )
        return self.words.type_ids(self.types[number])


def check_layout(vocab: GeneVocab) -> None:
    """The end word at id 0, then genes, then words. Raises ModelError."""
    if vocab.specials_before != (END,):
        raise ModelError(
            f"A vocabulary of words has {END} alone before its genes; this one has "
            f"{', '.join(vocab.specials_before) or 'nothing'}. Use GeneVocab.scmulan(), or one "
            "that a scmulan run built from its data."
        )
