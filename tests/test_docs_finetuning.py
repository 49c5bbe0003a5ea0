"""docs/finetuning.md: its Python runs, and its commands are understood."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer.main

from scfm.cli.app import app
from scfm.tasks.celltype import CelltypeConfig
from scfm.train.settings import TrainConfig
from tests.toys import toy_adata, toy_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "finetuning.md"
TEXT = PAGE.read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.S)
    for line in block.splitlines()
]


def test_the_pages_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlas = toy_adata(np.random.default_rng(0), n_cells=60)
    atlas.obs["donor_id"] = [f"d{i % 5}" for i in range(60)]
    config = CelltypeConfig(train=TrainConfig(steps=2, validate_every=2, accelerator="cpu"))
    cells = toy_adata(np.random.default_rng(1), n_cells=10)
    given = {"atlas": atlas, "cells": cells, "model": toy_model(), "config": config}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], str(PAGE), "exec"), given)
    assert (tmp_path / "types" / "model" / "README.md").exists()


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line):
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]  # pyright: ignore
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    assert command.make_context(name, list(arguments)).params
