"""The README says what is so: its commands exist, its files exist, its Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from scfm.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("scfm ")]


@pytest.mark.parametrize("line", commands())
def test_command_is_understood(line):
    """Parsed by the command itself: every option exists and takes what it is given."""
    _, name, *arguments = shlex.split(line)
    group = typer.main.get_command(app)
    command = group.commands[name]
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    assert context.params


def test_the_tree_names_what_is_there():
    tree = README.split("```\nscfm/\n")[1].split("```")[0]
    package, rest = tree.split("configs/", 1)
    unit = ROOT / "scfm"
    for line in package.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        is_inside = line.startswith("    ")
        for name in names:
            path = (unit if is_inside else ROOT / "scfm") / name
            assert path.exists(), f"README's tree names {path}"
        if not is_inside:
            unit = ROOT / "scfm" / names[0]
    for line in ("configs/" + rest).splitlines():
        assert (ROOT / line.split()[0]).exists(), line


def test_every_unit_is_in_the_tree():
    tree = README.split("```\nscfm/\n")[1].split("```")[0]
    for path in (ROOT / "scfm").iterdir():
        if not path.name.startswith(("__pycache__", "configs")):
            assert path.name in tree, path.name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.M):
        assert f"\n{target}:" in makefile


def test_no_figure_is_missing():
    assert "@@" not in README


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_relative_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    for link in links:
        place = link.partition("#")[0]
        if place and not re.match(r"[a-z]+:", place):
            assert (path.parent / place).exists(), f"{path.name} links to {link}"
