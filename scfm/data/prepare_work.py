"""The folder of an unfinished conversion, STORE/.prepare: begun, found again, swept away.

in   a store's folder, the plan of the conversion, what was asked for this time
out  the plan to go on with, or a refusal that says what is different now
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scfm.data.fingerprint import sha256
from scfm.data.manifest import MANIFEST
from scfm.data.prepare_plan import Plan, PlannedFile, PrepareConfig, open_planned, stamp_of
from scfm.data.prepare_state import WORK
from scfm.data.soma_address import is_address
from scfm.data.store_writer import StoreWriter
from scfm.data.write import atomic_path
from scfm.errors import ConfigError, InputError, Interrupted, MissingFileError, OutputError


def refuse_foreign(out: Path) -> None:
    """A folder that holds other things is not made a store of."""
    if not out.is_dir() or (out / MANIFEST).exists() or (out / WORK).exists():
        return
    ours = {"shards", "datasets", "genes", "manifests", ".lock"}  # of a start that was refused
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in ours)
    if others:
        raise OutputError(
            f"Cannot make a store in {out}: it holds other files ({', '.join(others[:3])}). "
            "Choose a new folder for --out."
        )


def begin(work: Path, plan: Plan) -> None:
    shutil.rmtree(work, ignore_errors=True)
    (work / "shards").mkdir(parents=True)
    with atomic_path(work / "plan.json") as temporary:
        temporary.write_text(plan.to_json())


def interrupted(
    work: Path, writer: StoreWriter, paths: list[str], config: PrepareConfig
) -> Plan | None:
    """The plan of a conversion that was interrupted, if this is the same; None if there is none."""
    if not (work / "plan.json").exists():
        return None
    plan = Plan.from_json((work / "plan.json").read_text())
    if plan.after != (writer.manifest.hash if writer.manifest else ""):
        shutil.rmtree(work)  # it was interrupted after its commit: all that is left is rubbish
        return None
    wanted = json.loads(json.dumps(config.to_dict()))
    other = [
        f"{key} was {_short(plan.settings.get(key))}, is {_short(value)}"
        for key, value in wanted.items()
        if plan.settings.get(key) != value
    ]
    other += [f"{path} is new" for path in paths if path not in plan.inputs]
    other += [f"{path} is missing" for path in plan.inputs if path not in paths]
    if not other and paths != plan.inputs:
        other = ["the inputs are in another order"]
    if other:
        raise ConfigError(
            f"{work.parent} holds an interrupted conversion that differs: {'; '.join(other)}. Go "
            "on with it by the command it was begun with, or begin anew: --restart."
        )
    for file in plan.files:
        require_unchanged(file, config)
    return plan


def require_unchanged(file: PlannedFile, config: PrepareConfig) -> None:
    """The content is what it was when it was planned: told by size and time, else by its hash."""
    stamp = stamp_of(file.path)
    if stamp and stamp == file.stamp:
        return
    if is_address(file.path):
        with open_planned(file.path, config) as source:
            found = source.fingerprint()
    elif stamp:
        found = sha256(Path(file.path))
    else:
        raise MissingFileError(f"{file.path}: no such file or folder; it was there before.")
    if found != file.sha256:
        raise InputError(
            f"{file.path} has changed since the conversion began: sha256 was "
            f"{file.sha256[:12]}..., is {found[:12]}... Put the old file back and type the same "
            "command, or begin anew: --restart."
        )


def require_room(plan: Plan, out: Path) -> None:
    """Refuse now what would fail in hours."""
    needed, free = 1.4 * plan.n_bytes, shutil.disk_usage(out).free
    if free < 0.8 * needed:  # it is an estimate
        raise OutputError(
            f"Cannot write {out}: the conversion takes about {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free. Make room, or choose another --out."
        )


def sweep(out: Path, writer: StoreWriter) -> None:
    """Remove the work, and files that earlier, killed or restarted conversions left."""
    manifest = writer.manifest
    assert manifest
    ours = f"{manifest.sequence:06d}-"
    listed = {
        out / file for shard in manifest.shards for file in (shard.cells_file, shard.obs_file)
    }
    listed |= {out / f for e in manifest.datasets for f in (e.var_file, e.report_file)}
    strays = [path for path in (out / "shards").glob(f"{ours}*") if path not in listed]
    strays += [path for path in (out / "datasets").iterdir() if path not in listed]
    for folder in (out, *(out / name for name in ("shards", "datasets", "genes", "manifests"))):
        strays += folder.glob(".*.tmp*")
    for path in strays:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / WORK)


@contextmanager
def kept_on_failure(out: Path) -> Iterator[None]:
    """Say of a stop and of a full disk that nothing is lost."""
    try:
        yield
    except (Interrupted, OutputError) as error:
        if not (out / WORK / "plan.json").exists():
            raise
        kept = "What is done is kept: the same command goes on from there."
        if isinstance(error, Interrupted):
            raise Interrupted(f"Stopped on request. {kept}") from error
        raise OutputError(f"{error} {kept}") from error


def write_json(path: Path, found: Any, indent: int | None = None) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(found, indent=indent) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
