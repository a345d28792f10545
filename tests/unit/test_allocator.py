"""What a worker's process does with freed memory is left to its user, if they have said it."""

from __future__ import annotations

import ctypes

import pytest

from headwater.runtime.workers import allocator


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            found.append((parameter, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    return found


@pytest.mark.parametrize(("setting", "kept"), [(None, True), ("65536", True), ("4096", False), ("0", False)])
def test_users_setting_is_left_alone(monkeypatch, calls, setting, kept):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if setting is not None:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", setting)
    assert allocator.keep_freed_memory() is kept
    assert bool(calls) is kept


def test_library_without_the_call_is_no_error(monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory() is False
