"""Where a model and an objective meet: the loss of one batch, and what is logged of it.

in   a model of any family, packed cells with targets
out  BatchLosses
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from scfm.batch import CellBatch
from scfm.model.attention import Packing
from scfm.model.base import CellModel
from scfm.model.scmulan import ScmulanModel
from scfm.objectives.regression import mean_squared_error
from scfm.objectives.sentence import EndTarget, Heads, TypeTarget, sentence_losses
from scfm.tokens.words import Words

# "loss", which is made small, and "loss_...", what it is made of: scalars. Of each guessed value
# "squared_error", "is_expressed" and "cell_of", for the loss by part (scfm.objectives.parts).
# A dict on purpose: fsdp looks for tensors in what is returned, and not into dataclasses.
BatchLosses = dict[str, torch.Tensor]


def guess_losses(
    model: CellModel, cells: CellBatch, weights: Mapping[str, float], zero_weight: float
) -> BatchLosses:
    """The squared error of the hidden genes' values, in each of the ways the model guesses them.

    The raw-depth value of hidden genes of a cell that may have been thinned: of the default family
    guessed twice, by asking the cell's other genes (query decoder) and from the cell's one state;
    of scFoundation once. The first of ``weights`` is the way whose errors are shown by part.
    """
    guesses = model.predict_targets(cells, model(cells))
    target = cells.target_values[cells.is_target]
    cell_of = Packing(cells.offsets).cell_of[cells.is_target]
    is_expressed = target > 0
    # 1 where all count alike: nothing to multiply by
    weight = None if zero_weight == 1 else torch.where(is_expressed, 1.0, zero_weight)
    losses = {
        way: mean_squared_error(guess, target, cell_of, cells.n_cells, weight)
        for way, guess in guesses.items()
    }
    main = guesses[next(iter(weights))]
    return {
        **{f"loss_{way}": loss for way, loss in losses.items()},
        "loss": torch.stack([weights[way] * loss for way, loss in losses.items()]).sum(),
        "squared_error": (main.float() - target).square().detach(),
        "is_expressed": is_expressed,
        "cell_of": cell_of,
    }


def said_losses(
    model: CellModel,
    cells: CellBatch,
    weights: Mapping[str, float],
    *,
    end_target: EndTarget,
    type_target: TypeTarget,
    metadata_weight: float,
) -> BatchLosses:
    """What it costs to say the words that follow each prompt (`scfm.objectives.sentence`).

    The errors shown by part are those of each said gene's value bin, in bins, when its turn comes.
    """
    assert isinstance(model, ScmulanModel), "sentences are of the scmulan family"
    words, states = model.words, model(cells).tokens
    task = cells.gene_ids[_last_of_prompt(cells)]
    # None where all count alike: nothing to multiply by
    word_weight = None if metadata_weight == 1 else _word_weight(words, metadata_weight, states)

    def measured(word_logits: Any, value_logits: Any) -> tuple[torch.Tensor, ...]:
        found = sentence_losses(
            states,
            cells.gene_ids,
            cells.target_values,
            cells.is_target,
            cells.offsets,
            Heads(word_logits, value_logits),
            end_target=end_target,
            type_target=type_target,
            end_id=words.end_id,
            is_annotation=task == words.annotate_id,
            word_weight=word_weight,
        )
        return tuple(found)

    by_word, by_value, squared_error, cell_of = model.with_heads(measured)
    is_gene = model.is_gene(cells.gene_ids[cells.is_target])
    return {
        "loss_words": by_word,
        "loss_values": by_value,
        "loss": weights["words"] * by_word + weights["values"] * by_value,
        "squared_error": squared_error[is_gene],
        "is_expressed": is_gene[is_gene],
        "cell_of": cell_of[is_gene],
    }


def _word_weight(words: Words, metadata_weight: float, like: torch.Tensor) -> torch.Tensor:
    """Of each word of the vocabulary: 1 for genes, ``metadata_weight`` for all others."""
    is_gene = words.is_gene(np.arange(len(words.vocab.tokens)))
    return torch.from_numpy(np.where(is_gene, 1.0, metadata_weight)).to(like.device, torch.float32)


def _last_of_prompt(cells: CellBatch) -> torch.Tensor:
    """Place of the task word, after which each cell's targets come."""
    before = torch.cat([cells.is_target.new_zeros(1, dtype=torch.int64), cells.is_target.cumsum(0)])
    return cells.offsets[1:].long() - before[cells.offsets.long()].diff() - 1
