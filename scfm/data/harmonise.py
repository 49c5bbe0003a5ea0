"""obs columns of many files -> the columns of one store, under one name, type and spelling.

in   each file's obs, an ObsMapping: target column -> names it goes by, overrides, values to rename
out  per file where each column came from; Arrow columns that are alike in all files

A mapping file is YAML:

    columns:                      # target: names it goes by in the files, the first found is taken
      cell_type: [cell_type, celltype, CellType]
      donor_id: [donor_id, donor]
    files:                        # by file name: another column, or "=value" for all its cells
      pbmc3k.h5ad: {donor_id: "=pbmc3k", cell_type: louvain_labels}
    values:                       # target: what is found -> what it shall be called; ~ is missing
      cell_type: {"B cells": "B cell", "NA": ~}

Without one, CELLxGENE's standard columns are kept where a file has them, whatever the case and
punctuation of their names. A cell without a value is null, and counted. These columns, and those
with ``values``, hold names: numbers in them are text, 1.0 like 1.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from scfm.data.manifest import ObsColumn
from scfm.errors import ConfigError, LabelError

Kind = Literal["boolean", "integer", "number", "category", "string"]
TEXT = ("category", "string")
_NARROW_TO_WIDE: tuple[Kind, ...] = ("boolean", "integer", "number", "category", "string")
_NUMPY = {"boolean": "bool", "integer": "int64", "number": "float64"}
MOST_CATEGORIES = 2**16  # a column of more different values is free text, such as barcodes

# CELLxGENE's schema, version 5: obs columns that say something about a cell's origin or kind
_WITH_TERM = ("assay", "cell_type", "development_stage", "disease", "self_reported_ethnicity",
              "sex", "tissue", "organism")  # fmt: skip
STANDARD = (
    "dataset_id",
    "donor_id",
    *(name for term in _WITH_TERM for name in (term, f"{term}_ontology_term_id")),
    "is_primary_data",
    "suspension_type",
    "tissue_general",
    "tissue_type",
)
_ALSO_CALLED = {"donor_id": ("donor",)}
# Names, even where a file numbers them: the next file may spell them out, or lack one, which makes
# floats of integers.
_NAMES = frozenset(STANDARD) - {"is_primary_data"}


@dataclass(frozen=True)
class ObsMapping:
    """Which obs columns a store has, and where each comes from.

    Attributes
    ----------
    columns
        Target -> names it may have in a file, in order of preference.
    files
        File name -> target -> column of that file, or "=value".
    values
        Target -> value found -> value wanted, None for missing.
    is_loose
        Compare names without regard to case and punctuation.
    """

    columns: Mapping[str, tuple[str, ...]]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    is_loose: bool = False

    def __post_init__(self) -> None:
        for file, own in self.files.items():
            for target, said in own.items():
                if said.startswith("=") and not said[1:].strip():
                    raise ConfigError(
                        f"The mapping says {said!r} of {target!r} in {file}, which names no value. "
                        'Write "=value"; or a column of the file.'
                    )

    def is_text(self, target: str) -> bool:
        """Whether its values are names, be they written as numbers."""
        return target in _NAMES or target in self.values

    def also(self, names: Iterable[str]) -> "ObsMapping":
        """The same, and these columns under their own name."""
        more = {name: (name,) for name in names if name not in self.columns}
        return replace(self, columns={**self.columns, **more})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "columns": {target: list(names) for target, names in self.columns.items()},
            "files": {name: dict(own) for name, own in self.files.items()},
            "values": {target: dict(renamed) for target, renamed in self.values.items()},
            "is_loose": self.is_loose,
        }


DEFAULT = ObsMapping(
    columns={name: (name, *_ALSO_CALLED.get(name, ())) for name in STANDARD}, is_loose=True
)


@dataclass(frozen=True)
class Origin:
    """Where one file's values of a target come from; neither: the file has none."""

    column: str | None = None
    constant: str | None = None

    def __str__(self) -> str:
        return f"={self.constant}" if self.column is None else self.column


@dataclass(frozen=True)
class Survey:
    """What one file has for a target: its kind, the values it uses, cells without one."""

    kind: Kind
    categories: tuple[str, ...]
    n_missing: int
    renamed: frozenset[str] = frozenset()  # keys of the mapping's ``values`` that are in the file


