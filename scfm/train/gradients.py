"""The gradient's global norm, wherever its parts lie.

in   a module after its backward pass
out  the norm before clipping; the same on all processes
"""

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def gradient_norm(module: L.LightningModule) -> Tensor | None:
    """The global norm of the gradients that the parameters hold; None where they hold none.

    Under FSDP every process must call it, since each holds a shard. DeepSpeed keeps gradients to
    itself: ask ``engine_gradient_norm`` after the step.
    """
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients or is_deepspeed(module):
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def engine_gradient_norm(module: L.LightningModule) -> Tensor | None:
    """The norm that DeepSpeed found in its last step; None before it, and for other strategies."""
    if not is_deepspeed(module):
        return None
    norm = module.trainer.model.get_global_grad_norm()  # pyright: ignore
    return None if norm is None else torch.as_tensor(norm)


def undivided(module: L.LightningModule) -> int:
    """What to multiply a micro-batch's loss by, so that its gradient is divided once.

    Lightning divides it by the number of accumulated micro-batches, and DeepSpeed does so again:
    its gradients would be too small by that factor, and clipping too lenient.
    """
    return module.trainer.accumulate_grad_batches if is_deepspeed(module) else 1


def is_deepspeed(module: L.LightningModule) -> bool:
    """Whether DeepSpeed's engine runs this module."""
    return hasattr(module.trainer.model, "get_global_grad_norm")
