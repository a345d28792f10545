"""`headwater check`: user functions that depend on more than their rows are found and named, others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater import CheckReport, check, col, from_arrow
from headwater import range as hw_range
from headwater.cli import FAILED, OK, USAGE, execute
from headwater.errors import UserFunctionError
from headwater.lineage.suspects import Trap
from headwater.pipeline_file import load_pipeline
from headwater.runtime.check_report import OperatorCheck

pytestmark = pytest.mark.cluster

HEAD = """
import functools, os, random, threading, time, uuid
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date, datetime

import numpy as np

import headwater as hw

CALLS = 0
MEMORY = []
GENERATOR = np.random.default_rng(0)
NAMES = {"east", "west", "north", "south"}


def column(batch, value, dtype=None):
    return {"id": batch["id"], "x": np.array([value() for _ in batch["id"]], dtype=dtype)}


def function(batch):
"""

TAIL = """

@hw.pipeline
def it(partitions: int = 2, out: str = ""):
    data = hw.range(2000, partitions=partitions).map_batches(function, schema={"id": "int64", "x": "%s"})
    return data.write_parquet(out) if out else data
"""

#: the body of a function, the type of its column, and what must be named
TRAPS = {
    "random.random": ("return column(batch, random.random)", "float64", Trap.RANDOM),
    "numpy.random.rand": (
        'return {"id": batch["id"], "x": np.random.rand(len(batch["id"]))}', "float64", Trap.RANDOM,
    ),
    "numpy.random.default_rng()": (
        'return column(batch, np.random.default_rng().random)', "float64", Trap.RANDOM,
    ),
    "the generator 'GENERATOR' made outside of the function": (
        "return column(batch, GENERATOR.random)", "float64", Trap.RANDOM,
    ),
    "uuid.uuid4": ("return column(batch, lambda: str(uuid.uuid4()), object)", "string", Trap.RANDOM),
    "time.time": ("return column(batch, lambda: int(time.time()))", "int64", Trap.TIME),
    "datetime.datetime.now": (
        "return column(batch, lambda: np.datetime64(datetime.now()))", "timestamp[us]", Trap.TIME,
    ),
    "datetime.date.today": ("return column(batch, lambda: date.today().isoformat(), object)", "string", Trap.TIME),
    "the set 'NAMES'": ('return column(batch, lambda: ",".join(NAMES), object)', "string", Trap.SET_ORDER),
    "a set": ('return column(batch, lambda: ",".join({"a", "b"}), object)', "string", Trap.SET_ORDER),
    "id": ("return column(batch, lambda: id(batch))", "int64", Trap.IDENTITY),
    "hash": ('return column(batch, lambda: hash("east"))', "int64", Trap.IDENTITY),
    "the variable 'CALLS' outside of the function": (
        "global CALLS; CALLS += 1; return column(batch, lambda: CALLS)", "int64", Trap.STATE,
    ),
    "MEMORY.append()": (
        "MEMORY.append(1); return column(batch, lambda: len(MEMORY))", "int64", Trap.STATE,
    ),
    "concurrent.futures.as_completed": (
        "with ThreadPoolExecutor(4) as pool: "
        'done = [f.result() for f in as_completed([pool.submit(int, i) for i in batch["id"]])]\n'
        '    return {"id": batch["id"], "x": done}',
        "int64", Trap.THREADS,
    ),
    "threading.get_ident": ("return column(batch, threading.get_ident)", "int64", Trap.THREADS),
    "os.getpid": ("return column(batch, os.getpid)", "int64", Trap.ENVIRONMENT),
    "os.environ.get": ('return column(batch, lambda: os.environ.get("HOSTNAME"), object)', "string", Trap.ENVIRONMENT),
    "numpy.empty": (
        'x = np.empty(len(batch["id"])); x[5:] = 1.0; return {"id": batch["id"], "x": x}', "float64", Trap.MEMORY,
    ),
}  # fmt: skip

CLEAN = {
    "seeded by content": 'return column(batch, np.random.default_rng(int(batch["id"][0])).random)',
    "seeded legacy": "random.seed(4); return column(batch, lambda: random.random())",
    "sorted set": "return column(batch, lambda: float(len(''.join(sorted(NAMES)))))",
    "membership": "return column(batch, lambda: float('east' in NAMES and 'x' in {'x', 'y'}))",
    "dict order": "names = {'b': 1.5, 'a': 2.5}; return column(batch, lambda: list(names.values())[0])",
    "local state": "seen = []; return column(batch, lambda: seen.append(1) or float(len(seen)))",
    "clock for a log": "t = time.time(); made = column(batch, lambda: 0.5); print(time.time() - t); return made",
    "NaN": "return column(batch, lambda: float('nan'))",
    "threads in order": (
        "with ThreadPoolExecutor(4) as pool: x = list(pool.map(int, batch['id']))\n"
        "    return {'id': batch['id'], 'x': x}"
    ),
}


def write(folder: Path, name: str, body: str, type: str = "float64") -> Path:
    path = folder / f"{name}.py"
    path.write_text(f"{HEAD}    {body}\n{TAIL % type}")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def checked(folder: Path) -> dict[str, OperatorCheck]:
    """What one check says of all the files, traps and clean ones side by side."""
    files = {name: write(folder, f"trap_{n}", *TRAPS[name][:2]) for n, name in enumerate(TRAPS)}
    files |= {name: write(folder, f"clean_{n}", CLEAN[name]) for n, name in enumerate(CLEAN)}
    report = check({name: load_pipeline(str(path)).bind()["result"] for name, path in files.items()})
    of = {operator.where.rpartition(":")[0]: operator for operator in report.operators}
    return {name: of[str(path)] for name, path in files.items()}


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_found_and_named(name: str, checked: dict[str, OperatorCheck]):
    found = checked[name]
    assert found.difference is not None
    assert found.operator == "map_batches(function)"
    assert [column for column, *_ in found.difference.columns] == ["x"]
    assert all(one != other for _, one, other in found.difference.columns)
    (cause,) = [suspect for suspect in found.suspects if suspect.name == name]
    assert cause.trap is TRAPS[name][2]
    lines = Path(cause.file).read_text().splitlines()
    assert lines[cause.line - 1].strip() in "\n".join((HEAD, TRAPS[name][0]))


@pytest.mark.parametrize("name", CLEAN)
def test_what_depends_on_its_rows_alone_gives_no_alarm(name: str, checked: dict[str, OperatorCheck]):
    assert checked[name].difference is None
    assert checked[name].rows == 2000


def test_the_first_differing_row_of_a_single_partition(folder: Path, capsys):
    body = 'return {"id": batch["id"], "x": np.where(batch["id"] == 1234, time.time(), 0.0)}'
    file = write(folder, "one_row", body)
    assert execute(["check", str(file), "--param", "partitions=1"]) == FAILED
    out = capsys.readouterr().out
    line = next(
        n for n, text in enumerate(file.read_text().splitlines(), 1) if text == "def function(batch):"
    )
    assert f"map_batches(function) at {file}:{line}: partition 0 differs" in out
    assert "row 1,234 of the output" in out
    assert f"likely cause: the clock: time.time at {file}:{line + 1}" in out


def test_a_clean_pipeline_says_what_was_checked_and_writes_nothing(folder: Path, tmp_path: Path, capsys):
    file = write(folder, "clean", "return column(batch, lambda: 1.5)")
    options = ["--param", "partitions=10", "--param", f"out={tmp_path / 'out'}"]
    assert execute(["check", str(file), *options, "--partitions", "4", "--workers", "1"]) == OK
    out = capsys.readouterr().out
    assert "4 of 10 partitions, 800 rows, the same" in out
    assert "1 operator, 4 partitions, 800 rows" in out
    assert not (tmp_path / "out").exists()


def test_only_the_operator_at_fault_is_named(folder: Path):
    def twice(batch):
        return {"id": batch["id"] * 2}

    def once_more(batch):
        return {"id": batch["id"] + 1}

    noisy = load_pipeline(str(write(folder, "noisy", "return column(batch, random.random)"))).bind()["result"]
    after = (
        noisy.map_batches(twice, schema={"id": "int64"}).sort("id", descending=True).map_batches(once_more)
    )
    none_left = noisy.filter(col("x") > 2).map_batches(lambda batch: batch)
    report = check({"after": after, "none_left": none_left})
    assert [one.operator for one in report.failed] == ["map_batches(function)"]
    assert len(report.operators) == 4


def test_only_what_the_sample_needs_is_computed(tmp_path: Path):
    def leave_mark(batch):
        (tmp_path / str(batch["id"][0])).touch()
        return batch

    marked = hw_range(100, partitions=50).map_batches(leave_mark, schema={"id": "int64"})
    report = check({"data": marked.map_batches(lambda batch: {"y": batch["id"] + 1})}, partitions=2)
    assert [operator.partitions for operator in report.operators] == [(0, 49), (0, 49)]
    assert {path.name for path in tmp_path.iterdir()} == {"0", "98"}


def test_an_operator_declared_otherwise_is_listed_and_not_run():
    def explode(batch):
        raise ZeroDivisionError

    data = from_arrow({"x": [1]}).map_batches(explode, schema={"x": "int64"}, deterministic=False)
    report = check({"data": data})
    assert report.ok
    assert "declared deterministic=False, not run" in str(report)


def test_a_function_that_raises_in_one_process_only_is_a_difference():
    calls = []

    def fails_later(batch):
        calls.append(1)
        return batch if len(calls) == 1 else 1 / 0

    data = from_arrow({"x": [1]}).map_batches(fails_later, schema={"x": "int64"})
    (found,) = check({"data": data}).failed
    assert "ZeroDivisionError" in str(found)


def test_a_function_that_always_raises_is_told_as_in_a_run():
    data = from_arrow({"x": [1]}).map_batches(lambda batch: 1 / 0, schema={"x": "int64"})
    with pytest.raises(UserFunctionError, match="ZeroDivisionError"):
        check({"data": data})


def test_a_crash_is_told(folder: Path, capsys):
    file = write(folder, "crash", "os.abort()")
    assert execute(["check", str(file)]) == FAILED
    assert f"map_batches(function) at {file}:" in (told := capsys.readouterr().err)
    assert "took its process down" in told


def test_without_functions_there_is_nothing_to_check():
    report = check({"data": from_arrow({"x": [1]})})
    assert isinstance(report, CheckReport)
    assert report.ok
    assert "Nothing to check" in str(report)


@pytest.mark.parametrize("arguments", [["nowhere.py"], ["--partitions", "0", "x.py"]])
def test_wrong_input_is_refused(arguments: list[str]):
    assert execute(["check", *arguments]) == USAGE
