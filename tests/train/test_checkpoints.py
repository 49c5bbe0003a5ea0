"""Checkpoints: whole or not there, held to their manifest, mirrored, and nothing in them runs."""

import errno
import json
import os
import pickle
import resource
import warnings
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from scfm.errors import ConfigError, ModelError, NewerFormatError, OutputError, ScfmWarning
from scfm.model.pretrained import ScfmModel
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_run import PretrainRun
from scfm.train import checkpoint_files
from scfm.train.checkpoint import (
    CheckpointConfig,
    StepCheckpoint,
    Writer,
    _failure_of,
    latest_checkpoint,
)
from scfm.train.checkpoint_files import (
    MANIFEST,
    Manifest,
    begin,
    checkpoint_folder,
    checkpoints,
    complete,
    newest_whole,
    read_manifest,
    remove_beyond,
    retained,
    step_of,
    verify,
)
from scfm.train.checkpoint_mirror import Mirror, fetch_newest
from scfm.train.checkpoint_pickles import require_plain
from scfm.train.trainer import TrainConfig
from scfm.train.universal import require_same_strategy
from tests.toys import toy_vocab
from tests.train.toy_runs import changed, toy_run

ABOUT = {"strategy": "ddp", "world_size": 2, "precision": "32-true", "val_loss": None}


@pytest.fixture
def run(tmp_path, rng) -> PretrainRun:
    return changed(
        toy_run(tmp_path, rng),
        train={"validate_every": 2},
        checkpoints={"every_n_steps": 2, "keep_last": 9},
    )


def write(run: Path, step: int, content: bytes = b"weights") -> Path:
    path = checkpoint_folder(run, step)
    partial = begin(path)
    (partial / "deep").mkdir()
    (partial / "deep" / "state.bin").write_bytes(content)
    complete(path, {"step": step, **ABOUT})
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    path = checkpoint_folder(tmp_path, 3)
    begin(path)
    assert checkpoints(tmp_path) == []
    write(tmp_path, 3)
    assert names(tmp_path / "checkpoints") == {"step=3"}
    manifest = verify(path)
    assert (manifest.step, manifest.world_size) == (3, 2)
    assert set(manifest.files) == {"deep/state.bin"}
    assert {"scfm", "torch", "lightning"} <= set(manifest.versions)


DAMAGES = {
    "has 3 bytes of 7": lambda path: (path / "deep" / "state.bin").write_bytes(b"wei"),
    "by its hash": lambda path: (path / "deep" / "state.bin").write_bytes(b"Weights"),
    "is missing": lambda path: (path / "deep" / "state.bin").unlink(),
    "not in its manifest": lambda path: (path / "more.pt").write_bytes(b""),
    "no readable": lambda path: (path / MANIFEST).unlink(),
    "is unreadable": lambda path: (path / MANIFEST).write_text("{"),
    "outside": lambda path: (path / MANIFEST).write_text(
        (path / MANIFEST).read_text().replace("deep/state.bin", "../state.bin")
    ),
    "format 0": lambda path: (path / MANIFEST).write_text(
        (path / MANIFEST).read_text().replace('"format": 1', '"format": 0')
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_checkpoint_is_passed_over(tmp_path, what):
    before, newest = write(tmp_path, 5), write(tmp_path, 10)
    DAMAGES[what](newest)
    with pytest.warns(ScfmWarning, match=f"{newest} .*{what}.* Taking {before}"):
        assert latest_checkpoint(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOENT])
def test_what_cannot_be_read_is_damaged(tmp_path, monkeypatch, number):
    before, newest = write(tmp_path, 5), write(tmp_path, 10)
    original = checkpoint_files._hash

    def read(path: Path) -> str:
        if newest in path.parents:
            raise OSError(number, os.strerror(number))
        return original(path)

    monkeypatch.setattr(checkpoint_files, "_hash", read)
    with pytest.warns(ScfmWarning, match=f"{newest} .*{os.strerror(number)}.* Taking {before}"):
        assert latest_checkpoint(tmp_path) == before


def of_a_newer_scfm(path: Path) -> Path:
    """Of its manifest this scfm knows the format's number alone."""
    (path / MANIFEST).write_text('{"format": 9, "shards": []}')
    return path


def test_a_newer_scfms_checkpoint_ends_the_resume_and_stays(tmp_path):
    """It is sound: to pass it over would train its steps again and then remove it."""
    for step in (1, 2, 3, 9):
        write(tmp_path, step)
    newer = {of_a_newer_scfm(checkpoint_folder(tmp_path, step)) for step in (1, 9)}
    with pytest.raises(NewerFormatError, match=r"step=9 was written by a newer scfm.* Upgrade"):
        latest_checkpoint(tmp_path)
    saving = StepCheckpoint(tmp_path, CheckpointConfig(keep_last=1), TrainConfig(), "--resume")
    assert saving._doomed(newest=3) == [checkpoint_folder(tmp_path, 2)]
    remove_beyond(tmp_path, 0)
    assert set(checkpoints(tmp_path)) == newer


def test_no_whole_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="holds no checkpoint"):
        latest_checkpoint(tmp_path)
    (write(tmp_path, 5) / MANIFEST).unlink()
    with pytest.warns(ScfmWarning, match="damaged"), pytest.raises(ModelError):
        latest_checkpoint(tmp_path)


