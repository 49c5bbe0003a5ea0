"""Stopping on request: which signals, how often, and how processes agree."""

import multiprocessing
import os
import signal

import pytest
import torch
import torch.distributed as dist

from scfm.errors import Interrupted
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_run import PretrainRun
from scfm.train.checkpoint_files import checkpoints
from scfm.train.stopping import Vote
from tests.toys import toy_vocab
from tests.train.toy_runs import after_step, changed, toy_run


@pytest.fixture
def run(tmp_path, rng) -> PretrainRun:
    return changed(toy_run(tmp_path, rng), checkpoints={"every_n_steps": 100})


def send(*numbers: int):
    return lambda: [signal.raise_signal(number) for number in numbers]


@pytest.mark.parametrize(
    "sent",
    [
        [signal.SIGINT],
        [signal.SIGTERM],
        [signal.SIGUSR1],
        [signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM],  # a cluster's, by two ways
    ],
    ids=lambda sent: "+".join(number.name for number in sent),
)
def test_signal_stops_with_a_checkpoint(run, tmp_path, monkeypatch, capsys, sent):
    before = [signal.getsignal(number) for number in sent]
    after_step(monkeypatch, 2, send(*sent))
    with pytest.raises(Interrupted, match=r"at step 2 .* Go on with: scfm pretrain .* --resume"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step=2"]
    assert capsys.readouterr().err.count("Stopping after this step") == 1
    assert [signal.getsignal(number) for number in sent] == before


def test_finished_run_leaves_signals_as_they_were(run, tmp_path):
    """Lightning's handler for SIGTERM, left behind, would make the process deaf to it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    pretrain(changed(run, train={"steps": 2}), tmp_path / "run", vocab=toy_vocab())
    assert [signal.getsignal(number) for number in numbers] == before


def test_second_ctrl_c_stops_at_once(run, tmp_path, monkeypatch):
    after_step(monkeypatch, 2, send(signal.SIGINT, signal.SIGINT))
    with pytest.raises(Interrupted, match=r"at once.* Go on with: .* --resume"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    assert checkpoints(tmp_path / "run") == []


def test_process_whose_launcher_was_killed_stops(run, tmp_path, monkeypatch):
    """It has another parent then; without a launcher a change of parent means nothing."""
    real = os.getppid()
    for name, is_launched in (("alone", False), ("launched", True)):
        with monkeypatch.context() as patch:
            patch.setattr(dist, "is_torchelastic_launched", lambda launched=is_launched: launched)
            after_step(patch, 2, lambda p=patch: p.setattr(os, "getppid", lambda: real + 1))
            if is_launched:
                with pytest.raises(Interrupted, match="at step 2 "):
                    pretrain(run, tmp_path / name, vocab=toy_vocab())
            else:
                pretrain(run, tmp_path / name, vocab=toy_vocab())


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def test_vote_answers_one_call_late(group):
    vote, asked = Vote(), [False, True, False, False]
    assert [vote(yes) for yes in asked] == [False, *asked[:-1]]
    assert vote.result() is asked[-1]
    assert vote.result() is False  # nothing under way


def test_vote_is_on_the_cpu(group):
    """So it never waits for a GPU, whatever the default device."""
    with torch.device("meta"):
        vote = Vote()
        assert [vote(True), vote(False)] == [False, True]


def cast(rank: int, meeting: str, results: "multiprocessing.Queue[tuple[int, list[bool]]]") -> None:
    """One of two processes, of which the second alone says yes, once."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    vote = Vote()
    results.put((rank, [vote(yes) for yes in (False, rank == 1, False, False)]))
    dist.destroy_process_group()


@pytest.mark.multiprocess
def test_one_process_stops_all(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    voters = [
        context.Process(target=cast, args=(rank, str(tmp_path / "meeting"), results))
        for rank in range(2)
    ]
    for voter in voters:
        voter.start()
    found = dict(results.get(timeout=120) for _ in voters)
    for voter in voters:
        voter.join()
    assert found == {rank: [False, False, True, False] for rank in range(2)}
