"""docs/tf_regions.md: its commands and its Python run, in order, in one folder."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from scfm.cli.app import main
from tests.data.toy_genome import draw_letters, write_fasta

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tf_regions.md"


@pytest.fixture
def folder(tmp_path, rng, monkeypatch) -> Path:
    """The files the page speaks of."""
    write_fasta(tmp_path / "genome.fa", {"chrI": draw_letters(rng, 4000)})
    (tmp_path / "reb1.bed").write_text("chr1\t500\t720\n")
    (tmp_path / "abf1.bed").write_text("chr1\t1500\t1700\n")
    (tmp_path / "abf1_lenient.bed").write_text("chr1\t1400\t1800\n")
    (tmp_path / "blacklist.bed").write_text("chr1\t0\t150\n")
    start = rng.integers(150, 3700, 600)
    cell = rng.integers(0, 30, 600)
    lines = [f"chr1\t{s}\t{s + 80}\tcell{c}\t1" for s, c in zip(start, cell, strict=True)]
    (tmp_path / "fragments.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs(folder):
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert [kind for kind, _ in blocks] == ["sh", "python", "sh", "python"]
    names: dict = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            continue
        for line in block.strip().splitlines():
            command, *arguments = shlex.split(line)
            assert command == "scfm"
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert not stop.value.code
    assert np.isfinite(names["batch"].signal).all()
