"""scfm pretrain: count files -> a run folder with a model in it. Also under torchrun."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options


def command(
    out: Annotated[Path, typer.Option("--out", help="Run folder; must not hold a run yet.")],
    config: Annotated[
        str | None,
        typer.Option(help="A shipped config's name or a YAML file. [default: scfm-tiny]"),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Count file or store; repeat for several.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set optim.lr=3e-4.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, as it was configured.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Pretrain from scratch on raw counts.

    Ctrl-C finishes the step, writes a checkpoint and says how to go on.
    """
    from scfm.config import load_config
    from scfm.errors import ConfigError
    from scfm.tasks import pretrain as task

    if resume:
        if data or config:
            raise ConfigError(
                "--resume goes on with the run as it was configured; leave out --data and --config."
            )
        model = task.resume(out, set_ or [])
    else:
        run = load_config(task.PretrainRun, config or "scfm-tiny", set_ or [])
        model = task.pretrain(replace(run, data=tuple(data)) if data else run, out)
    if int(os.environ.get("RANK", "0")):  # torchrun: one of the processes speaks for all
        return
    options.say(f"Model written to {model}. Use it: scfm embed cells.h5ad --model {out} --out ...")
    if json:
        options.print_json({"run": str(out), "model": str(model)})
