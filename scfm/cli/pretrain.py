"""scfm pretrain: count files -> a run folder with a model in it. Also under torchrun."""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from scfm.cli import launching, options


def command(
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; may hold a run only with --resume.")
    ],
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
        bool,
        typer.Option("--resume", help="Go on with the run in --out, or begin it."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Pretrain from scratch on raw counts.

    With train.devices above 1 it starts as many processes. Ctrl-C finishes the step, writes a
    checkpoint and says how to go on: by the same command with --resume.
    """
    with launching.one_voice():
        from scfm.tasks import pretrain as task
        from scfm.tasks.pretrain_run import asked_for, read_run

        overrides = set_ or []
        is_whole = bool(config or data) or not resume
        asked = asked_for(config, data or [], overrides) if is_whole else None
        train = (asked or read_run(out, overrides)).train
        n_processes = launching.processes_to_start(train, overrides, is_recorded=asked is None)
        if n_processes > 1:
            raise typer.Exit(launching.launch(n_processes, _arguments(locals())))
        if resume:
            model = task.resume(out, overrides, asked=asked)
        else:
            assert asked is not None
            model = task.pretrain(asked, out)
    if launching.is_first():  # one of the processes speaks for all
        options.say(
            f"Model written to {model}. Use it: scfm embed cells.h5ad --model {out} --out ..."
        )
        if json:
            options.print_json({"run": str(out), "model": str(model)})


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """The command again, for its processes."""
    given = [("--out", [values["out"]]), ("--config", [values["config"]])]
    given += [("--data", values["data"] or []), ("--set", values["set_"] or [])]
    switches = [f"--{name}" for name in ("resume", "json") if values[name]]
    pairs = [(option, str(value)) for option, all_ in given for value in all_ if value is not None]
    debug = ["--debug"] if "--debug" in sys.argv else []
    return ["pretrain", *itertools.chain(*pairs), *switches, *debug]
