"""Activations made again in the backward pass instead of kept.

in   a block and its inputs
out  its output, keeping the input alone, or the input and the matrix products

Sources: Chen et al. 2016, arXiv:1604.06174 (full); Korthikanti et al. 2022, arXiv:2205.05198
(selective: what is cheap to make again is what takes most room).
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from scfm.model.attention import varlen_attn

Recompute = Literal["none", "selective", "full"]

aten = torch.ops.aten
KEPT = {  # matrix products and attention: nearly all of the time, a third of the memory
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    *([torch.ops.torch_attn._varlen_attn.default] if varlen_attn is not None else []),
}


def run_block(block: nn.Module, recompute: Recompute, *inputs: Any) -> Tensor:
    """``block(*inputs)``; equal results and gradients whatever ``recompute`` is."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    if recompute == "full":
        return checkpoint(block, *inputs, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    is_kept = operation in KEPT
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
