"""Parameters -> optimiser and learning-rate schedule.

in   a module's parameters, the number of optimiser steps
out  AdamW and a per-step schedule: linear warm-up, then a cosine to ``final_lr_share``
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warm-up and cosine decay."""

    lr: float = 1e-3  # the peak
    weight_decay: float = 0.05  # matrices only: norms, biases and embeddings are spared
    beta1: float = 0.9
    beta2: float = 0.98
    warmup_steps: int = 100  # at most half of the run
    final_lr_share: float = 0.05
    gradient_clip: float = 1.0  # global norm; 0 turns clipping off

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")
        for name in ("weight_decay", "gradient_clip", "final_lr_share"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optim.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps must be at least 0, got {self.warmup_steps}")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights of linear layers decay; embeddings, norms and biases do not.

    A rare gene's embedding gets a gradient only when the gene is seen; decay would pull it to
    zero in between. Frozen weights are in neither, and a group of none is left out: DeepSpeed drops
    it, and the schedule would have one rate too many.
    """
    decayed, spared = [], []
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_matrix = isinstance(layer, nn.Linear) and name == "weight"
            (decayed if is_matrix else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def lr_share(step: int, warmup_steps: int, total_steps: int, final_share: float) -> float:
    """The learning rate at an optimiser step, as a share of the peak."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return final_share + (1 - final_share) * cosine


def build_optimizer(
    module: nn.Module, config: OptimConfig, total_steps: int, *, offloaded: bool = False
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW and its schedule, to be stepped once an optimiser step.

    ``offloaded`` takes DeepSpeed's AdamW for states in host memory, which is compiled when it is
    first used; its steps equal torch's to rounding.
    """
    groups = parameter_groups(module, config.weight_decay)
    betas = (config.beta1, config.beta2)
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(groups, lr=config.lr, betas=betas, adamw_mode=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas)
    warmup = min(config.warmup_steps, total_steps // 2)
    schedule = LambdaLR(
        optimizer, lambda step: lr_share(step, warmup, total_steps, config.final_lr_share)
    )
    return optimizer, schedule
