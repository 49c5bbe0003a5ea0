"""docs/annotation.md: its Python runs, in order, in one namespace; its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

import scfm
from scfm.cli.app import app
from scfm.data.marker_table import marker_table
from tests.toys import toy_adata

PAGE = Path(__file__).resolve().parents[1] / "docs" / "annotation.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), flags=re.S)


def test_the_pages_python_runs(rng, toy_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlas, adata = toy_adata(rng, n_cells=90), toy_adata(rng, n_cells=12)
    atlas.obs["donor_id"] = [f"d{i // 2 % 3}" for i in range(90)]
    names = list(adata.var_names)
    given = {
        "scfm": scfm,
        "atlas": atlas,
        "adata": adata,
        "model": scfm.load(toy_model_folder),
        "markers": {"B": names[3:6], "A": names[6:9]},
    }
    found = blocks("python")
    assert len(found) == 4
    for block in found:
        exec(compile(block, str(PAGE), "exec"), given)
    assert (tmp_path / "refs" / "blood" / "reference.json").exists()
    assert len(given["evidence"]) == 15
    assert "scfm_ontology_name" in adata.obs
    assert (adata.obs["markers_cell_type"].astype(str) == adata.obs["cell_type"].astype(str)).all()
    assert adata.uns["scfm"]["markers"]["is_calibrated"]


@pytest.mark.parametrize(
    "line",
    [
        line.partition("#")[0].strip()
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("scfm ")
    ],
)
def test_its_commands_are_understood(line):
    """Parsed by the command itself: every option exists and takes what it is given."""
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    assert command.make_context(name, list(arguments), resilient_parsing=False).params


def test_its_table_of_markers_is_one():
    (text,) = blocks("yaml")
    table = marker_table(yaml.safe_load(text))
    assert table.types["CD4 T cell"].negative == ("CD8A",)
