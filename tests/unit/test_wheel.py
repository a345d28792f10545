"""The wheel, in a fresh virtual environment outside the checkout, holds `headwater` and nothing else."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "node_modules", "*.parquet"
)
PARTS = [
    "datasets",
    "ops",
    "planner",
    "lineage",
    "runtime",
    "cli",
    "session",
    "errors",
    "tests",
    "docs",
    "benchmarks",
]


def call(*command: object, cwd: Path) -> str:
    """Run a command without the checkout on its path, and return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "env", with_pip=False)
    interpreter = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(call(interpreter, "-c", where, cwd=folder).strip())
    # Of a path in a .pth file no .pth files are read, so our editable install stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(
        *(sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    return interpreter


def modules_in(wheel: Path) -> list[str]:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    return [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]


def test_the_wheel_holds_only_headwater_and_its_metadata(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "headwater",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }
    folders = {name.split("/")[1] for name in names if name.startswith("headwater/") and name.count("/") > 1}
    assert folders == {"lineage", "ops", "datasets", "planner", "runtime", "tuning", "chaos"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_source_file(wheel: Path) -> None:
    folders = ["", "lineage", "ops", "datasets", "planner", "runtime", "tuning", "chaos"]
    files = [f for folder in folders for f in (ROOT / folder).glob("**/*.py" if folder else "*.py")]
    expected = {f.relative_to(ROOT).as_posix() for f in files if "__pycache__" not in f.parts}
    packed = {n.removeprefix("headwater/") for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".py")}
    assert packed == expected


def test_every_module_imports(wheel: Path, python: Path, tmp_path: Path) -> None:
    names = modules_in(wheel)
    assert "headwater" in names
    assert "headwater.ops.join" in names
    script = (
        "import importlib, json, sys\n"
        "modules = [importlib.import_module(name) for name in json.loads(sys.argv[1])]\n"
        "print(json.dumps([module.__file__ for module in modules]))\n"
    )
    files = json.loads(call(python, "-c", script, json.dumps(names), cwd=tmp_path))
    assert all(Path(file).is_relative_to(python.parents[1]) for file in files)


def test_the_parts_have_no_top_level_names(python: Path, tmp_path: Path) -> None:
    script = (
        "import importlib.util, json, sys\n"
        "specs = [importlib.util.find_spec(name) for name in json.loads(sys.argv[1])]\n"
        "print(json.dumps([spec.origin or '' for spec in specs if spec]))\n"
    )
    found = json.loads(call(python, "-c", script, json.dumps(PARTS), cwd=tmp_path))
    assert not [origin for origin in found if str(python.parents[1]) in origin or str(ROOT) in origin]


def test_a_pipeline_runs(python: Path, tmp_path: Path) -> None:
    script = (
        "import headwater as hw\n"
        "even = hw.range(100).filter(hw.col('id') % 2 == 0)\n"
        "table = even.agg(total=hw.sum('id')).compute(hw.Session('inline'))\n"
        "print(table['total'][0].as_py())\n"
    )
    assert call(python, "-c", script, cwd=tmp_path).strip() == "2450"


def test_the_command_is_installed(python: Path, tmp_path: Path) -> None:
    assert call(python.parent / "headwater", "--version", cwd=tmp_path).startswith("headwater, version")