def manifests(losses: list[float | None], hours: float) -> list[Manifest]:
    return [
        Manifest(
            **{**ABOUT, "val_loss": loss},
            step=step,
            written_at=3600 * hours * step,
            versions={},
            files={},
        )
        for step, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_last": 1}, {6}),
        ({"keep_last": 3}, {4, 5, 6}),
        ({"keep_last": 1, "keep_best": 2}, {6, 1, 4}),
        ({"keep_last": 1, "keep_every_hours": 1.0}, {6, 0, 2, 4}),  # two are written an hour
        ({"keep_last": 1, "keep_every_hours": 0.5, "keep_best": 1}, {0, 1, 2, 3, 4, 5, 6}),
    ],
)
def test_what_stays(settings, kept):
    found = manifests([9.0, 1.0, None, 3.0, 2.0, 2.5, None], hours=0.5)
    rule = {"keep_best": 0, "keep_every_hours": None, **settings}
    assert retained(found, 6, **rule) == kept
    # in any order of events the same: nothing that stays hangs on what is gone
    left = [m for m in found if m.step in kept]
    assert retained(left, 6, **rule) == kept


def test_newest_stays_even_behind_later_steps():
    assert 2 in retained(
        manifests([1.0] * 5, 1), 2, keep_last=1, keep_best=0, keep_every_hours=None
    )


def test_a_run_keeps_what_it_should(run, tmp_path):
    run = replace(run, checkpoints=CheckpointConfig(every_n_steps=2, keep_last=1, keep_best=1))
    (tmp_path / "run" / "checkpoints" / ".step=4.partial").mkdir(parents=True)
    pretrain(run, tmp_path / "run", vocab=toy_vocab())
    found = [read_manifest(path) for path in checkpoints(tmp_path / "run")]
    assert all(m.val_loss is not None for m in found)
    assert found[0].step == 6
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("place", ["memory", "file"])
def test_mirror_holds_a_copy_and_gives_it_back(run, tmp_path, place):
    url = f"memory://{tmp_path.name}" if place == "memory" else f"file://{tmp_path}/mirror"
    run = replace(run, checkpoints=CheckpointConfig(every_n_steps=2, keep_last=2, mirror=url))
    out = tmp_path / "run"
    model = ScfmModel.from_pretrained(pretrain(run, out, vocab=toy_vocab()))
    assert set(Mirror(url).manifests()) == {4, 6}
    for path in checkpoints(out):
        (path / "state.pt").unlink()
    (tmp_path / "run" / "model").rename(tmp_path / "model")
    with pytest.warns(ScfmWarning, match=r"state.pt is missing|step=6 is taken from") as said:
        resume(out)
    assert len(said) == 2
    again = ScfmModel.from_pretrained(out / "model")
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ConfigError, match="another run"):
        pretrain(run, tmp_path / "second", vocab=toy_vocab())


def test_damaged_mirror_is_passed_over(tmp_path):
    url = f"memory://{tmp_path.name}"
    mirror = Mirror(url)
    for step in (1, 2):
        path = write(tmp_path / "from", step)
        mirror.put(path, read_manifest(path))
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/step=2/deep/state.bin", b"Weights")
    with pytest.warns(ScfmWarning, match="by its hash|step=1 is taken"):
        found = fetch_newest(url, tmp_path / "to")
    assert found == checkpoint_folder(tmp_path / "to", 1)
    assert newest_whole(tmp_path / "to") == found


@pytest.mark.parametrize("place", ["memory", "file"])
def test_killed_uploads_are_removed_from_the_mirror(tmp_path, place):
    url = f"memory://{tmp_path.name}" if place == "memory" else f"file://{tmp_path}/mirror"
    mirror = Mirror(url)
    for step in (1, 2):
        path = write(tmp_path / "from", step)
        mirror.put(path, read_manifest(path))
    for name in ("step=7/deep", "steps"):
        mirror.files.makedirs(f"{mirror.root}/{name}")
        mirror.files.pipe_file(f"{mirror.root}/{name}/state.bin", b"half")
    mirror.keep(lambda found: {2})
    left = {path.rpartition("/")[2] for path in mirror.files.ls(mirror.root, detail=False)}
    assert left == {"step=2", "steps"}


def test_a_newer_scfms_checkpoint_stays_in_the_mirror(tmp_path):
    mirror, path = Mirror(f"memory://{tmp_path.name}"), write(tmp_path / "from", 1)
    manifest = read_manifest(path)
    mirror.put(path, manifest)
    mirror.files.pipe_file(f"{mirror.root}/step=1/{MANIFEST}", b'{"format": 9}')
    for remove in (lambda: mirror.put(path, manifest), lambda: mirror.remove(1)):
        with pytest.raises(NewerFormatError):
            remove()
    with pytest.raises(NewerFormatError):
        fetch_newest(mirror.url, tmp_path / "to")
    assert mirror.files.exists(f"{mirror.root}/step=1/deep/state.bin")


