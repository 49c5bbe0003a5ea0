"""The tensors of an untrusted file -> plain float32 weights.

in   a state_dict
out  the same names -> float32 tensors, all finite
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from scfm.errors import ModelError


def read_weights(
    state: Mapping[Any, Tensor], where: str, unused: Collection[str] = ()
) -> dict[str, Tensor]:
    """The weights but those ``unused``; ``where`` says in errors which file they are of.

    Raises ModelError for a tensor that is no array of floating-point numbers, is larger than what
    the file stores of it, or holds NaN or infinity.
    """
    weights = {}
    for name, tensor in state.items():
        if name not in unused:
            _check_plain(str(name), tensor, where)
            weights[str(name)] = _finite(str(name), tensor.float(), where)
    return weights


def _check_plain(name: str, tensor: Tensor, where: str) -> None:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ModelError(f"{where}: weight '{name}' is no plain array. Download the file again.")
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(
            f"{where}: weight '{name}' is of {kind}; wanted floating-point numbers, as published. "
            "Download the file again."
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(
            f"{where}: weight '{name}' is {tuple(tensor.shape)}, of which the file stores fewer "
            "numbers. Download the file again."
        )


def _finite(name: str, weight: Tensor, where: str) -> Tensor:
    if not weight.isfinite().all():
        raise ModelError(
            f"{where}: weight '{name}' has NaN or infinite values. The file is damaged: download "
            "it again and compare its checksum with the published one."
        )
    return weight
