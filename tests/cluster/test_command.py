"""The command line with worker processes: the demo, modules beside the file, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.cli import INTERRUPTED, OK, execute

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

WAITING = '''
import os

import headwater as hw


def wait(batch):
    """Tell that the run has come this far, and stay until nobody holds the pipe any more."""
    with open(os.environ["TEST_STARTED"], "w") as started:
        started.write("started")
    with open(os.environ["TEST_GO_ON"]) as go_on:
        go_on.read()
    return batch


@hw.pipeline
def waiting(out: str):
    rows = hw.range(10).map_batches(wait, schema={"id": "int64"})
    return {"rows": rows.write_parquet(out)}
'''


@pytest.mark.fault
def test_the_demo_kills_a_node_in_the_middle_of_the_training_and_ends_with_the_same_digests(
    tmp_path: Path, capsys
):
    seen = []
    for workers in (1, 3):
        report, out = tmp_path / f"{workers}.json", tmp_path / f"rides-{workers}"
        options = ["--workers", str(workers), "--rows=20000", f"--report-json={report}", f"--output={out}"]
        assert execute(["demo", *options]) == OK
        told, found = capsys.readouterr().out, json.loads(report.read_text())
        digests = {name: output["digest"] for name, output in found["outputs"].items()}
        assert sorted(digests) == ["by_hour", "cleaned", "model", "quality"]
        assert re.search(
            r"^Killed: node n\d, by SIGKILL, its scratch deleted, in step 200 of 400", told, re.M
        )
        for name, digest in digests.items():
            assert re.search(rf"^{name} +{digest}  {digest}  equal$", told, re.M)
        assert found["recovery"]["nodes_lost"] == 1
        (training,) = [stage["training"] for stage in found["stages"] if stage["training"]]
        assert training["steps"] == 400
        if workers > 1:
            assert training["lost"] or training["adopted_step"] == 200
        assert list(out.rglob("*.parquet"))
        seen.append(digests)
    assert seen[0] == seen[1]


def test_a_module_beside_the_file_reaches_the_workers(tmp_path: Path, capsys):
    (tmp_path / "beside.py").write_text("def twice(batch):\n    return {'id': batch['id'] * 2}\n")
    file = tmp_path / "uses_it.py"
    file.write_text(
        "import headwater as hw\nfrom beside import twice\n"
        "@hw.pipeline\ndef doubled():\n    return hw.range(4).map_batches(twice)\n"
    )
    assert execute(["run", str(file), "--workers", "1", "--quiet"]) == OK
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[5:9]] == ["0", "2", "4", "6"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Whatever a shell starts in the background ignores Ctrl-C, tests too, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(os.killpg, signal.SIGINT, INTERRUPTED), (os.kill, signal.SIGTERM, 128 + signal.SIGTERM)],
    ids=["Ctrl-C", "SIGTERM to the driver alone"],
)
def test_stopping_leaves_nothing(tmp_path: Path, send, number, code):
    file = tmp_path / "waiting.py"
    file.write_text(WAITING)
    started, go_on = tmp_path / "started", tmp_path / "go-on"
    for pipe in (started, go_on):
        os.mkfifo(pipe)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    names = {"TEST_STARTED": str(started), "TEST_GO_ON": str(go_on), "TMPDIR": str(temporary)}
    command = ["run", str(file), "--workers", "1", "--param", f"out={tmp_path / 'out'}"]
    run = subprocess.Popen(
        [sys.executable, "-m", "headwater.cli", *command],
        env={**os.environ, **names},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.read_text() == "started"
        send(run.pid, number)
        _, err = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == code
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert not list(temporary.glob("headwater-*"))
