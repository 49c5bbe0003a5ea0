"""scfm plan: what a pretraining run will take, before it is begun."""

from typing import Annotated

import typer

from scfm.cli import options


def command(
    cells: Annotated[float, typer.Option(help="Cells to train on, e.g. 50e6.")],
    config: Annotated[
        str, typer.Option(help="A shipped config's name or a YAML file.")
    ] = "scfm-tiny",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. --set train.strategy=fsdp.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Devices in all. [default: as the config says]")
    ] = None,
    device: Annotated[str, typer.Option(help="h100, h200, a100-80, l4, cpu, ...")] = "h100",
    memory: Annotated[
        float | None, typer.Option(help="GiB of each device. [default: the device's]")
    ] = None,
    genes_per_cell: Annotated[
        float | None, typer.Option(help="Mean expressed genes. [default: 1500, or of --data]")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Store or file whose cells' lengths are taken.")
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of the peak speed reached: assumed.")] = 0.4,
    check: Annotated[
        bool, typer.Option("--check", help="Also run three steps here: predicted against measured.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Parameters, memory a device, tokens, FLOPs, hours and disk of a run, and whether it fits.

    With --check, three real steps of one process of the run on this machine, in a process of its
    own, on --data or on made-up cells.
    """
    from scfm.tasks.pretrain_run import load_run
    from scfm.tools import plan_check
    from scfm.tools.plan import PlanRequest, make_plan
    from scfm.tools.plan_words import in_words

    run = load_run(config, set_ or [])
    ask = PlanRequest(
        cells=cells,
        gpus=gpus,
        device=device,
        memory_gib=memory,
        genes_per_cell=genes_per_cell,
        mfu=mfu,
        data=tuple(data or ()),
    )
    plan = make_plan(run, ask)
    if not json:
        print(in_words(plan), flush=True)
    checked = plan_check.check_plan(run, ask) if check else None
    if json:
        options.print_json({**plan.to_dict(), "checked": checked})
    elif checked:
        print("\n" + plan_check.in_words(checked))
