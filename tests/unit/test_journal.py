"""The journal: written once, read back in order, listed with the state each run is in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter

import fsspec
import pytest

from headwater.errors import CorruptFileError, FencedError, ParameterError, SourceNotFoundError
from headwater.lineage import journal as module
from headwater.lineage.journal import Journal, default_root, list_runs, read
from headwater.lineage.lease import acquire


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


def test_of_two_writers_the_one_whose_segment_is_taken_stops_and_leaves_nothing(root):
    first = Journal.create(root)
    second = Journal.open(first.run, root)
    second.append([["stage", 0, 2]])
    for _ in range(2):
        with pytest.raises(FencedError, match=f"another driver took the run over, run {first.run}"):
            first.append([["stage", 0, 1]])
    second.append([["stage", 1, 2]])
    assert list(read(first.run, root))[1:] == [["stage", 0, 2], ["stage", 1, 2]]


def test_a_run_begins_once(root):
    Journal.create(root, run="r")
    with pytest.raises(FencedError):
        Journal.create(root, run="r")
    assert [record[0] for record in read("r", root)] == ["started"]


def test_of_writers_at_the_same_moment_exactly_one_wins_each_segment(root):
    run = Journal.create(root).run
    for turn in range(20):
        writers = [Journal.open(run, root) for _ in range(5)]
        barrier, won = threading.Barrier(5), []

        def write(i: int, writers=writers, barrier=barrier, won=won, turn=turn) -> None:
            barrier.wait()
            try:
                writers[i].append([["stage", turn, i], ["stage", turn, i]])
                won.append(i)
            except FencedError:
                pass

        threads = [threading.Thread(target=write, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert list(read(run, root))[1 + 2 * turn :] == [["stage", turn, won[0]]] * 2


#: appends its records one by one, again after each that another writer's segment was in the way of
WRITER = """
import sys
from headwater.errors import FencedError
from headwater.lineage.journal import Journal
root, me = sys.argv[1], int(sys.argv[2])
sys.stdin.readline()
journal = Journal.open("r", root)
for i in range(40):
    while True:
        try:
            journal.append([["stage", me, i]] * 3)
            break
        except FencedError:
            journal = Journal.open("r", root)
"""


def test_no_record_of_many_processes_is_lost_torn_or_written_twice(tmp_path):
    Journal.create(tmp_path, run="r")
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE) for i in range(4)]
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    records = list(read("r", tmp_path))[1:]
    assert records[::3] == records[1::3] == records[2::3]  # a segment is whole
    for me in range(4):
        assert [record[2] for record in records[::3] if record[1] == me] == list(range(40))
    assert Counter(path.suffix for path in (tmp_path / "r").iterdir()) == {".json": 161}


def test_drafts_and_segments_cut_short_are_no_records_and_damaged_ones_are_named(tmp_path):
    journal = Journal.create(tmp_path, run="r")
    (tmp_path / "r" / "000001.json.1a2b3c4d.tmp").write_text('[["stage",0')
    journal.append([["stage", 0, 1]])
    (tmp_path / "r" / "000002.json").write_text('[["stage",1')
    kinds = [record[0] for record in read("r", tmp_path)]
    assert kinds == ["started", "stage"]
    assert [entry.state for entry in list_runs(tmp_path)] == ["running"]
    second = Journal.open("r", tmp_path)
    second.append([["stage", 2, 1]])
    assert [record[1] for record in read("r", tmp_path)][1:] == [0, 2]
    (tmp_path / "r" / "000001.json").write_text('[["stage",,1]]\n')
    with pytest.raises(CorruptFileError, match=r"000001\.json"):
        list(read("r", tmp_path))


def test_resume_stops_the_driver_before_and_returns_all_that_was_written(root):
    first = Journal.create(root, {"pipeline": "rides"}, run="r")
    first.append([["stage", 0, 1]])
    second, records = Journal.resume("r", 1, root, {"cluster": "tcp://x"})
    assert records == list(read("r", root))
    assert [record[0] for record in records] == ["started", "stage", "resumed"]
    header = records[-1][1]
    assert (header["epoch"], header["cluster"], header["pid"]) == (1, "tcp://x", os.getpid())
    with pytest.raises(FencedError):
        first.append([["stage", 1, 1]])
    second.append([["stage", 1, 2]])
    assert list(read("r", root))[-1] == ["stage", 1, 2]


def test_resume_takes_in_what_the_driver_before_writes_at_that_moment(root, monkeypatch):
    first, late = Journal.create(root, run="r"), [["stage", 0, 1]]
    create = module.create

    def write(fs, path, data):
        if late:
            first.append([late.pop()])
        create(fs, path, data)

    monkeypatch.setattr(module, "create", write)
    _, records = Journal.resume("r", 1, root)
    assert [record[0] for record in records] == ["started", "stage", "resumed"]
    with pytest.raises(FencedError):
        first.append([["stage", 1, 1]])


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_driver_that_was_replaced_before_it_began_can_not_resume(root, epoch):
    Journal.create(root, run="r")
    Journal.resume("r", 2, root)
    with pytest.raises(FencedError):
        Journal.resume("r", epoch, root)
    assert [record[0] for record in read("r", root)] == ["started", "resumed"]


@pytest.mark.parametrize("alive", [True, False])
def test_the_state_of_a_resumed_run_is_that_of_its_newest_driver(tmp_path, alive):
    Journal.create(tmp_path, {"pipeline": "rides"}, run="r").end("interrupted")
    assert [entry.state for entry in list_runs(tmp_path)] == ["interrupted"]
    if alive:
        with acquire(tmp_path, "r") as lease:
            Journal.resume("r", lease.epoch, tmp_path)[0].append([["stage", 0, 1]])
            assert [entry.state for entry in list_runs(tmp_path)] == ["running"]
    else:
        code = (
            "from headwater.lineage.journal import Journal; from headwater.lineage.lease import acquire;"
            f"Journal.resume('r', acquire({str(tmp_path)!r}, 'r').epoch, {str(tmp_path)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        assert [entry.state for entry in list_runs(tmp_path)] == ["died"]
    Journal.open("r", tmp_path).end("finished")
    assert [entry.state for entry in list_runs(tmp_path)] == ["finished"]


def test_a_blob_is_kept_compressed_once_and_counted(root):
    journal = Journal.create(root, run="r")
    before, plan = journal.bytes, b"plan" * 10_000
    journal.put_blob("plan.bin", plan)
    assert before < journal.bytes < before + 1_000
    assert Journal.open("r", root).bytes == journal.bytes
    assert Journal.open("r", root).get_blob("plan.bin") == plan
    with pytest.raises(FencedError):
        journal.put_blob("plan.bin", b"other")
    assert [record[0] for record in read("r", root)] == ["started"]


def test_a_blob_that_is_missing_or_damaged_is_named(tmp_path):
    journal = Journal.create(tmp_path, run="r")
    with pytest.raises(SourceNotFoundError, match=r"run r has no plan\.bin"):
        journal.get_blob("plan.bin")
    journal.put_blob("plan.bin", b"plan")
    (tmp_path / "r" / "plan.bin").write_bytes(b"pla")
    with pytest.raises(CorruptFileError, match=r"plan\.bin is damaged"):
        journal.get_blob("plan.bin")
