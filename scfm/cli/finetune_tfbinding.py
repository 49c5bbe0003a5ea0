"""scfm finetune tfbinding: regions with labels -> a model of TF binding, scored where it was not
trained."""

import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from scfm.cli import launching, options
from scfm.cli.tfbind_use import Chip, ChipKey


def command(
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; may hold a run only with --resume.")
    ],
    data: Annotated[
        str | None, typer.Argument(help="Regions with labels: h5ad, h5mu, npz, h5.")
    ] = None,
    config: Annotated[
        str, typer.Option(help="A shipped config's name or a YAML file.")
    ] = "tfbinding-seqacc",
    fasta: Annotated[str | None, typer.Option(help="The genome's FASTA.")] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Accessibility, NAME=FILE.bw; repeat for more.")
    ] = None,
    group_key: Annotated[
        str | None, typer.Option(help="obs column of the groups of cells.")
    ] = None,
    chip_key: ChipKey = None,
    chip: Chip = None,
    cell_key: Annotated[
        str | None, typer.Option(help="obsm key of cell embeddings, such as X_scfm.")
    ] = None,
    training_chroms: Annotated[
        str | None, typer.Option(help="Default: all others that have labels.")
    ] = None,
    validation_chroms: Annotated[
        str | None, typer.Option(help="What training is stopped by. Default: the config's.")
    ] = None,
    test_chroms: Annotated[
        str | None, typer.Option(help="What is judged. Default: the config's.")
    ] = None,
    held_out_groups: Annotated[
        str | None, typer.Option(help="Groups of cells that train nothing.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="A binding model, whose weights training begins with.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set optim.lr=3e-4.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, as configured.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a model of TF binding on DNA and accessibility.

    Names are separated by commas: --test-chroms chr2,chr9,chr20. Writes config.yaml, metrics.csv,
    model/ and metrics.json. Ctrl-C finishes the step, writes a checkpoint and says how to go on.
    """
    with launching.one_voice():
        from scfm.tasks.tfbinding_run import load_binding_run
        from scfm.tools.tfbinding_training import finetune_tfbinding, read_binding_run

        overrides = set_ or []
        if resume:
            run = read_binding_run(out, tuple(overrides))
        else:
            bigwigs = options.named_paths(track or [], "--track")
            tracks = {name: str(path) for name, path in bigwigs.items()}
            asked = {
                **{"path": data, "fasta": fasta, "tracks": tracks},
                **{"group_key": group_key, "cell_key": cell_key, "chip_key": chip_key},
                "chip_of": options.named(chip or [], "--chip", "GROUP=CELL"),
            }
            chroms = {
                **{"training_chroms": training_chroms, "validation_chroms": validation_chroms},
                **{"test_chroms": test_chroms, "held_out_groups": held_out_groups},
            }
            run = load_binding_run(config, overrides)
            run = replace(
                run,
                start=start or run.start,
                data=replace(run.data, **{k: v for k, v in asked.items() if v}),
                split=replace(run.split, **{k: options.names(v) for k, v in chroms.items() if v}),
            )
        n_processes = launching.processes_to_start(run.train, overrides, is_recorded=resume)
        if n_processes > 1:
            raise typer.Exit(launching.launch(n_processes, _arguments(locals())))
        found = finetune_tfbinding(run, out, resume=resume, say=options.say)
    if launching.is_first():  # one of the processes speaks for all
        test = found["test"]
        options.say(
            f"Test chromosomes: mean AUPR {test['aupr']:.4f} (prevalence "
            f"{test['prevalence']:.4f}), AUROC {test['auroc']:.4f} over {test['n_tasks_judged']} "
            f"tasks. Model written to "
            f"{out / 'model'}."
        )
        if json:
            options.print_json({"run": str(out), **found})


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """The command again, for its processes."""
    names = (
        *("out", "config", "fasta", "group_key", "cell_key", "chip_key", "training_chroms"),
        *("validation_chroms", "test_chroms", "held_out_groups", "start"),
    )
    given = [(f"--{name.replace('_', '-')}", [values[name]]) for name in names]
    given += [("--track", values["track"] or []), ("--chip", values["chip"] or [])]
    given += [("--set", values["set_"] or [])]
    pairs = [(option, str(value)) for option, all_ in given for value in all_ if value is not None]
    switches = [f"--{name}" for name in ("resume", "json") if values[name]]
    debug = ["--debug"] if "--debug" in sys.argv else []
    regions = [values["data"]] if values["data"] else []
    return ["finetune", "tfbinding", *regions, *itertools.chain(*pairs), *switches, *debug]
