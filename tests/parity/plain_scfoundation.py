"""scFoundation written plainly, from its description: one cell at a time, everything dense.

in   weights under the published names, one cell's normalised values over all genes, T and S
out  encoder states, decoder states, expression

The other side of every comparison: torch's own encoder layers, attention written as a matrix of
features by features, every gene embedded one by one. Nothing of scfm.model is used.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-4


@dataclass(frozen=True)
class Shape:
    n_genes: int = 40
    d: int = 16
    n_layers: int = 2
    n_heads: int = 4
    d_decoder: int = 8
    n_decoder_layers: int = 2
    n_decoder_heads: int = 2
    d_head: int = 4
    n_bins: int = 10

    @property
    def n_features(self) -> int:
        return int(self.d_head * math.log(self.d_head))


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the published names and shapes, large enough for every path to matter."""
    torch.manual_seed(seed)
    s, d, dd = shape, shape.d, shape.d_decoder
    inner = s.n_decoder_heads * s.d_head
    found: dict[str, Tensor] = {
        "token_emb.emb.weight": torch.randn(s.n_bins, d),
        "token_emb.emb_mask.weight": torch.randn(1, d),
        "token_emb.emb_pad.weight": torch.randn(1, d),
        "pos_emb.weight": torch.randn(s.n_genes + 3, d),
        "decoder.performer.calls_since_last_redraw": torch.tensor(7),
        **linear("token_emb.mlp", 1, s.n_bins),
        **linear("token_emb.mlp2", s.n_bins, s.n_bins),
        **linear("decoder_embed", d, dd),
        **linear("to_final", dd, 1),
        **norm("norm", dd),
        **norm("encoder.norm", d),
        **norm("decoder.norm", dd),
    }
    for number in range(s.n_layers):
        layer = nn.TransformerEncoderLayer(d, s.n_heads, 4 * d, batch_first=True)
        prefix = f"encoder.transformer_encoder.{number}."
        found |= {prefix + name: w + 0.2 * torch.randn_like(w) for name, w in state(layer)}
    for number in range(s.n_decoder_layers):
        prefix = f"decoder.performer.net.layers.{number}"
        found[f"{prefix}.0.fn.fast_attention.projection_matrix"] = torch.randn(
            s.n_features, s.d_head
        )
        found |= norm(f"{prefix}.0.norm", dd) | norm(f"{prefix}.1.norm", dd)
        for name in ("to_q", "to_k", "to_v"):
            found |= linear(f"{prefix}.0.fn.{name}", dd, inner)
        found |= linear(f"{prefix}.0.fn.to_out", inner, dd)
        found |= linear(f"{prefix}.1.fn.fn.w1", dd, 4 * dd)
        found |= linear(f"{prefix}.1.fn.fn.w2", 4 * dd, dd)
    return {f"model.{name}": weight for name, weight in found.items()}


def state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, weight.detach().clone()) for name, weight in module.state_dict().items()]


def linear(name: str, d_in: int, d_out: int) -> dict[str, Tensor]:
    weight = 1.5 * torch.randn(d_out, d_in) / math.sqrt(d_in)
    return {f"{name}.weight": weight, f"{name}.bias": 0.3 * torch.randn(d_out)}


def norm(name: str, d: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.3 * torch.randn(d), f"{name}.bias": 0.3 * torch.randn(d)}


def published_config(shape: Shape) -> dict:
    """A config as the published file holds one."""
    s, seq_len = shape, shape.n_genes + 2
    encoder = {"hidden_dim": s.d, "depth": s.n_layers, "heads": s.n_heads}
    decoder = {"hidden_dim": s.d_decoder, "depth": s.n_decoder_layers, "heads": s.n_decoder_heads}
    network = {
        "encoder": {**encoder, "module_type": "transformer", "norm_first": False},
        "decoder": {
            **{**decoder, "dim_head": s.d_head},
            **{"module_type": "performer", "norm_first": False},
        },
        **{"bin_num": s.n_bins, "bin_alpha": 1.0, "seq_len": seq_len},
    }
    data = {"rnaseq": {"mae_encoder_max_seq_len": 15000}}
    return {
        "model": "mae_autobin",
        "model_config": {"mae_autobin": network},
        "dataset_config": data,
    }


def write_published(path: Path, shape: Shape, **weights: dict[str, Tensor]) -> Path:
    """A file like models.ckpt."""
    config = published_config(shape)
    torch.save({key: {"config": config, "state_dict": w} for key, w in weights.items()}, path)
    return path


