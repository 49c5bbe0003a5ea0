"""Window sets that are no AnnData -> SequenceRegions.

in   .npz   keys "chr1:100-200", seq, Y (window x task: -1, 0, 1), and tasks, or tf and cell
     .h5    X_<part> one-hot (window, 4, base), Y_<part> (window, task); part: train, valid, test
out  SequenceRegions
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Int, Int8, Shaped

from scfm.data.container import reading
from scfm.data.nucleotides import codes_of_one_hot, encode
from scfm.data.region_sequences import SequenceRegions
from scfm.errors import InputError, LabelError, UnreadableFileError

REGION = re.compile(r"^(?P<chrom>.+):(?P<start>[\d,]+)-(?P<end>[\d,]+)$")


def read_npz(path: str | Path) -> SequenceRegions:
    """Windows with their sequences and labels.

    Raises UnreadableFileError where an array is missing, InputError for names that are no
    intervals, LabelError for labels other than -1, 0 and 1.
    """
    name = str(path)
    with reading(name), np.load(path, allow_pickle=False) as arrays:
        missing = [key for key in ("keys", "seq", "Y") if key not in arrays]
        if missing:
            raise UnreadableFileError(
                f"has no array {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}. "
                "Wanted: keys ('chr1:100-200'), seq, Y, and tasks (or tf and cell)."
            )
        keys, sequences, table = arrays["keys"], arrays["seq"], arrays["Y"]
        tasks = task_names(arrays, table.shape[1], Path(path).stem)
    chrom, start, end = parse_intervals(keys, name)
    return SequenceRegions(
        name=name,
        tasks=tasks,
        chrom=chrom,
        start=start,
        end=end,
        codes=encode(sequences, name),
        label_table=check_labels(table, name),
        source_row=np.arange(len(start)),
    )


def is_window_h5(file: h5py.File) -> bool:
    """Whether an HDF5 file holds parts of one-hot windows."""
    return bool(_parts(file))


def read_window_h5(path: str | Path) -> SequenceRegions:
    """One-hot windows without coordinates: each part becomes a chromosome of that name.

    Raises UnreadableFileError, InputError, LabelError.
    """
    name = str(path)
    with reading(name), h5py.File(path, "r") as file:
        parts = _parts(file)
        stored: list[tuple[np.ndarray, np.ndarray]] = [
            (np.asarray(file[f"X_{part}"]), np.asarray(file[f"Y_{part}"])) for part in parts
        ]
    if not stored:
        raise UnreadableFileError(f"{name}: holds no X_train, Y_train and the like.")
    codes = [
        codes_of_one_hot(hot, f"{name}: X_{part}")
        for part, (hot, _) in zip(parts, stored, strict=True)
    ]
    table = np.concatenate([labels.reshape(len(labels), -1) for _, labels in stored])
    sizes = [len(part) for part in codes]
    length = codes[0].shape[1]
    start = np.concatenate([np.arange(size, dtype=np.int64) * length for size in sizes])
    return SequenceRegions(
        name=name,
        tasks=task_names({}, table.shape[1], Path(path).stem),
        chrom=np.repeat(np.array(parts), sizes),
        start=start,
        end=start + length,
        codes=np.concatenate(codes),
        label_table=check_labels(table, name),
        source_row=np.concatenate([np.arange(size) for size in sizes]),
    )


def _parts(file: h5py.File) -> list[str]:
    """Names of the parts, in the order train, valid, test, then others."""
    names = [str(key) for key in file]
    parts = [key[2:] for key in names if key.startswith("X_") and f"Y_{key[2:]}" in names]
    first = {"train": 0, "valid": 1, "test": 2}
    return sorted(parts, key=lambda part: (first.get(part, 3), part))


def task_names(arrays: Mapping[str, Any], n_tasks: int, stem: str) -> tuple[str, ...]:
    """Names of the columns of a label table: "TF:cell" where both are said.

    Without any, the file's own name for one task, else that with a number.
    """
    if "tasks" in arrays:
        names = [str(task) for task in arrays["tasks"]]
    elif "tf" in arrays and "cell" in arrays:
        pairs = zip(arrays["tf"], arrays["cell"], strict=True)
        names = [f"{tf}:{cell}" for tf, cell in pairs]
    elif "tf" in arrays:
        names = [str(tf) for tf in arrays["tf"]]
    else:
        names = [stem] if n_tasks == 1 else [f"{stem}_{i}" for i in range(n_tasks)]
    check_task_names(names, n_tasks, stem)
    return tuple(names)


def check_task_names(names: Sequence[str], n_tasks: int, name: str) -> None:
    """Refuse a number of names other than of columns, and names that occur twice (LabelError)."""
    if len(names) != n_tasks:
        raise LabelError(f"{name}: {n_tasks} columns of labels but {len(names)} names of tasks.")
    repeated = sorted({task for task in names if names.count(task) > 1})
    if repeated:
        raise LabelError(
            f"{name}: tasks of one name: {', '.join(repeated[:5])}. Give each its own, such as "
            "TF:cell."
        )


def check_labels(table: Any, name: str) -> Int8[np.ndarray, "region task"]:
    """Labels as int8. Raises LabelError for anything but -1, 0 and 1."""
    table = np.asarray(table)
    found = np.unique(table)
    if not np.isin(found, (-1, 0, 1)).all():
        others = ", ".join(f"{value:g}" for value in found[~np.isin(found, (-1, 0, 1))][:5])
        raise LabelError(
            f"{name}: labels are 1 (bound), 0 (not bound) and -1 (unknown), but it holds {others}."
        )
    return table.astype(np.int8)


def parse_intervals(
    keys: Sequence[str] | np.ndarray, name: str
) -> tuple[Shaped[np.ndarray, " region"], Int[np.ndarray, " region"], Int[np.ndarray, " region"]]:
    """("chr1:100-200", ...) as chromosomes, starts and ends. Raises InputError for other names."""
    found = pd.Series(np.asarray(keys, dtype=str)).str.extract(REGION)
    is_wrong = found["chrom"].isna().to_numpy()
    if is_wrong.any():
        example = str(np.asarray(keys)[is_wrong][0])
        raise InputError(
            f"{name}: {is_wrong.sum():,} of {len(is_wrong):,} names are no intervals, for example "
            f"{example!r}. Wanted: 'chr1:100-200', 0-based and half-open."
        )
    start, end = (
        found[side].str.replace(",", "").astype(np.int64).to_numpy() for side in ("start", "end")
    )
    return found["chrom"].to_numpy().astype(str), start, end
