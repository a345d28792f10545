"""The journal: written once, read back in order, listed with the state each run is in."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import fsspec
import pytest

from headwater.errors import ParameterError, SourceNotFoundError
from headwater.lineage.journal import Journal, default_root, list_runs, read


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        yield tmp_path / "runs"
    else:
        yield f"memory://{tmp_path}/runs"
        fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def test_records_come_back_in_order(root):
    journal = Journal.create(root, {"pipeline": "rides"})
    journal.append([["task", 0, 1, 0, "n", [[0, 5, 100, "5-ff"]]], ["stage", 0, 5]])
    journal.append([])
    journal.append([["committed", "out"]])
    kinds = [record[0] for record in read(journal.run, root)]
    assert kinds == ["started", "task", "stage", "committed"]


def test_one_append_is_one_file_of_json(tmp_path):
    journal = Journal(tmp_path, "r")
    for i in range(3):
        journal.append([["stage", i, 0]])
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert names == ["000000.json", "000001.json", "000002.json"]
    sizes = [path.stat().st_size for path in (tmp_path / "r").iterdir()]
    assert journal.bytes == sum(sizes)
    assert json.loads((tmp_path / "r" / names[2]).read_text()) == [["stage", 2, 0]]


def test_opened_journal_goes_on_behind_the_last_segment(root):
    first = Journal.create(root)
    first.append([["stage", 0, 1]])
    second = Journal.open(first.run, root)
    second.append([["stage", 1, 2]])
    assert [r[0] for r in read(first.run, root)] == ["started", "stage", "stage"]


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("finished", "finished"),
        ("failed run", "failed"),
        ("interrupted", "interrupted"),
        ("stopped", "stopped"),
    ],
)
def test_state_follows_the_last_record(root, kind, state):
    journal = Journal.create(root, {"pipeline": "rides"})
    assert list_runs(root)[0].state == "running"
    journal.end(kind, ValueError("no\nmore") if kind == "failed run" else None)
    entry = list_runs(root)[0]
    assert (entry.state, entry.pipeline, entry.run) == (state, "rides", journal.run)
    assert ("ValueError: no" in str(entry)) == (kind == "failed run")


def test_run_of_a_dead_process_died(tmp_path):
    code = f"from headwater.lineage.journal import Journal; Journal.create({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [entry.state for entry in list_runs(tmp_path)] == ["died"]


def test_runs_are_listed_newest_first(tmp_path):
    for run in ("20260101-000000-aaaa", "20260301-000000-aaaa", "20260201-000000-zzzz"):
        Journal(tmp_path, run).start({})
    assert [entry.run[:8] for entry in list_runs(tmp_path)] == ["20260301", "20260201", "20260101"]


def test_no_folder_means_no_runs(tmp_path):
    assert list_runs(tmp_path / "none") == []


def test_unknown_run_and_unknown_protocol_are_named(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no run 'nope'"):
        list(read("nope", tmp_path))
    with pytest.raises(SourceNotFoundError, match="no run 'nope'"):
        Journal.open("nope", tmp_path)
    with pytest.raises(ParameterError, match="nosuch"):
        Journal("nosuch://x")


def test_home_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("HEADWATER_HOME", "/data/hw")
    assert default_root() == os.path.join("/data/hw", "runs")
    monkeypatch.setenv("HEADWATER_HOME", "s3://bucket/hw")
    assert default_root() == "s3://bucket/hw/runs"
