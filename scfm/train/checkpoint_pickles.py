"""Whether the pickles in a checkpoint may be loaded: they name only what holds numbers.

in   a checkpoint folder of any strategy
out  nothing, or ModelError

DeepSpeed and torch.distributed.checkpoint load their own files with a plain unpickler, which would
call whatever a file names. So every pickle is first read by one that can call nothing: it writes
down what is named, and that must be on a short list.
"""

import io
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.serialization import _is_zipfile

from scfm.errors import ModelError

# What states of training are made of. None of it acts on more than its arguments.
PLAIN = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "set"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch", "Tensor"),
    ("torch._tensor", "_rebuild_from_type_v2"),  # calls what it is given: one of these
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.serialization", "_get_layout"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("pathlib", "PosixPath"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
            *("TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
        )
    ),
}
BROKEN = (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError)


def require_plain(folder: Path) -> None:
    """Raise ModelError where a file of the folder names anything but tensors and plain values."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".pt":
            _require_plain_file(path)
        elif path.name == ".metadata":
            _require_plain_shards(path)


def _require_plain_file(path: Path) -> None:
    with path.open("rb") as file:
        _require_plain_archive(file, path)


def _require_plain_archive(file: Any, path: Path) -> None:
    """A file of torch.save, read with the reader that torch.load will use."""
    if not _is_zipfile(file):
        raise _refusal(path, "it is no archive of torch.save")
    try:
        reader = torch._C.PyTorchFileReader(file)
        names = reader.get_all_records()
        pickled = reader.get_record("data.pkl")
    except RuntimeError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise _refusal(path, "it holds a program")
    _require_plain_pickle(pickled, path)


def _require_plain_shards(metadata_file: Path) -> None:
    """``.metadata`` of torch.distributed.checkpoint, and the pickles it says where to find."""
    _require_plain_pickle(metadata_file.read_bytes(), metadata_file)
    metadata = pickle.loads(metadata_file.read_bytes())
    for info in _pickled_values(metadata):
        path = metadata_file.parent / info.relative_path
        with path.open("rb") as file:
            file.seek(info.offset)
            _require_plain_archive(io.BytesIO(file.read(info.length)), path)


def _pickled_values(metadata: Any) -> Iterator[Any]:
    """Where values lie that are loaded as pickles. Tensors are loaded with weights_only=True."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for index, info in metadata.storage_data.items():
        if not isinstance(metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
            yield info


def _require_plain_pickle(pickled: bytes, path: Path) -> None:
    named = named_in(pickled, path)
    odd = sorted(f"{module}.{name}" for module, name in named if not _is_plain(module, name))
    if odd:
        raise _refusal(path, f"it would run {', '.join(odd[:3])}")


def named_in(pickled: bytes, path: object = "the pickle") -> set[tuple[str, str]]:
    """Every module and name that a pickle asks for. Raises ModelError for what is no pickle."""
    reader = _Inert(io.BytesIO(pickled))
    try:
        reader.load()
    except BROKEN as error:
        raise ModelError(f"{path} is damaged: it is no readable pickle ({error}).") from error
    return reader.named


def _is_plain(module: str, name: str) -> bool:
    if module == "torch" and "." not in name:
        is_dtype = isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name.endswith("Storage"):
            return True
    return (module, name) in PLAIN


def _refusal(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} is refused: {why}, which no checkpoint of scfm does. Take it from where it was "
        "made, or an earlier one."
    )


class _Inert(pickle.Unpickler):
    """Reads a pickle's structure; everything it names is a dummy that does nothing."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.named: set[tuple[str, str]] = set()

    def find_class(self, module_name: str, global_name: str) -> Any:
        self.named.add((module_name, global_name))
        return _Dummy

    def persistent_load(self, pid: Any) -> Any:
        return _Dummy()


class _Dummy:
    """Takes whatever a pickle does to an object."""

    def __new__(cls, *_: Any, **__: Any) -> "_Dummy":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """As a list's."""

    def extend(self, values: Iterable[Any]) -> None:
        """As a list's."""

    def add(self, value: Any) -> None:
        """As a set's."""
