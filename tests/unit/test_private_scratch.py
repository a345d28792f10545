"""Folders of processes that were killed are removed by the next one; those of the living are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headwater.runtime.nodes.private_scratch import make_private_scratch

LEAVE_ONE = """
import os
from headwater.runtime.nodes.private_scratch import make_private_scratch
print(make_private_scratch(), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_is_removed():
    killed = subprocess.run([sys.executable, "-c", LEAVE_ONE], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    mine, other = make_private_scratch(), make_private_scratch()
    assert not left.exists()
    assert mine.is_dir()
    assert other.is_dir()


def test_folders_that_are_not_known_to_be_abandoned_stay(temporary: Path):
    record = json.loads((make_private_scratch() / "private.json").read_text())
    contents = {"foreign": json.dumps({**record, "machine": "another"}), "torn": "{", "strange": "[]"}
    for name, text in contents.items():
        folder = temporary / f"headwater-{name}"
        folder.mkdir()
        (folder / "private.json").write_text(text)
    (temporary / "headwater-1000").mkdir()
    make_private_scratch()
    assert {path.name for path in temporary.iterdir()} > {
        "headwater-1000",
        *(f"headwater-{name}" for name in contents),
    }
