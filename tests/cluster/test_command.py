"""The command line with worker processes: the demo, modules beside the file, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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


def test_the_demo_has_the_same_digests_for_any_number_of_workers(tmp_path: Path, capsys):
    digests = []
    for workers in (1, 2, 4):
        report = tmp_path / f"{workers}.json"
        options = ["--workers", str(workers), "--rows", "30000", f"--report-json={report}"]
        assert execute(["demo", *options]) == OK
        outputs = json.loads(report.read_text())["outputs"]
        digests.append({name: output["digest"] for name, output in outputs.items()})
        out = capsys.readouterr().out
        assert all(digest in out for digest in digests[-1].values())
    assert len(digests[0]) >= 2
    assert digests[0] == digests[1] == digests[2]


def test_the_demo_keeps_its_files_where_asked(tmp_path: Path):
    assert execute(["demo", "--workers=1", "--rows=5000", "--quiet", "--output", str(tmp_path / "out")]) == OK
    assert list((tmp_path / "out").rglob("*.parquet"))


def test_a_module_beside_the_file_reaches_the_workers(tmp_path: Path, capsys):
    (tmp_path / "beside.py").write_text("def twice(batch):\n    return {'id': batch['id'] * 2}\n")
    file = tmp_path / "uses_it.py"
    file.write_text(
        "import headwater as hw\nfrom beside import twice\n"
        "@hw.pipeline\ndef doubled():\n    return hw.range(4).map_batches(twice)\n"
    )
    assert execute(["run", str(file), "--workers", "1", "--quiet"]) == OK
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[5:9]] == ["0", "2", "4", "6"]


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
