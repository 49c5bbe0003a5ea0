"""scFoundation: embedding against one cell per forward, and what the decoder takes of memory.

A table and one JSON line on stdout. Four questions:

throughput  cells a second at the 10m size, a batch of real cells at once, against the same weights
            run as the original runs them: each cell's dense vector gathered, padded and put through
            torch.nn.TransformerEncoderLayer alone. Sides take turns; embeddings are compared. Torch
            runs those layers by a fused inference path of its own; with that path off is a third
            side, and ours in bfloat16 a fourth.
genes       peak memory of the decoder's forward pass by number of genes
100m        peak memory of a process that predicts all genes of 8 cells with the 100m size, and of
            one that does so in training (forward, recompute full)
encoder     time when half of each cell's expressed genes are left out

    python benchmarks/scfoundation.py [--cells FILE.h5ad] [--rounds 5] [--tiny]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from measure import report
from torch import Tensor, nn

from scfm.batch import CellBatch
from scfm.model.config import ScfoundationSizes
from scfm.model.scfoundation import ScfoundationModel
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.masking import MaskConfig
from scfm.tokens.vocab import GeneVocab

CELLS = Path(__file__).resolve().parents[1] / "scfm" / "demo" / "cells" / "pbmc3k.h5ad"
TINY = ScfoundationSizes(
    d_model=64,
    n_layers=2,
    n_heads=2,
    n_bins=20,
    d_decoder=32,
    n_decoder_layers=1,
    n_decoder_heads=2,
    d_head=16,
)
MIDDLE = ScfoundationSizes(
    d_model=256, n_layers=8, n_heads=8, d_decoder=256, n_decoder_layers=4, n_decoder_heads=8
)
SIZES = {"tiny": TINY, "10m": MIDDLE, "100m": ScfoundationSizes()}
TARGET_DEPTH = 4.0
GENES = (4_816, 9_632, 19_264)
MEMORY_CELLS, BATCH = 8, 64


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy size, to see that it runs")
    parser.add_argument("--child", nargs=4, help="what, size, genes, cells: used by itself")
    asked = parser.parse_args()
    if asked.child:
        what, size, n_genes, n_cells = asked.child
        print(json.dumps(memory_of(what, size, int(n_genes), int(n_cells))))
        return
    size, large = ("tiny", "tiny") if asked.tiny else ("10m", "100m")
    batch, n_cells = (4, 2) if asked.tiny else (BATCH, MEMORY_CELLS)
    cells = real_cells(asked.cells, batch)
    found = {
        "throughput": throughput(size, cells, asked.rounds),
        "genes": {
            n: child("predict", size, n // (40 if asked.tiny else 1), n_cells) for n in GENES
        },
        "100m": {what: child(what, large, GENES[-1], n_cells) for what in ("predict", "train")},
        "encoder": halved(size, cells, asked.rounds),
    }
    for line in table(found):
        print(line)
    report(
        {
            "what": "scFoundation: embedding throughput, decoder memory, encoder cost",
            **found,
            "sizes": {"throughput, genes, encoder": size, "100m": large},
            "input": {
                "file": asked.cells.name,
                "cells a batch": batch,
                "tokens a cell": round(float(cells.offsets.diff().float().mean()), 1),
            },
            "rounds": asked.rounds,
            "figures": "median, least, most over rounds",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    )


def real_cells(path: Path, n_cells: int) -> CellBatch:
    """Cells spread over the file, at the depth the released code asks for by default."""
    member, _ = open_input(
        ad.read_h5ad(path), GeneVocab.scfoundation(), InputConfig(), MaskConfig()
    )
    spread = np.linspace(0, member.source.n_cells - 1, n_cells).round().astype(np.int64)
    shown = member.tokenizer.shown(member.source.rows(spread), target_depth=TARGET_DEPTH)
    return shown.map(torch.from_numpy)


def random_model(size: str, vocab: GeneVocab) -> ScfoundationModel:
    torch.manual_seed(0)
    return ScfoundationModel.from_scratch(vocab, SIZES[size]).eval()


def throughput(size: str, cells: CellBatch, rounds: int) -> dict[str, Any]:
    """Cells a second of every side, in turns, and the ratios of the first to the others."""
    model = random_model(size, GeneVocab.scfoundation())
    one_by_one = OneByOne(model)
    dense = as_dense(cells, model.n_positions)

    def batched() -> Tensor:
        return model.pool(model(cells), "all")

    def half() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return batched()

    sides: dict[str, Callable[[], Tensor]] = {
        "ours": batched,
        "one by one": lambda: with_fused_path(True, one_by_one, dense),
        "one by one, unfused": lambda: with_fused_path(False, one_by_one, dense),
        "ours, bfloat16": half,
    }
    with torch.inference_mode():
        embedded = {name: side() for name, side in sides.items()}  # and warms up
        seconds = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                seconds[name].append(seconds_of(side))
    ours = embedded["ours"]
    return {
        "cells a second": {
            name: spread([cells.n_cells / s for s in taken]) for name, taken in seconds.items()
        },
        "ours against": {
            name: spread([a / b for a, b in zip(taken, seconds["ours"], strict=True)])
            for name, taken in seconds.items()
            if name != "ours"
        },
        "largest difference": {
            name: float((other.float() - ours).abs().max()) for name, other in embedded.items()
        },
    }


class OneByOne(nn.Module):
    """The encoder's weights in torch's own layers, one cell a forward."""

    def __init__(self, model: ScfoundationModel):
        super().__init__()
        sizes = model.config.sizes
        self.value, self.position = model.value.of, model.position
        self.layers = nn.ModuleList(as_torch_layer(b, sizes.n_heads) for b in model.encoder.blocks)
        self.norm = model.encoder.norm
        self.eval()

    def forward(self, dense: Tensor) -> Tensor:
        return torch.stack([self.embed(cell[None]) for cell in dense])

    def embed(self, values: Tensor) -> Tensor:
        """[S, T, max, mean] of one cell's dense vector (1, positions)."""
        at = torch.nonzero(values[0] > 0)[:, 0][None]
        gathered = values.gather(1, at)
        is_padding = torch.zeros_like(at, dtype=torch.bool)
        x = self.value(gathered[0])[None] + self.position(at)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=is_padding)
        h = self.norm(x)[0]
        return torch.cat([h[-1], h[-2], h[:-2].amax(0), h[:-2].mean(0)])