def load_mapping(path: str | Path) -> ObsMapping:
    """Read a mapping file. Raises ConfigError, with what is wrong in it."""
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the mapping {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    sections = _section(found, str(path))
    unknown = sorted(sections.keys() - {"columns", "files", "values"})
    if unknown or "columns" not in sections:
        wrong = f"has a section {unknown[0]!r}" if unknown else "has no section 'columns'"
        raise ConfigError(
            f"{path} {wrong}; a mapping has 'columns' (target: [names in the files]), and may have "
            "'files' (file name: {target: column or \"=value\"}) and 'values' (target: {old: new})."
        )
    columns = {
        target: tuple(_text(name, f"{path}: columns.{target}") for name in _listed(names))
        for target, names in _section(sections["columns"], f"{path}: columns").items()
    }
    mapping = ObsMapping(
        columns={target: names or (target,) for target, names in columns.items()},
        files=_two_deep(sections.get("files"), f"{path}: files"),
        values=_two_deep(sections.get("values"), f"{path}: values", may_be_missing=True),
    )
    for where, targets in [("values", mapping.values), *mapping.files.items()]:
        stray = sorted(set(targets) - set(columns))
        if stray:
            raise ConfigError(
                f"{path}: {where} speaks of {stray[0]!r}, which is not under 'columns'. "
                f"Columns are {', '.join(columns)}."
            )
    return mapping


def find_origins(
    obs_columns: Sequence[str], file_name: str, mapping: ObsMapping
) -> dict[str, Origin]:
    """Where a file's values of every target come from.

    Raises LabelError where the mapping names a column for this very file that it does not have.
    """
    same = _loosely if mapping.is_loose else str
    by_name = {same(name): name for name in reversed(obs_columns)}
    own = mapping.files.get(file_name, {})
    origins = {}
    for target, names in mapping.columns.items():
        if target in own:
            origins[target] = _own_origin(own[target], target, file_name, obs_columns)
            continue
        exact = next((name for name in names if name in obs_columns), None)
        loose = next((by_name[same(name)] for name in names if same(name) in by_name), None)
        origins[target] = Origin(column=exact or loose)
    return origins


def survey(
    values: pd.Series, renames: Mapping[str, str | None], *, as_text: bool = False
) -> Survey:
    """What kind of values one file has, and which. ``as_text`` names numbers as well."""
    kind = "category" if renames or as_text else _kind(values)
    if kind != "category":
        return Survey(kind, (), int(values.isna().sum()))
    codes, names = _coded(values, renames)
    used, n_missing = np.unique(codes[codes >= 0]), int((codes < 0).sum())
    kind = "category" if len(used) <= MOST_CATEGORIES else "string"
    there = {_key(value, renames) for value in values.dropna().unique()} if renames else ()
    renamed = renames.keys() & there
    return Survey(kind, tuple(names[code] for code in used), n_missing, frozenset(renamed))


def widest(kinds: Iterable[Kind]) -> Kind:
    """The kind that holds values of all of these."""
    return max(kinds, key=_NARROW_TO_WIDE.index)


def unified(surveys: Sequence[Survey], before: ObsColumn | None, target: str) -> ObsColumn:
    """One column for all files, in a store that may have it already.

    Where some hold text and others numbers, the numbers must have been surveyed as text. Raises
    LabelError where the store's column cannot hold the new values.
    """
    kind = widest(one.kind for one in surveys)
    if before:
        if before.kind not in TEXT and widest([kind, before.kind]) != before.kind:
            raise LabelError(
                f"The store's obs column {target!r} holds {before.kind} values, the new files have "
                f"{kind} values. Put them under another name in the mapping file (--mapping)."
            )
        kind = before.kind
    if kind != "category":
        return ObsColumn(kind)
    return ObsColumn(kind, tuple(sorted({name for one in surveys for name in one.categories})))


def as_arrow(values: pd.Series, renames: Mapping[str, str | None], column: ObsColumn) -> pa.Array:
    """A file's values as the store has them; of a category the int32 codes, null where missing."""
    if column.kind in TEXT:
        codes, names = _coded(values, renames)
        if column.kind == "string":
            return pa.DictionaryArray.from_arrays(
                pa.array(codes, mask=codes < 0), pa.array(names, pa.string())
            ).cast(pa.string())
        code_of = {name: code for code, name in enumerate(column.categories)}
        # an unused category of a file is none of the store's
        table = np.array([*(code_of.get(name, -1) for name in names), -1], dtype=np.int32)
        codes = table[codes]
        return pa.array(codes, mask=codes < 0)
    is_missing = values.isna().to_numpy(dtype=bool)
    plain = values.astype(object).where(~is_missing, 0).to_numpy()
    return pa.array(plain.astype(_NUMPY[column.kind]), mask=is_missing)


def require_files(mapping: ObsMapping, names: Sequence[str], in_store: Sequence[str] = ()) -> None:
    """Raise ConfigError where ``files`` of a mapping names what is no input, now or earlier."""
    for file in mapping.files:
        if file not in (*names, *in_store):
            raise ConfigError(
                f"The mapping's 'files' names {file!r}, which is none of the inputs."
                f"{hint([file], names)} They are: {', '.join(names)}."
            )


def require_columns(
    mapping: ObsMapping, found: Collection[str], others: Sequence[str], asked: Sequence[str] = ()
) -> None:
    """Raise LabelError where a column that was asked for is in no file.

    ``found`` are the targets that a file, or the store, has; ``others`` columns that are not kept;
    ``asked`` targets beside those of the mapping. The default mapping insists on none.
    """
    there = f"Beside those that are kept there are: {', '.join(others) or 'none'}."
    for name in asked:
        if name not in found:
            raise LabelError(
                f"--obs {name}: no file has such an obs column.{hint([name], others)} {there}"
            )
    for target, names in mapping.columns.items() if mapping != DEFAULT else ():
        if target not in found:
            raise LabelError(
                f"The mapping's column {target!r} is in no file, under none of its names "
                f"({', '.join(names)}).{hint([*names, target], others)} {there}"
            )


def hint(names: Iterable[str], known: Iterable[str]) -> str:
    """The known name that is most like one of these, as a question; "" where none is."""
    spelled = {_loosely(name): name for name in known}
    for name in names:
        if close := difflib.get_close_matches(_loosely(name), list(spelled), n=1):
            return f" Did you mean {spelled[close[0]]!r}?"
    return ""


def constant(text: str, n_cells: int) -> pd.Series:
    """A column that says the same of every cell."""
    return pd.Series(pd.Categorical.from_codes(np.zeros(n_cells, np.int8), [text]))


def _own_origin(said: str, target: str, file_name: str, obs_columns: Sequence[str]) -> Origin:
    if said.startswith("="):
        return Origin(constant=said[1:])
    if said not in obs_columns:
        raise LabelError(
            f"{file_name}: the mapping takes {target!r} from the column {said!r}, which it does "
            f"not have. Its columns are {', '.join(obs_columns) or 'none'}."
        )
    return Origin(column=said)


def _kind(values: pd.Series) -> Kind:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(values.dtype):
        return "boolean"
    if pd.api.types.is_integer_dtype(values.dtype):
        return "integer"
    return "number" if pd.api.types.is_float_dtype(values.dtype) else "category"


def _coded(
    values: pd.Series, renames: Mapping[str, str | None]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes, -1 where missing, and the value of each as text, renamed; all different."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, found = values.cat.codes.to_numpy(), list(values.cat.categories)
    else:
        codes, found = pd.factorize(values)
        found = list(found)
    keys = [_key(value, renames) for value in found]
    names = [renames.get(key, key) for key in keys]
    code_of = {name: code for code, name in enumerate(dict.fromkeys(filter(None, names)))}
    table = np.array([*(code_of.get(name or "", -1) for name in names), -1], dtype=np.int32)
    return table[codes], tuple(code_of)


def _key(value: Any, renames: Mapping[str, str | None]) -> str:
    """A value as the mapping names it; 1.0 is "1", unless the mapping writes "1.0"."""
    text = str(value)
    is_float = isinstance(value, float | np.floating)
    if is_float and text not in renames and float(value).is_integer() and abs(value) < 2**53:
        return str(int(value))
    return text


def _loosely(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _section(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ConfigError(f"{where} must hold 'key: value' lines, got {type(found).__name__}.")
    return {_text(key, where): value for key, value in found.items()}


def _two_deep(found: Any, where: str, *, may_be_missing: bool = False) -> dict[str, dict[str, Any]]:
    return {
        key: {
            name: None if value is None and may_be_missing else _text(value, f"{where}.{key}")
            for name, value in _section(inner, f"{where}.{key}").items()
        }
        for key, inner in _section(found or {}, where).items()
    }


def _listed(names: Any) -> list[Any]:
    if names is None:
        return []
    return names if isinstance(names, list) else [names]


def _text(value: Any, where: str) -> str:
    """YAML makes a bool of ``no`` and nothing of ``~``; a number is taken as it is written."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where}: wanted a name, got {value!r}. Put it in quotes if it is one.")
