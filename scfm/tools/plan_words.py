"""A plan as a table for a person.

in   Plan
out  lines of text
"""

import math

from scfm.tools.devices import GIB
from scfm.tools.plan import USABLE, Plan

SAID = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser states",
    "activations": "activations",
    "workspace": "workspace",
    "batches": "batches of cells",
    "runtime": "runtime",
}


def in_words(plan: Plan) -> str:
    """The whole plan, its assumptions and the verdict."""
    return "\n".join([*_head(plan), *_parameters(plan), *_memory(plan), *_work(plan), *_end(plan)])


def _head(plan: Plan) -> list[str]:
    s = plan.settings
    how = [s["strategy"], s["precision"], f"recompute {s['recompute']}"]
    if s["offload"] != "none":
        how.append(f"offload {s['offload']}")
    return [f"{s['processes']} x {s['device']}: {', '.join(how)}", ""]


def _parameters(plan: Plan) -> list[str]:
    return ["parameters", *(_row(k, f"{v:,}") for k, v in plan.parameters.items()), ""]


def _memory(plan: Plan) -> list[str]:
    rows = [_row(SAID[part], gib(size)) for part, size in plan.memory.items()]
    total = f"{gib(plan.memory_total)}  of {gib(plan.memory_limit).strip()}"
    return ["memory of each device", *rows, _row("total", total), ""]


def _work(plan: Plan) -> list[str]:
    w, disk = plan.work, plan.disk
    hours = "not known" if math.isnan(w["hours"]) else _time(w["hours"])
    return [
        f"work, {plan.settings['cells']:,.0f} cells",
        _row("steps", f"{w['steps']:,.0f}"),
        _row("cells a step", f"{w['cells_per_step']:,.0f}  ({_per_device(plan)})"),
        _row("tokens a step", f"{w['tokens_per_step']:,.0f}"),
        _row("tokens", f"{w['tokens']:.3g}"),
        _row("epochs", f"{w['epochs']:.3g}"),
        _row("FLOPs a step", f"{w['flops_per_step']:.3g}"),
        _row("FLOPs", f"{w['flops']:.3g}"),
        _row("time", hours),
        "",
        "disk",
        _row("store", f"{disk['store'] / 1e9:,.1f} GB"),
        _row("a checkpoint", f"{disk['checkpoint'] / 1e9:,.2f} GB"),
        _row("the model", f"{disk['model'] / 1e9:,.2f} GB"),
        "",
    ]


def _per_device(plan: Plan) -> str:
    at_once = f"{plan.work['cells_per_device']:,.0f} a device at once"
    times = plan.settings["accumulate"]
    return at_once if times == 1 else f"{at_once}, {times} times"


def _end(plan: Plan) -> list[str]:
    assumed = ["assumed", *(f"  {line}" for line in plan.assumptions), ""]
    if plan.fits:
        return [*assumed, "It fits."]
    if plan.try_next:
        ways = " ".join(f"--set {setting}" for setting in plan.try_next)
        return [*assumed, f"It does not fit ({USABLE:.0%} of the memory is usable). Try: {ways}"]
    return [
        *assumed,
        "It does not fit, and no strategy, recompute or accumulation found makes it: take more or "
        "larger devices, fewer loader.batch_size, or a smaller model.",
    ]


def gib(size: float) -> str:
    """Bytes in GiB, or in MiB where they are few."""
    return f"{size / GIB:8.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:8.1f} MiB"


def _row(name: str, value: str) -> str:
    return f"  {name:<17}{value:>14}"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 72 else f"{hours:,.0f} hours ({hours / 24:,.1f} days)"