def as_torch_layer(block: Any, n_heads: int) -> nn.TransformerEncoderLayer:
    d = block.out.in_features
    layer = nn.TransformerEncoderLayer(d, n_heads, 4 * d, batch_first=True)
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            **{
                f"{theirs}.{part}": getattr(getattr(block, ours), part)
                for theirs, ours in (
                    *(("self_attn.out_proj", "out"), ("norm1", "attention_norm")),
                    *(
                        ("linear1", "expand"),
                        ("linear2", "contract"),
                        ("norm2", "feedforward_norm"),
                    ),
                )
                for part in ("weight", "bias")
            },
        }
    )
    return layer


def as_dense(cells: CellBatch, n_positions: int) -> Tensor:
    dense = torch.zeros(cells.n_cells, n_positions)
    cell_of = torch.arange(cells.n_cells).repeat_interleave(cells.offsets.diff().long())
    dense[cell_of, cells.gene_ids] = cells.values
    return dense


def with_fused_path(is_fused: bool, network: nn.Module, dense: Tensor) -> Tensor:
    torch.backends.mha.set_fastpath_enabled(is_fused)
    try:
        return network(dense)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def halved(size: str, cells: CellBatch, rounds: int) -> dict[str, Any]:
    """Time of the encoder on the cells, and on the same with every second gene left out."""
    model, half = random_model(size, GeneVocab.scfoundation()), half_of(cells)
    whole_s, half_s = [], []
    with torch.inference_mode():
        model(half)
        for _ in range(rounds):
            whole_s.append(seconds_of(lambda: model(cells)))
            half_s.append(seconds_of(lambda: model(half)))
    return {
        "tokens": [cells.n_tokens, half.n_tokens],
        "seconds": {"whole": spread(whole_s), "half": spread(half_s)},
        "whole against half": spread([a / b for a, b in zip(whole_s, half_s, strict=True)]),
    }


