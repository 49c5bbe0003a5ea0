"""scfm pretrain: count files -> a run folder with a model in it. Also under torchrun."""

from pathlib import Path
from typing import Annotated

import typer

from scfm.cli import options


def command(
    out: Annotated[Path, typer.Option("--out", help="Run folder; must not hold a run yet.")],
    config: Annotated[
        str, typer.Option(help="A shipped config's name (scfm-tiny, scfm-3m, ...) or a YAML file.")
    ] = "scfm-tiny",
    data: Annotated[list[str] | None, typer.Option(help="Count file; repeat for several.")] = None,
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
        if data or set_:
            raise ConfigError(
                "--resume goes on with the run as it was configured; leave out --data and --set."
            )
        model = task.resume(out)
    else:
        overrides = list(set_ or [])
        if data:
            overrides.append(f"data={list(data)!r}")
        model = task.pretrain(load_config(task.PretrainRun, config, overrides), out)
    options.say(f"Model written to {model}. Use it: scfm embed cells.h5ad --model {out} --out ...")
    if json:
        options.print_json({"run": str(out), "model": str(model)})
