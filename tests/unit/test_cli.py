"""The command line: what it prints, what it refuses and how, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.cli import FAILED, OK, USAGE, execute
from headwater.version import __version__

PIPELINE = '''
import numpy as np

import headwater as hw
from headwater import col
from letters import letter_of


def with_letters(batch):
    return {"id": batch["id"], "letter": np.array([letter_of(i) for i in batch["id"]], dtype=object)}


def explode(batch):
    raise ZeroDivisionError("no such ride")


@hw.pipeline
def rides(rows: int = 10, least: float = 0.0, out: str = "", broken: bool = False, column: str = "fare"):
    """Generated rides."""
    rides = hw.range(rows, partitions=3).with_columns(fare=col("id") * 1.5)
    rides = rides.filter(col(column) >= least)
    if broken:
        rides = rides.map_batches(explode, schema={"id": "int64", "fare": "float64"})
    outputs = {
        "rides": rides.map_batches(with_letters, schema={"id": "int64", "letter": "string"}),
        "total": rides.agg(rows=hw.count(), fares=col("fare").sum()),
    }
    if out:
        outputs["files"] = rides.write_parquet(out)
    return outputs
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline file that imports a module beside it; journals go to a folder of the test's own."""
    monkeypatch.setenv("HEADWATER_HOME", str(tmp_path / "home"))
    (tmp_path / "letters.py").write_text("def letter_of(number):\n    return 'abc'[int(number) % 3]\n")
    path = tmp_path / "rides.py"
    path.write_text(PIPELINE)
    return path


def run(file: Path | str, *options: str) -> int:
    return execute(["run", str(file), "--scheduler", "inline", *options])


def test_version_is_the_packages(capsys):
    assert execute(["--version"]) == OK
    assert capsys.readouterr().out == f"headwater, version {__version__}\n"


def test_run_shows_rows_counts_and_digests(file, capsys):
    assert run(file, "--param", "rows=4") == OK
    out = capsys.readouterr().out
    assert re.search(r"^id +letter$", out, re.MULTILINE)
    assert [line.split() for line in out.splitlines() if re.match(r" *\d+  [abc]", line)] == [
        ["0", "a"], ["1", "b"], ["2", "c"], ["3", "a"],
    ]  # fmt: skip
    assert re.search(r"4 rows, .*digest [0-9a-f]{16,}", out)


def test_parameters_are_converted_and_outputs_chosen(file, tmp_path):
    report = tmp_path / "reports" / "report.json"
    assert (
        run(file, "--param=rows=100", "--param", "least=15.0", "--output=total", f"--report-json={report}")
        == OK
    )
    outputs = json.loads(report.read_text())["outputs"]
    assert list(outputs) == ["total"]
    assert outputs["total"]["rows"] == 1


def test_the_report_has_digests_versions_and_stages(file, tmp_path):
    reports = []
    for number in range(2):
        report = tmp_path / f"{number}.json"
        assert run(file, f"--report-json={report}", "--quiet") == OK
        reports.append(json.loads(report.read_text()))
    assert reports[0]["outputs"]["rides"]["digest"] == reports[1]["outputs"]["rides"]["digest"]
    assert reports[0]["outputs"]["rides"]["digest"] != reports[0]["outputs"]["total"]["digest"]
    assert "versions" in reports[0]
    stage = reports[0]["stages"][0]
    assert {"tasks", "attempts", "seconds", "rows_in", "rows_out", "bytes_in", "bytes_out"} <= set(stage)
    assert {"local_bytes", "remote_bytes"} <= set(stage)


def test_a_written_output_tells_its_rows_and_exists(file, tmp_path, capsys):
    assert run(file, f"--param=out={tmp_path / 'out'}", "--output", "files") == OK
    assert list((tmp_path / "out").glob("*.parquet"))
    assert re.search(r"10 rows in 3 files, .*digest", capsys.readouterr().out)


def test_explain_shows_the_plan_and_runs_nothing(file, tmp_path, capsys):
    assert execute(["explain", str(file), "--param", f"out={tmp_path / 'out'}"]) == OK
    out = capsys.readouterr().out
    assert "Aggregate" in out
    assert "stage" in out.lower()
    assert not (tmp_path / "out").exists()


def test_runs_lists_what_ran(file, capsys):
    assert run(file, "--quiet") == OK
    capsys.readouterr()
    assert execute(["runs"]) == OK
    assert "rides" in capsys.readouterr().out