def half_of(cells: CellBatch) -> CellBatch:
    kept, lengths = [], []
    for first, last in zip(cells.offsets[:-1].tolist(), cells.offsets[1:].tolist(), strict=True):
        own = [first, first + 1, *range(first + 2, last, 2)]
        kept += own
        lengths.append(len(own))
    at = torch.tensor(kept)
    names = ("gene_ids", "values", "is_target", "target_values")
    tokens = {name: getattr(cells, name)[at] for name in names}
    offsets = torch.tensor(np.concatenate([[0], np.cumsum(lengths)])).int()
    return replace(cells, **tokens, offsets=offsets, is_hidden=None)


def child(what: str, size: str, n_genes: int, n_cells: int) -> dict[str, float]:
    """``memory_of`` in a process of its own, whose peak is nobody else's."""
    arguments = ["--child", what, size, str(n_genes), str(n_cells)]
    # blocks of their own for large tensors: else the peak tells of what the C library keeps
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(what: str, size: str, n_genes: int, n_cells: int) -> dict[str, float]:
    """Resident MB before and at the peak of one pass over synthetic cells, and its seconds."""
    names = tuple(f"GENE{i}" for i in range(n_genes))
    vocab = GeneVocab(names, ("",) * n_genes, (), ("[T]", "[S]", "[PAD]"))
    model, cells = random_model(size, vocab), synthetic_cells(n_genes, n_cells)
    before = resident_mb("VmRSS")
    start = time.perf_counter()
    if what == "train":
        model.train().recompute("full")
        states = model(cells)
        model.predict_targets(cells, states)["decoder"].sum()
    else:
        with torch.inference_mode():
            model.predict(cells, model(cells))
    seconds = time.perf_counter() - start
    return {"before_mb": before, "peak_mb": resident_mb("VmHWM"), "seconds": round(seconds, 2)}


def synthetic_cells(n_genes: int, n_cells: int) -> CellBatch:
    """Cells that express a tenth of the genes; a third of these, and 3 % of the others, hidden."""
    rng = np.random.default_rng(0)
    ids, values, hidden = [], [], []
    for _ in range(n_cells):
        genes = np.sort(rng.choice(n_genes, n_genes // 10 + n_genes // 37, replace=False))
        is_hidden = rng.random(len(genes)) < 0.4
        ids.append(np.r_[n_genes, n_genes + 1, genes])
        values.append(np.r_[4.0, 3.5, np.where(is_hidden, 0, rng.uniform(0.5, 6, len(genes)))])
        hidden.append(np.r_[False, False, is_hidden])
    n = sum(map(len, ids))
    return CellBatch(
        gene_ids=np.concatenate(ids).astype(np.int64),
        values=np.concatenate(values).astype(np.float32),
        offsets=np.cumsum([0, *map(len, ids)]).astype(np.int32),
        is_target=np.concatenate(hidden),
        target_values=np.zeros(n, np.float32),
        library_size=np.full(n_cells, 3000, np.float32),
        source_depth=np.full(n_cells, 3.5, np.float32),
        target_depth=np.full(n_cells, 4.0, np.float32),
        cell_index=np.arange(n_cells),
    ).map(torch.from_numpy)


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
    rates, ratios = found["throughput"]["cells a second"], found["throughput"]["ours against"]
    lines = [f"{'embedding':<22}{'cells/s':>10}{'ours against':>14}"]
    for name, rate in rates.items():
        ratio = f"{ratios[name][0]:.2f} x" if name in ratios else ""
        lines.append(f"{name:<22}{rate[0]:>10.2f}{ratio:>14}")
    lines.append(f"{'decoder, genes':<22}{'peak MB':>10}{'of it made':>14}")
    for n, memory in found["genes"].items():
        made = memory["peak_mb"] - memory["before_mb"]
        lines.append(f"{n:<22}{memory['peak_mb']:>10.0f}{made:>14.0f}")
    for what, memory in found["100m"].items():
        line = f"{memory['peak_mb']:>10.0f} MB at the peak, {memory['seconds']:.1f} s"
        lines.append(f"{'100m, 8 cells, ' + what:<22}{line}")
    ratio = found["encoder"]["whole against half"][0]
    lines.append(f"{'encoder, half the genes':<22} {ratio:.2f} x faster")
    return lines


if __name__ == "__main__":
    main()
