"""A whole run as one typed object: strict YAML in, frozen dataclasses out.

in   a config's name or path, and ``a.b=c`` overrides
out  the dataclass, or a ConfigError that names the key, what it may be, and the nearest known one

The dataclasses lie beside what they configure; this module knows none of them. pydantic checks
the types.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from scfm.errors import ConfigError

Config = TypeVar("Config")


def load_config(cls: type[Config], name: str, overrides: Iterable[str] = ()) -> Config:
    """The config called ``name`` (shipped, or a path to a YAML file), with overrides applied."""
    settings, where = read_settings(name, overrides)
    return from_mapping(cls, settings, where=where)


def read_settings(name: str, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], str]:
    """What the config says, unchecked, with overrides applied; and where it stands."""
    path = find_config(name)
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold 'key: value' lines, got {type(settings).__name__}.")
    return with_overrides(settings, overrides), str(path)


def with_overrides(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The same settings with ``a.b=c`` applied, unchecked. Changes and returns ``settings``."""
    for override in overrides:
        _apply(settings, override)
    return settings


def from_mapping(cls: type[Config], settings: Mapping[str, Any], *, where: str) -> Config:
    """Check a mapping against a dataclass, nested ones included."""
    _refuse_unknown_keys(cls, settings, "", where)
    _refuse_booleans(cls, settings, "", where)
    try:
        return TypeAdapter(cls).validate_python(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(map(_in_words, error.errors()))) from error


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain values for YAML and JSON; the inverse of ``from_mapping``."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    """The whole config with every default written out."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def shipped_configs() -> dict[str, Path]:
    """Configs that travel with the package, by name."""
    folder = Path(str(files("scfm"))) / "configs"
    if not folder.is_dir():  # a development checkout: the wheel moves them into the package
        folder = folder.parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """A path as it is, or a shipped config's name. Raises ConfigError with the names there are."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(f"There is no config file {path}.")
    known = shipped_configs()
    if name not in known:
        raise ConfigError(
            f"There is no config '{name}'.{_nearest(name, known)} Known are {', '.join(known)}; "
            "or give a path that ends in .yaml."
        )
    return known[name]


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes a.b=c, got '{override}'.")
    *parents, last = key.strip().split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value, not a section.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: '{text}' is not readable as a value.") from error
    # YAML 1.1 reads on, off, yes and no as truth values; only true and false are meant as such.
    is_word = isinstance(value, bool) and text.strip().lower() not in ("true", "false")
    settings[last] = text.strip() if is_word else value


def _refuse_unknown_keys(cls: Any, settings: Any, prefix: str, where: str) -> None:
    if not dataclasses.is_dataclass(cls) or not isinstance(settings, Mapping):
        return
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key '{prefix}{key}'.{_nearest(str(key), known, prefix)} "
                f"{'Section ' + prefix[:-1] if prefix else 'A run'} has: {', '.join(known)}."
            )
        _refuse_unknown_keys(hints[key], value, f"{prefix}{key}.", where)


def _refuse_booleans(cls: Any, settings: Any, prefix: str, where: str) -> None:
    """A truth value where none is meant: pydantic would take it for 0 or 1."""
    if not dataclasses.is_dataclass(cls) or not isinstance(settings, Mapping):
        return
    for key, hint in get_type_hints(cls).items():
        value = settings.get(key)
        if _holds_boolean(value) and not _takes_booleans(hint):
            raise ConfigError(f"{where}: {prefix}{key} takes no truth value, got {value}.")
        _refuse_booleans(hint, value, f"{prefix}{key}.", where)


def _takes_booleans(hint: Any) -> bool:
    # a section's keys are looked at one by one
    is_it = hint is bool or dataclasses.is_dataclass(hint)
    return is_it or any(map(_takes_booleans, get_args(hint)))


def _holds_boolean(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        inner = value.values() if isinstance(value, Mapping) else value
        return any(map(_holds_boolean, inner))
    return isinstance(value, bool)


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{prefix}{close[0]}'?" if close else ""


def _in_words(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    reason = str(error["msg"]).removeprefix("Value error, ")
    if not place or reason.startswith(place.split(".")[0]):
        return reason
    return f"{place}: {reason}, got {error['input']!r}"