class Plain:
    """The network on one cell at a time; with the "global" stabiliser, on several at once."""

    def __init__(self, weights: dict[str, Tensor], shape: Shape):
        self.w = {name.removeprefix("model."): weight for name, weight in weights.items()}
        self.shape = shape

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias)

    def value(self, x: Tensor) -> Tensor:
        v1 = F.leaky_relu(self.linear("token_emb.mlp", x[:, None]), 0.1)
        weights = torch.softmax(v1 + self.linear("token_emb.mlp2", v1), dim=-1)
        return weights @ self.w["token_emb.emb.weight"]

    def layer(self, number: int) -> nn.TransformerEncoderLayer:
        layer = nn.TransformerEncoderLayer(
            self.shape.d, self.shape.n_heads, 4 * self.shape.d, batch_first=True
        )
        prefix = f"encoder.transformer_encoder.{number}."
        layer.load_state_dict(
            {n.removeprefix(prefix): w for n, w in self.w.items() if n.startswith(prefix)}
        )
        return layer.eval()

    def encode(self, values: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (ascending, T and S last) and states of what is not zero and not hidden."""
        at = torch.nonzero((values > 0) & ~hidden)[:, 0]
        x = (self.value(values[at]) + self.w["pos_emb.weight"][at])[None]
        for number in range(self.shape.n_layers):
            x = self.layer(number)(x)
        return at, self.norm("encoder.norm", x)[0]

    def embed(self, values: Tensor, how: str) -> Tensor:
        """[S, T, max, mean] over genes, or the max over everything."""
        _, h = self.encode(values, torch.zeros(len(values), dtype=torch.bool))
        if how == "max":
            return h.max(0).values
        genes = h[:-2]
        return torch.cat([h[-1], h[-2], genes.max(0).values, genes.mean(0)])

    def decode(self, cells: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Decoder states of all positions of cells (values, hidden); one cell: "per_sample"."""
        x = torch.stack([self.decoder_input(values, hidden) for values, hidden in cells])
        for number in range(self.shape.n_decoder_layers):
            prefix = f"decoder.performer.net.layers.{number}"
            x = x + self.attention(f"{prefix}.0.fn", self.norm(f"{prefix}.0.norm", x))
            inner = F.gelu(self.linear(f"{prefix}.1.fn.fn.w1", self.norm(f"{prefix}.1.norm", x)))
            x = x + self.linear(f"{prefix}.1.fn.fn.w2", inner)
        return self.norm("norm", self.norm("decoder.norm", x))

    def decoder_input(self, values: Tensor, hidden: Tensor) -> Tensor:
        x = self.value(values)
        x[hidden & (values == 0)] = self.w["token_emb.emb_mask.weight"][0]
        at, states = self.encode(values, hidden)
        x[at] = states
        return self.linear("decoder_embed", x + self.w["pos_emb.weight"][: len(values)])

    def attention(self, prefix: str, x: Tensor) -> Tensor:
        q, k, v = (
            self.linear(f"{prefix}.{name}", x)
            .unflatten(-1, (self.shape.n_decoder_heads, -1))
            .transpose(1, 2)
            for name in ("to_q", "to_k", "to_v")
        )
        directions = self.w[f"{prefix}.fast_attention.projection_matrix"]
        found = dense_performer(q, k, v, directions)
        return self.linear(f"{prefix}.to_out", found.transpose(1, 2).flatten(-2))

    def expression(self, cells: list[tuple[Tensor, Tensor]]) -> Tensor:
        return self.linear("to_final", self.decode(cells))[..., : self.shape.n_genes, 0]


def dense_performer(q: Tensor, k: Tensor, v: Tensor, directions: Tensor) -> Tensor:
    """(cell, head, position, d): all weights as a matrix, the maximum over all that is given."""
    scale = q.shape[-1] ** -0.25

    def exponent(x: Tensor) -> tuple[Tensor, Tensor]:
        x = scale * x
        return x @ directions.t(), (x**2).sum(-1, keepdim=True) / 2

    (q_dash, q_diagonal), (k_dash, k_diagonal) = exponent(q), exponent(k)
    q_features = torch.exp(q_dash - q_diagonal - q_dash.max(-1, keepdim=True).values) + EPSILON
    k_features = torch.exp(k_dash - k_diagonal - k_dash.max()) + EPSILON
    weights = q_features @ k_features.transpose(-1, -2)
    return weights @ v / weights.sum(-1, keepdim=True)


def dense_values(counts: np.ndarray, target_depth: float) -> Tensor:
    """One cell as the original takes it: log1p(1e4) of every gene, then T, then S."""
    total = float(counts.sum())
    values = np.log1p(counts.astype(np.float64) / total * 1e4)
    return torch.tensor([*values, target_depth, np.log10(total)], dtype=torch.float32)
