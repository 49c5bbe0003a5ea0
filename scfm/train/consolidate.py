"""A checkpoint of any strategy -> the whole weights, in this process alone.

in   RUN/checkpoints/step=N
out  float32 tensors by name
"""

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from scfm.errors import ModelError
from scfm.train.checkpoint_files import read_manifest
from scfm.train.checkpoint_io import DEEPSPEED_TAG, load_state
from scfm.train.checkpoint_pickles import require_plain


def whole_weights(path: Path) -> dict[str, Tensor]:
    """The module's weights in float32; optimiser states are not read into memory.

    Needs neither a GPU nor a process group. Raises ModelError for files that would run, or are of
    a strategy this scfm does not know.
    """
    strategy = read_manifest(path).strategy
    require_plain(path)
    if strategy in ("auto", "ddp"):
        weights = load_state(path)["state_dict"]
    elif strategy == "fsdp":
        weights = _of_shards(path)
    elif strategy.startswith("deepspeed"):
        weights = _of_deepspeed(path)
    else:
        raise ModelError(f"{path} is of train.strategy={strategy}, which this scfm does not know.")
    return {name: _float32(tensor) for name, tensor in weights.items()}


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def _of_shards(path: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(path)
    weights: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        part, _, weight = name.partition(".")
        if part == "state_dict" and isinstance(entry, TensorStorageMetadata):
            weights[weight] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it need not be on
        load({"state_dict": weights}, storage_reader=reader, no_dist=True)
    return weights


def _of_deepspeed(path: Path) -> dict[str, Tensor]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{path} is DeepSpeed's, which is not installed. Run: pip install 'scfm[deepspeed]'"
        ) from error
    talk = io.StringIO()
    with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
        found = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=DEEPSPEED_TAG)
    assert found is not None
    return found
