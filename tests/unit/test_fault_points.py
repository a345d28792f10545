"""Fault points: nothing without a folder, and with one a process waits at its token, once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from headwater.runtime import fault_points
from headwater.runtime.fault_points import reach, reaching


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fault_points, "_FOLDER", str(tmp_path))
    return tmp_path


def taken(folder: Path) -> list[Path]:
    deadline = threading.Event()
    for _ in range(2000):
        if found := list(folder.glob("*~*")):
            return found
        deadline.wait(0.005)
    return []


def test_without_a_folder_nothing_happens():
    assert fault_points._FOLDER is None
    reach("scan")
    assert list(reaching("scan", [1, 2])) == [1, 2]


def test_a_token_is_taken_once_and_holds_whoever_took_it(tokens: Path):
    (tokens / "scan@0").touch()
    done = threading.Event()
    held = threading.Thread(target=lambda: (reach("scan"), done.set()))
    held.start()
    (token,) = taken(tokens)
    assert token.name == f"scan@0~{os.getpid()}"
    reach("scan")  # a second one passes
    assert not done.is_set()
    token.unlink()
    held.join(10)
    assert done.is_set()


def test_tokens_of_other_phases_are_left_alone(tokens: Path):
    (tokens / "scan@0").touch()
    (tokens / "shuffle-read@1").touch()
    reach("shuffle-write")
    assert sorted(os.listdir(tokens)) == ["scan@0", "shuffle-read@1"]


def test_two_tokens_of_a_phase_stop_two(tokens: Path):
    for number in range(2):
        (tokens / f"map@{number}").touch()
    threads = [threading.Thread(target=reach, args=("map",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        (first, *_) = taken(tokens)
        first.unlink()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert os.listdir(tokens) == []


def test_a_stream_stops_after_its_first_item(tokens: Path):
    (tokens / "reduce@0").touch()
    items = reaching("reduce", iter("ab"))
    assert next(items) == "a"
    rest: list[str] = []
    thread = threading.Thread(target=lambda: rest.extend(items))
    thread.start()
    (token,) = taken(tokens)
    assert rest == []
    token.unlink()
    thread.join(10)
    assert rest == ["b"]


def test_a_folder_that_is_gone_stops_nobody(tokens: Path):
    tokens.rmdir()
    reach("sink")
