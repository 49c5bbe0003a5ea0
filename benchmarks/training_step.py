"""Useful tokens per second of a training step, against a Hugging Face BERT encoder.

One JSON line on stdout. Both sides have the width, depth and heads of a preset and train on the
same cells: forward, backward, gradient clipping, AdamW, in float32. BERT gets a batch padded to
its longest cell, as its collator would; scfm gets it packed. Rounds are interleaved in one
process; a round is a new random batch, the same for both.

A useful token is an expressed gene of a cell (of at most ``max_genes``, drawn alike for both).
Special tokens, padding and scfm's drawn zeros are work, but not counted; cells are not thinned, so
both sides see as many genes.

    python benchmarks/training_step.py [--config scfm-3m] [--rounds 5]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import transformers
from measure import N_GENES, report, spread, synthetic_batches
from torch import nn

from scfm.batch import CellBatch
from scfm.config import load_config
from scfm.model.pretrained import ScfmModel
from scfm.tasks.pretrain_module import PretrainModule
from scfm.tasks.pretrain_run import PretrainRun
from scfm.tokens.collate import N_SPECIALS, Tokenizer
from scfm.tokens.rng import cell_keys
from scfm.tokens.vocab import GeneVocab
from scfm.train.optim import build_optimizer

BATCH = 64


class AllGenes:
    """Column i is gene i."""

    column_to_gene = np.arange(N_GENES, dtype=np.int32)
    measured = np.arange(N_GENES, dtype=np.int32)


class PaddedBert(nn.Module):
    """BERT's encoder over gene ids and values, a scalar a token out; the same targets."""

    def __init__(self, run: PretrainRun, n_tokens: int, longest: int):
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=n_tokens,
            hidden_size=run.model.d_model,
            num_hidden_layers=run.model.n_layers,
            num_attention_heads=run.model.n_heads,
            intermediate_size=4 * run.model.d_model,
            max_position_embeddings=longest,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config._attn_implementation = "sdpa"
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.value_in = nn.Linear(1, run.model.d_model)
        self.value_out = nn.Linear(run.model.d_model, 1)

    def loss(self, cells: CellBatch) -> torch.Tensor:
        """Squared error on the hidden genes; their values are shown as zero."""
        ids, values, targets, is_target, is_token = padded(cells)
        words = self.bert.embeddings.word_embeddings(ids) + self.value_in(values[..., None])
        states = self.bert(inputs_embeds=words, attention_mask=is_token).last_hidden_state
        predicted = self.value_out(states[is_target]).squeeze(-1)
        return (predicted - targets[is_target]).square().mean()


def padded(cells: CellBatch) -> tuple[torch.Tensor, ...]:
    """The expressed genes of each cell as rows, padded to the longest; drawn zeros left out."""
    is_used = ~cells.is_target | (cells.target_values > 0)
    rows = []
    for array in (cells.gene_ids, cells.values, cells.target_values, cells.is_target):
        parts = [
            array[a:b][is_used[a:b]][N_SPECIALS:]
            for a, b in zip(cells.offsets[:-1], cells.offsets[1:], strict=True)
        ]
        rows.append(nn.utils.rnn.pad_sequence(parts, batch_first=True))
    return (*rows, rows[0] != 0)


def main() -> None:
    """Measure both sides and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="scfm-3m")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    run = load_config(PretrainRun, asked.config)
    run = replace(run, tokens=replace(run.tokens, downsample_probability=0.0))
    names = tuple(f"G{i}" for i in range(N_GENES))
    vocab = GeneVocab(symbols=names, ensembl_ids=("",) * N_GENES)
    tokenizer = Tokenizer(vocab, AllGenes(), run.tokens)
    rows = synthetic_batches(np.random.default_rng(0), BATCH * (asked.rounds + 1), BATCH)
    batches = [
        tokenizer.training(r, cell_keys(0, 0, r.cell_index)).map(torch.from_numpy) for r in rows
    ]
    torch.manual_seed(0)
    ours = PretrainModule(ScfmModel.from_scratch(vocab, run.model), run.objective, run.optim)
    theirs = PaddedBert(run, len(vocab), run.tokens.max_genes)
    sides: dict[str, tuple[nn.Module, Callable[[CellBatch], torch.Tensor]]] = {
        "ours": (ours, lambda cells: ours.losses(cells)["loss"]),
        "bert": (theirs, theirs.loss),
    }
    steps = {name: training_step(module, loss, run) for name, (module, loss) in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number, cells in enumerate(batches):
        for name, step in steps.items():
            seconds = timed(step, cells)
            if number:  # the first round warms up
                rates[name].append(useful_tokens(cells) / seconds)
    ratios = [a / b for a, b in zip(rates["ours"], rates["bert"], strict=True)]
    lengths = np.concatenate([expressed_lengths(cells) for cells in batches[1:]])
    report(
        {
            "what": f"training step of {asked.config}, packed, against padded BERT",
            "unit": "useful tokens per second (median, min, max)",
            "ours": spread(rates["ours"]),
            "bert": spread(rates["bert"]),
            "ratio": round(float(np.median(ratios)), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "rounds": asked.rounds,
            "input": {
                "cells": BATCH,
                "genes_per_cell": round(float(lengths.mean())),
                "longest": int(lengths.max()),
                "encoder": vars(run.model),
                "precision": "float32",
            },
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    )


def training_step(
    module: nn.Module, loss: Callable[[CellBatch], torch.Tensor], run: PretrainRun
) -> Callable[[CellBatch], None]:
    """Forward, backward, clip, AdamW: the same for both sides."""
    optimizer, _ = build_optimizer(module, run.optim, 1000)

    def step(cells: CellBatch) -> None:
        loss(cells).backward()
        nn.utils.clip_grad_norm_(module.parameters(), run.optim.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[CellBatch], None], cells: CellBatch) -> float:
    start = time.perf_counter()
    step(cells)
    return time.perf_counter() - start


def expressed_lengths(cells: CellBatch) -> np.ndarray:
    """Expressed genes of each cell that are in the batch."""
    is_expressed = (cells.values > 0) | (cells.target_values > 0)
    before = np.concatenate([[0], np.cumsum(is_expressed.numpy())])
    # [T] and [S] have values but are no genes
    return np.diff(before[cells.offsets.numpy()]) - 2


def useful_tokens(cells: CellBatch) -> int:
    return int(expressed_lengths(cells).sum())


if __name__ == "__main__":
    main()
