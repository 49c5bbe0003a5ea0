"""scMulan: annotation of a batch with a cache against one cell at a time without, and its memory.

A table and one JSON line on stdout. Two questions:

annotation  cells a second at the 50m size, three words a cell (coarse type, fine type, the end),
            real cells: a batch whose keys and values are kept; the same one cell at a time; the
            batch without a cache; and as the original runs: one cell at a time, all words gone
            through again for each new one, GELU written out. Same weights, same words: compared.
            Sides take turns. Beside them the batch in bfloat16.
memory      peak memory of generating cells, by the budget of cached tokens

    python benchmarks/scmulan.py [--cells FILE.h5ad] [--batch 32] [--rounds 5] [--tiny]
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import report
from torch import Tensor

from scfm.batch import CellBatch
from scfm.model.config import ScmulanSizes
from scfm.model.generate import complete
from scfm.model.sampling import Decoding
from scfm.model.scmulan import ScmulanModel
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.sentence_values import prompt_of
from scfm.tokens.vocab import GeneVocab

CELLS = Path(__file__).resolve().parents[1] / "scfm" / "demo" / "cells" / "pbmc3k.h5ad"
SIZES = {
    "tiny": ScmulanSizes(d_model=64, n_layers=2, n_heads=2),
    "50m": ScmulanSizes(d_model=576, n_layers=12, n_heads=9),
}
ANNOTATE = Decoding(max_words=3, top_k=1)
BUDGETS = (2**12, 2**14, 2**16)
TYPES = ("cell_type", "cell_type")


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy size, to see that it runs")
    parser.add_argument("--child", nargs=4, help="size, cells, words, budget: used by itself")
    asked = parser.parse_args()
    if asked.child:
        size, *numbers = asked.child
        print(json.dumps(memory_of(size, *map(int, numbers))))
        return
    size = "tiny" if asked.tiny else "50m"
    prompts = annotation_prompts(asked.cells, 4 if asked.tiny else asked.batch, size)
    n_cells, n_words = (6, 20) if asked.tiny else (256, 250)
    found = {
        "tiny": asked.tiny,
        "size": size,
        "threads": torch.get_num_threads(),
        "annotation": annotation(size, prompts, asked.rounds),
        "memory": {
            budget: child(size, n_cells, n_words, budget // (64 if asked.tiny else 1))
            for budget in BUDGETS
        },
    }
    print("\n".join(table(found)))
    report({"benchmark": "scmulan", **found})


def random_model(size: str) -> ScmulanModel:
    torch.manual_seed(0)
    return ScmulanModel.from_scratch(GeneVocab.scmulan(), SIZES[size], types=TYPES).eval()


def annotation_prompts(path: Path, n_cells: int, size: str) -> CellBatch:
    """Prompts of cells spread over a file."""
    model = random_model(size)
    config = InputConfig(species="human", minimum_coverage=0.0)
    member, _ = open_input(path, GeneVocab.scmulan(), config, model.token_config)
    at = np.linspace(0, member.source.n_cells - 1, n_cells).astype(np.int64)
    return member.tokenizer.shown(member.source.rows(at)).map(torch.from_numpy)


def annotation(size: str, prompts: CellBatch, rounds: int) -> dict[str, Any]:
    """Cells a second of each side, sides taking turns; and whether they say the same."""
    model = random_model(size)
    half = deepcopy(model).bfloat16()
    cells = one_by_one(prompts)
    original = Original(model)
    sides: dict[str, Callable[[], list[int]]] = {
        "ours": lambda: complete(model, prompts, ANNOTATE).words.tolist(),
        "as the original": lambda: [word for one in cells for word in original.say(one)],
        "one by one, no cache": lambda: said(model, cells, cache=False),
        "one by one, cached": lambda: said(model, cells, cache=True),
        "batch, no cache": lambda: complete(model, prompts, ANNOTATE, cache=False).words.tolist(),
        "ours, bfloat16": lambda: complete(half, prompts, ANNOTATE).words.tolist(),
    }
    words = {name: side() for name, side in sides.items()}  # and warms up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(seconds_of(side))
    return {
        "cells": prompts.n_cells,
        "tokens a cell": prompts.n_tokens / prompts.n_cells,
        "cells a second": {
            name: spread([prompts.n_cells / s for s in taken]) for name, taken in seconds.items()
        },
        "ours against": {
            name: spread([a / b for a, b in zip(taken, seconds["ours"], strict=True)])
            for name, taken in seconds.items()
            if name != "ours"
        },
        "same words": {
            name: float(np.mean(np.array(other) == np.array(words["ours"])))
            for name, other in words.items()
        },
    }


def one_by_one(prompts: CellBatch) -> list[CellBatch]:
    """The same cells, a batch each."""
    bounds = prompts.offsets.tolist()

    def cut(cell: int, first: int, last: int) -> CellBatch:
        def part(x: Tensor) -> Tensor:
            if len(x) == len(bounds):
                return torch.tensor([0, last - first], dtype=torch.int32)
            return x[first:last] if len(x) == bounds[-1] else x[cell : cell + 1]

        return prompts.map(part)

    return [cut(cell, first, last) for cell, (first, last) in enumerate(pairwise(bounds))]


def said(model: ScmulanModel, cells: list[CellBatch], *, cache: bool) -> list[int]:
    return [w for one in cells for w in complete(model, one, ANNOTATE, cache=cache).words.tolist()]


class Original:
    """The weights run as the released code does: one dense sequence, nothing kept."""

    def __init__(self, model: ScmulanModel):
        self.model = model

    @torch.no_grad()
    def say(self, prompt: CellBatch) -> list[int]:
        ids, values = prompt.gene_ids[None], prompt.values[None].long()
        for _ in range(ANNOTATE.max_words):
            state = self.last_state(ids, values)
            logits = self.model.word_head(state)
            logits[ids[0]] = -math.inf
            word = torch.multinomial(only_largest(logits).softmax(0), 1)
            bin_ = self.model.value_head(state)[word].round().clamp(0, 10).long()
            ids, values = torch.cat([ids, word[None]], 1), torch.cat([values, bin_[None]], 1)
            if int(word) == self.model.end_id:
                break
        return ids[0, prompt.n_tokens :].tolist()

    def last_state(self, ids: Tensor, values: Tensor) -> Tensor:
        model = self.model
        x = model.word(ids) + model.value(values)
        for block in model.decoder.blocks:
            x = self.block(block, x)
        return model.decoder.norm(x)[0, -1]

    def block(self, block: Any, x: Tensor) -> Tensor:
        heads = block.qkv(block.attention_norm(x)).unflatten(-1, (3, block.n_heads, -1))
        q, k, v = (part.transpose(1, 2) for part in heads.unbind(-3))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + block.out(attended.transpose(1, 2).flatten(-2))
        hidden = block.expand(block.feedforward_norm(x))
        inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * torch.pow(hidden, 3.0))
        return x + block.contract(0.5 * hidden * (1 + torch.tanh(inner)))


def only_largest(logits: Tensor) -> Tensor:
    return logits.masked_fill(logits < logits.max(), -math.inf)


def child(size: str, n_cells: int, n_words: int, budget: int) -> dict[str, float]:
    """``memory_of`` in a process of its own, whose peak is nobody else's."""
    arguments = ["--child", size, *map(str, (n_cells, n_words, budget))]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, cwd=Path.cwd()
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(size: str, n_cells: int, n_words: int, budget: int) -> dict[str, float]:
    """Resident MB before and at the peak of generating cells that never end early."""
    model = random_model(size)
    prompts = prompt_of({"organ": "Blood"}, {}, model.words.vocab, n_cells=n_cells)
    how = Decoding(max_words=n_words, end_weight=1e-12)
    before, start = resident_mb("VmRSS"), time.perf_counter()
    found = complete(model, prompts.map(torch.from_numpy), how, max_tokens=budget)
    return {
        "budget": budget,
        "before_mb": before,
        "peak_mb": resident_mb("VmHWM"),
        "words": len(found.words),
        "seconds": round(time.perf_counter() - start, 2),
    }


