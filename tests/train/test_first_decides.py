"""What the first process decides for all, and what the others say where it is gone."""

import pytest
from torch.distributed import DistNetworkError

from scfm.train import processes


class Store:
    """Holds what was set; ``None`` stands for one that ended with its process."""

    def __init__(self, told: dict[str, bytes] | None) -> None:
        self.told = told

    def check(self, names: list[str]) -> bool:
        if self.told is None:
            raise DistNetworkError("Failed to recv, got 0 bytes.")
        return all(name in self.told for name in names)

    def get(self, name: str) -> bytes:
        assert self.told is not None
        return self.told[name]


@pytest.fixture
def second_of_two(monkeypatch):
    for name, number in {"LOCAL_RANK": 1, "RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(number))
    monkeypatch.setattr(processes, "_decisions", iter([7]))

    def with_store(told: dict[str, bytes] | None) -> None:
        monkeypatch.setattr(processes, "_store", lambda: Store(told))

    return with_store


def undecided() -> None:
    raise AssertionError("The first process decides, not this one.")


def test_others_take_what_the_first_decided(second_of_two):
    second_of_two({"decision 7": b'{"value": [1, null]}'})
    assert processes.decided_by_first(undecided) == [1, None]


def test_others_end_where_the_first_refused(second_of_two):
    second_of_two({"decision 7": b'{"refused": true}'})
    with pytest.raises(processes.AnotherSaysWhy, match="it says why"):
        processes.decided_by_first(undecided)


def test_others_end_where_the_first_is_gone(second_of_two):
    """Its refusal is the only thing to read: no traceback of a broken connection beside it."""
    second_of_two(None)
    with pytest.raises(processes.AnotherSaysWhy, match="is gone"):
        processes.decided_by_first(undecided)
