"""scfm demo: the whole path on bundled real cells."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder; an earlier demo is replaced.")] = Path(
        "demo"
    ),
    json: options.Json = False,
) -> None:
    """Pretrain, embed, annotate and evaluate on bundled cells; ends in report.html."""
    from scfm.demo.run import run_demo

    evaluation = run_demo(out, say=options.say)
    options.say(f"\n{evaluation.verdict}\n\nReport: {out}/report.html   Model: {out}/model")
    if json:
        options.print_json({"out": str(out), "verdict": evaluation.verdict})
