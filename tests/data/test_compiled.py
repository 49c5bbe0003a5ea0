"""Compilation survives places where nothing can be cached, and forgets stale machine code."""

import errno

import pytest
from numba.core import caching, config

from scfm.data import compiled as compiled_module
from scfm.data.compiled import compiled


def double(x):
    return 2 * x


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_machine_code_is_kept_and_found_again(cache_folder):
    assert compiled(double)(21) == 42
    assert list(cache_folder.rglob("*.nbc"))
    again = compiled(double)
    assert again(21) == 42
    assert sum(again.stats.cache_hits.values()) == 1


def test_an_edit_in_any_file_of_the_package_outdates_it(cache_folder, monkeypatch):
    compiled(double)(21)
    monkeypatch.setattr(compiled_module, "_sources_hash", lambda: "edited")
    after_edit = compiled(double)
    after_edit(21)
    assert sum(after_edit.stats.cache_hits.values()) == 0


def test_nowhere_to_cache_is_no_error(monkeypatch):
    def read_only(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", read_only)
    assert compiled(double)(21) == 42


def test_a_full_disk_is_no_error(cache_folder, monkeypatch):
    def full(self, key, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled(double)(21) == 42
