"""Options that several commands share, and how they print."""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Species(StrEnum):
    auto = "auto"
    human = "human"
    mouse = "mouse"


Model = Annotated[str, typer.Option("--model", help="Model folder, run folder, or hub id.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write; replaced only when complete.")]
Pooling = Annotated[
    str | None,
    typer.Option(
        help="One vector a cell: cell, mean, max, S, T; of scFoundation all, max, mean, S, T. "
        "Default: the model's."
    ),
]
TargetDepth = Annotated[
    str | None,
    typer.Option(
        help="Total count asked for: t4 is 10^4, f2 twice the cell's own, a1 ten times it, "
        "source the cell's own. Default: the model's."
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Cells a forward pass; results do not depend on it.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Layer = Annotated[
    str | None,
    typer.Option(help="Where the raw counts are: X, raw, or a layer. Default: found and said."),
]
SpeciesOption = Annotated[Species, typer.Option(help="Whose genes these are.")]
Orthologs = Annotated[
    bool, typer.Option("--orthologs", help="Match mouse genes by one-to-one human orthologs.")
]
ExpectedCounts = Annotated[
    bool, typer.Option("--expected-counts", help="Accept non-integer expected counts (RSEM).")
]
MinimumCoverage = Annotated[
    float, typer.Option(help="Share of the counts on known genes below which data is refused.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]


def input_config(
    layer: str | None,
    species: Species,
    orthologs: bool,
    expected_counts: bool,
    minimum_coverage: float,
) -> Any:
    """The shared reading options as an InputConfig; ConfigError for an impossible one."""
    from scfm.config import from_mapping
    from scfm.tokens.inputs import InputConfig

    settings = {
        "layer": layer,
        "species": str(species),
        "orthologs": orthologs,
        "expected_counts": expected_counts,
        "minimum_coverage": minimum_coverage,
    }
    return from_mapping(InputConfig, settings, where="options")


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def named_paths(given: list[str], option: str) -> dict[str, Path]:
    """NAME=FILE, as often as the option was given. Raises ConfigError."""
    return {name: Path(path) for name, path in named(given, option, "NAME=FILE").items()}


def named(given: list[str], option: str, wanted: str) -> dict[str, str]:
    """NAME=VALUE, as often as the option was given, in words ``wanted``. Raises ConfigError."""
    from scfm.errors import ConfigError

    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {text}: wanted {wanted}.")
        if name in found:
            raise ConfigError(f"{option}: {name} was given twice.")
        found[name] = value
    return found


def say(text: object) -> None:
    """A line for a person; stdout is kept for what was asked for."""
    print(text, file=sys.stderr, flush=True)


def print_json(found: dict[str, Any]) -> None:
    """The one machine-readable line."""
    print(json.dumps(found), flush=True)


class CellProgress:
    """A bar on a terminal, a line every tenth elsewhere."""

    def __init__(self, what: str, unit: str = "cells"):
        self.what, self.unit, self.bar, self.tenths = what, unit, None, 0

    def __enter__(self) -> Callable[[int, int], None]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True))
            self.task = self.bar.add_task(self.what, total=None)
            self.bar.start()
        return self.update

    def update(self, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        elif done * 10 // total > self.tenths:
            self.tenths = done * 10 // total
            say(f"{self.what} {done:,}/{total:,} {self.unit}")

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


class StagedProgress:
    """The progress of several stages, one after the other; ``unit`` is what the last one counts."""

    def __init__(self, unit: str):
        self.unit, self.stage, self.shown = unit, "", None

    def __enter__(self) -> Callable[[str, int, int], None]:
        return self.update

    def update(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.__exit__()
            unit = "cells" if stage.startswith("embed") else self.unit
            self.stage, self.shown = stage, CellProgress(stage, unit)
            self.shown.__enter__()
        assert self.shown is not None
        self.shown.update(done, total)

    def __exit__(self, *_: object) -> None:
        if self.shown is not None:
            self.shown.__exit__()