def resident_mb(what: str) -> float:
    """VmRSS, or VmHWM, its peak. Not getrusage's, which an exec hands on from the parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return round(int(line.split()[1]) / 1024, 1)


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def spread(found: list[float]) -> list[float]:
    """Median, least, most."""
    return [round(float(x), 3) for x in (np.median(found), min(found), max(found))]


def table(found: dict[str, Any]) -> list[str]:
    """What was found, for a person."""
    annotated = found["annotation"]
    lines = [f"{'annotation':<24}{'cells/s':>10}{'ours against':>14}{'same words':>12}"]
    for name, rate in annotated["cells a second"].items():
        ratio = annotated["ours against"].get(name)
        against = "" if ratio is None else f"{ratio[0]:.2f} x"
        same = annotated["same words"][name]
        lines.append(f"{name:<24}{rate[0]:>10.2f}{against:>14}{same:>12.0%}")
    lines.append(f"{'cached tokens, at most':<24}{'peak MB':>10}{'of it made':>14}{'seconds':>12}")
    for memory in found["memory"].values():
        made = memory["peak_mb"] - memory["before_mb"]
        row = f"{memory['peak_mb']:>10.0f}{made:>14.0f}{memory['seconds']:>12.1f}"
        lines.append(f"{memory['budget']:<24}{row}")
    return lines


if __name__ == "__main__":
    main()