def test_failing_mirror_warns_and_the_run_goes_on(run, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no room there")

    monkeypatch.setattr(Mirror, "put", full)
    checkpointing = replace(run.checkpoints, mirror=f"memory://{tmp_path.name}")
    with pytest.warns(ScfmWarning, match="no room there"):
        pretrain(replace(run, checkpoints=checkpointing), tmp_path / "run", vocab=toy_vocab())
    assert step_of(checkpoints(tmp_path / "run")[0]) == 6


def test_unknown_mirror_is_refused():
    with pytest.raises(ConfigError, match="cannot be opened"):
        Mirror("nowhere://place")


FULL = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left"),
    (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        "torch could not write all of a file",
    ),
]


@pytest.mark.parametrize(("failure", "words"), FULL)
def test_full_disk_stops_the_run_and_keeps_what_was(run, tmp_path, monkeypatch, failure, words):
    def full(*_: object, **__: object) -> None:
        raise failure

    original = StepCheckpoint._begin

    def begin_then_fill(self, trainer, path):
        with monkeypatch.context() as patch:
            if trainer.global_step == 4:
                patch.setattr(torch, "save", full)
            original(self, trainer, path)

    monkeypatch.setattr(StepCheckpoint, "_begin", begin_then_fill)
    with pytest.raises(OutputError, match=rf"{words} .*Those before it are kept.*--resume"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    assert names(tmp_path / "run" / "checkpoints") == {"step=2"}


@pytest.mark.parametrize("room", [1, 5_000, 300_000])
def test_what_torch_says_of_a_full_disk_is_understood(tmp_path, room):
    """A real one: the system refuses to let a file grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        failure = _failure_of(lambda: torch.save(torch.zeros(10**5), tmp_path / "state.pt"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure is not None


def test_one_checkpoint_under_way_at_most():
    writer, done = Writer(), []
    writer.submit(lambda: done.append(1))
    with pytest.raises(AssertionError):
        writer.submit(lambda: done.append(2))
    assert writer.wait() is None
    assert done == [1]
    writer.submit(lambda: 1 / 0)
    assert isinstance(writer.wait(), ZeroDivisionError)
    assert writer.failure() is None
    writer.close()


class Evil:
    """What a pickle can do to who loads it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def evil_archive(folder: Path, mark: Path) -> None:
    torch.save({"weights": torch.zeros(2), "more": Evil(mark)}, folder / "state.pt")


def evil_deepspeed(folder: Path, mark: Path) -> None:
    (folder / "checkpoint").mkdir()
    file = folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": [Evil(mark)]}, file)


def evil_bare_pickle(folder: Path, mark: Path) -> None:
    (folder / "meta.pt").write_bytes(pickle.dumps(Evil(mark)))


def evil_metadata(folder: Path, mark: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps({"storage_data": Evil(mark)}))


def evil_value_in_shards(folder: Path, mark: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_shards(
            {"weights": torch.zeros(2), "lr": Evil(mark)}, checkpoint_id=folder, no_dist=True
        )


@pytest.mark.parametrize(
    "make", [evil_archive, evil_deepspeed, evil_bare_pickle, evil_metadata, evil_value_in_shards]
)
def test_nothing_in_a_checkpoint_runs(tmp_path, make):
    folder, mark = tmp_path / "step=1", tmp_path / "mark"
    folder.mkdir()
    make(folder, mark)
    with pytest.raises(ModelError, match="is refused"):
        require_plain(folder)
    assert not mark.exists()


def test_resume_runs_nothing(run, tmp_path):
    """The whole way: a checkpoint whose manifest is right and whose file is not."""
    out, mark = tmp_path / "run", tmp_path / "mark"
    pretrain(run, out, vocab=toy_vocab())
    (out / "model").rename(tmp_path / "model")
    path = checkpoint_folder(out, 6)
    about = {k: v for k, v in json.loads((path / MANIFEST).read_text()).items() if k in ABOUT}
    evil_archive(begin(path), mark)
    complete(path, {**about, "step": 6})
    with pytest.raises(ModelError, match="it would run"):
        resume(out)
    assert not mark.exists()


def test_plain_shards_are_plain(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_shards(
            {"weights": torch.zeros(2, dtype=torch.bfloat16), "betas": (0.9, 0.98)},
            checkpoint_id=tmp_path / "step=1",
            no_dist=True,
        )
    require_plain(tmp_path / "step=1")


@pytest.mark.parametrize(
    ("wrote", "reads"), [("ddp", "fsdp"), ("fsdp", "auto"), ("deepspeed_2", "deepspeed_3")]
)
def test_another_strategy_is_refused(wrote, reads):
    manifest = replace(manifests([None], 1)[0], strategy=wrote)
    with pytest.raises(ConfigError, match=f"train.strategy={wrote}"):
        require_same_strategy(manifest, reads)


@pytest.mark.parametrize(("wrote", "reads"), [("ddp", "auto"), ("auto", "ddp"), ("fsdp", "fsdp")])
def test_auto_and_ddp_are_one(wrote, reads):
    require_same_strategy(replace(manifests([None], 1)[0], strategy=wrote), reads)