def bad(file: Path, text: str) -> Path:
    path = file.with_name("bad.py")
    path.write_text(text)
    return path


HEAD = "import headwater as hw\n"
TWO = (
    HEAD
    + "@hw.pipeline\ndef one():\n    return hw.range(1)\n@hw.pipeline\ndef two():\n    return hw.range(2)\n"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/ride.py"], r"no pipeline file .*ride\.py'.*Did you mean 'rides\.py'"),
        (["{folder}/none/ride.py"], r"no folder '.*none'"),
        (["{file}:ride"], r"no pipeline 'ride'. Did you mean 'rides'"),
        (["{file}", "--param", "row=3"], r"no parameter 'row'. Did you mean 'rows'.*'least'"),
        (["{file}", "--param", "rows=many"], r"rows='many'.*int"),
        (["{file}", "--param", "rows"], r"--param name=value"),
        (["{file}", "--param", "rows=1", "--param", "rows=2"], r"rows is given twice"),
        (["{file}", "--output", "totl"], r"no output 'totl'. Did you mean 'total'"),
        (["{file}", "--workers", "2"], r"give one of them"),
        (
            ["{file}", "--param", "column=fair"],
            r"no column 'fair'. Did you mean 'fare'(.|\n)*rides\.py:21",
        ),
        (["{file}", "--param", "out={folder}"], r"(?i)already|exists|holds"),
        (["{file}", "--nonsense"], r"No such option"),
    ],
)
def test_wrong_usage_is_told_in_a_few_lines_without_a_traceback(file, capsys, arguments, message):
    arguments = [a.format(file=file, folder=file.parent) for a in arguments]
    assert run(*arguments) == USAGE
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"has no pipeline. Mark a function .* with @hw.pipeline"),
        (TWO, r"has 2 pipelines. Name one of them: .*bad\.py:one, .*bad\.py:two"),
        ("def broken(:\n", r"doesn't load: SyntaxError"),
        ("import not_installed_anywhere\n", r"doesn't load: ModuleNotFoundError.*not_installed_anywhere"),
        (HEAD + "@hw.pipeline\ndef one():\n    return 7\n", r"one returned int. Return a Dataset"),
        (HEAD + "@hw.pipeline\ndef one():\n    return hw.range(1) / 0\n", r"TypeError(.|\n)*bad\.py:4"),
    ],
)
def test_a_pipeline_file_that_is_wrong_is_told_in_a_few_lines(file, capsys, text, message):
    assert run(bad(file, text)) == USAGE
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert "Traceback" not in err


def test_a_named_pipeline_is_chosen_among_several(file, capsys):
    assert run(f"{bad(file, TWO)}:two") == OK
    assert "2 rows" in capsys.readouterr().out


def test_a_failing_user_function_fails_the_run_and_debug_shows_the_traceback(file, capsys):
    assert run(file, "--param", "broken=true") == FAILED
    short = capsys.readouterr().err
    assert "ZeroDivisionError: no such ride" in short
    assert "explode" in short
    assert re.search(r"rides\.py:14: raise ZeroDivisionError", short)
    assert "Traceback" not in short
    assert run(file, "--param", "broken=true", "--debug") == FAILED
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_failed_run_leaves_its_report(file, tmp_path):
    out = tmp_path / "report.json"
    assert run(file, "--param", "broken=true", "--report-json", str(out)) == FAILED
    told = json.loads(out.read_text())
    assert told["state"] == "failed"
    assert "ZeroDivisionError" in told["error"]
    assert told["outputs"] == {}


def test_progress_is_plain_lines_when_piped_and_silent_when_asked(file, capsys):
    assert run(file) == OK
    err = capsys.readouterr().err
    assert re.search(r"stage 1/\d+ done", err)
    assert "\x1b" not in err
    assert run(file, "--quiet") == OK
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_gone_is_no_failure(file):
    """As in ``headwater explain FILE | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "headwater.cli", "explain", str(file)]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (OK, "")


def test_runs_lists_no_more_than_asked_for(file, capsys):
    for _ in range(3):
        assert run(file, "--quiet") == OK
    capsys.readouterr()
    assert execute(["runs", "--limit", "2"]) == OK
    *listed, more = capsys.readouterr().out.splitlines()
    assert len(listed) == 2
    assert "1 earlier" in more


def test_importing_headwater_imports_no_dask():
    program = "import sys, headwater; print([m for m in ('dask', 'distributed') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
