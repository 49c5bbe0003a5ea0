"""scMulan written plainly, from its description: one cell at a time, attention as a full matrix.

in   weights under the published names, one cell's words and bins
out  states, logits of both heads, what is generated

The other side of every comparison: nothing of scfm.model is used, nothing is cached.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    n_words: int = 2222
    d: int = 16
    n_layers: int = 2
    n_heads: int = 4
    n_bins: int = 10
    bias: bool = False


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the published names and shapes, large enough for every path to matter."""
    generator = torch.Generator().manual_seed(seed)
    d = shape.d

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*size, generator=generator)

    found = {
        "transformer.wte.weight": normal(shape.n_words, d),
        "transformer.wee.weight": normal(shape.n_bins + 1, d),
        "transformer.ln_f.weight": 1 + normal(d, scale=0.3),
        "lm_head.weight": normal(shape.n_words, d),
        "epx_head.weight": normal(shape.n_words, d),
    }
    for number in range(shape.n_layers):
        layers = {"attn.c_attn": (3 * d, d), "attn.c_proj": (d, d)}
        layers |= {"mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
        for name, size in layers.items():
            weight = normal(*size, scale=1.5 / math.sqrt(size[1]))
            found[f"transformer.h.{number}.{name}.weight"] = weight
        for name in ("ln_1", "ln_2"):
            found[f"transformer.h.{number}.{name}.weight"] = 1 + normal(d, scale=0.3)
    if shape.bias:
        inner = [n for n in found if n.startswith(("transformer.h.", "transformer.ln_f"))]
        for name in inner:
            found[name.replace(".weight", ".bias")] = normal(len(found[name]), scale=0.3)
    return found


def settings_of(shape: Shape) -> dict:
    """model_args as the published file holds them."""
    return {
        **{"vocab_size": shape.n_words, "n_layer": shape.n_layers, "n_head": shape.n_heads},
        **{"n_embd": shape.d, "dropout": 0.0, "bias": shape.bias, "expression_level": shape.n_bins},
        **{"ele": 1, "block_size": 1550, "train_mode": "pretrain"},
    }


def write_published(path: Path, shape: Shape, weights: dict[str, Tensor]) -> Path:
    """A file like ckpt_scMulan.pt."""
    torch.save({"model": weights, "model_args": settings_of(shape)}, path)
    return path


class Plain:
    """The network on one cell at a time."""

    def __init__(self, weights: dict[str, Tensor], shape: Shape):
        self.w, self.shape = {name: weight.double() for name, weight in weights.items()}, shape

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * self.w[f"{name}.weight"] + self.w.get(f"{name}.bias", 0)

    def states(self, words: list[int], bins: list[int]) -> Tensor:
        """After the last norm, (n_words, d)."""
        x = self.w["transformer.wte.weight"][words] + self.w["transformer.wee.weight"][bins]
        for number in range(self.shape.n_layers):
            prefix = f"transformer.h.{number}"
            x = x + self.attention(f"{prefix}.attn", self.norm(f"{prefix}.ln_1", x))
            hidden = self.linear(f"{prefix}.mlp.c_fc", self.norm(f"{prefix}.ln_2", x))
            inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
            x = x + self.linear(f"{prefix}.mlp.c_proj", hidden * (1 + inner.tanh()) / 2)
        return self.norm("transformer.ln_f", x)

    def attention(self, prefix: str, x: Tensor) -> Tensor:
        heads = self.linear(f"{prefix}.c_attn", x).unflatten(-1, (3, self.shape.n_heads, -1))
        q, k, v = heads.permute(1, 2, 0, 3)
        logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        later = torch.ones(len(x), len(x)).triu(1).bool()
        found = logits.masked_fill(later, -math.inf).softmax(-1) @ v
        return self.linear(f"{prefix}.c_proj", found.transpose(0, 1).flatten(1))

    def heads(self, words: list[int], bins: list[int]) -> tuple[Tensor, Tensor]:
        """Logits and values of the word after the last."""
        state = self.states(words, bins)[-1]
        return self.linear("lm_head", state), self.linear("epx_head", state)

    def say(
        self, words: list[int], bins: list[int], n: int, genes: range, *, again: bool = False
    ) -> tuple[list[int], list[int]]:
        """The ``n`` likeliest words one after the other, up to the end word; and their bins.

        ``again``: the word just said may come again, as released.
        """
        words, bins, start = list(words), list(bins), len(words)
        for _ in range(n):
            logits, values = self.heads(words, bins)
            logits[words[:-1] if again else words] = -math.inf
            word = int(logits.argmax())
            bin_ = int(values[word].round().clamp(0, self.shape.n_bins)) if word in genes else 0
            words.append(word)
            bins.append(bin_)
            if word == 0:
                break
        return words[start:], bins[start:]


def random_prompts(
    rng: np.random.Generator, lengths: list[int]
) -> list[tuple[list[int], list[int]]]:
    """Genes of the published vocabulary from the last to the first, and <PCT>."""
    found = []
    for n in lengths:
        genes = np.sort(rng.choice(2000, n, replace=False))[::-1] + 1
        found.append(([*map(int, genes), 2206], [*map(int, rng.integers(1, 11, n)), 0]))
    return found
