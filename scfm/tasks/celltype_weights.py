"""Which weights fine-tuning may change: the last blocks, low-rank additions, or all that matter.

in   a model with a classifier, a few cells
out  the same model, other weights frozen; adapters merged back into plain layers at the end

LoRA: Hu et al. 2022, arXiv:2106.09685, through peft.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from scfm.batch import CellBatch
from scfm.errors import ConfigError
from scfm.model.base import CellModel

Method = Literal["probe", "partial", "lora", "full"]


@dataclass(frozen=True, kw_only=True)
class LoraSizes:
    """Low-rank additions to the blocks' linear layers."""

    rank: int = 8
    alpha: float = 16.0  # what is added is scaled by alpha / rank
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"lora.rank must be at least 1 and alpha positive, got {self}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be in [0, 1), got {self.dropout}")


def freeze(
    model: CellModel, method: Method, cells: CellBatch, *, last_blocks: int, lora: LoraSizes
) -> None:
    """Leave trainable what ``method`` says, and of it only what a cell's scores hang on.

    A weight without a gradient (of a decoder, say) would make several processes wait for it.
    """
    used = used_weights(model, cells)
    model.requires_grad_(False)
    assert model.classifier is not None
    model.classifier.requires_grad_(True)
    if method == "lora":
        add_adapters(model, used_layers(model, used), lora)
    else:
        chosen = used if method == "full" else of_last_blocks(model, used, last_blocks)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in chosen or name.startswith("classifier."))


def used_weights(model: CellModel, cells: CellBatch) -> set[str]:
    """Names of the weights that the scores of these cells hang on."""
    model.requires_grad_(True)
    model.train()
    scores = model.classify(cells, model(cells))
    scores.square().sum().backward()
    used = {name for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    return used


def used_blocks(model: CellModel, used: set[str]) -> list[str]:
    """Prefixes of the names of the blocks that matter, first to last."""
    ours = {id(block) for block in model.blocks}
    names = [name for name, module in model.named_modules() if id(module) in ours]
    return [name for name in names if any(u.startswith(f"{name}.") for u in used)]


def of_last_blocks(model: CellModel, used: set[str], n: int) -> set[str]:
    """Names of the weights of the last ``n`` blocks, and of what comes after them."""
    blocks = used_blocks(model, used)
    if not 1 <= n <= len(blocks):
        raise ConfigError(
            f"last_blocks is {n}; this model's encoder has {len(blocks)} blocks, so 1 to "
            f"{len(blocks)}. For all of it and its embeddings take --method full."
        )
    stack = blocks[0].rpartition(".blocks.")[0]
    chosen = tuple(f"{name}." for name in blocks[-n:])
    last_norm = f"{stack}.norm."
    return {name for name in used if name.startswith((*chosen, last_norm))}


def used_layers(model: CellModel, used: set[str]) -> list[str]:
    """Names of the linear layers in the blocks that matter."""
    blocks = tuple(f"{name}." for name in used_blocks(model, used))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(blocks)
    ]


def add_adapters(model: CellModel, layers: list[str], sizes: LoraSizes) -> None:
    """Put a low-rank addition, at first zero, beside each of the layers. ConfigError without peft.

    Draws from torch's global generator.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--method lora needs peft, which is not installed. Run: pip install 'scfm[lora]', or "
            "use --method partial."
        ) from error
    config = LoraConfig(
        r=sizes.rank,
        lora_alpha=sizes.alpha,  # pyright: ignore[reportArgumentType]  # only divided by r
        lora_dropout=sizes.dropout,
        target_modules=layers,
    )
    inject_adapter_in_model(config, model)


@torch.no_grad()
def merge_adapters(model: CellModel) -> CellModel:
    """Add what the adapters learned to the layers' own weights: a plain model, without peft."""
    from peft.tuners.lora import LoraLayer

    adapted: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)
    ]
    for name, module in adapted:
        module.merge(safe_merge=True)
        model.set_submodule(name, module.get_base_layer())
    return model.requires_grad_(True)
