"""What the documentation shows runs as it stands: docstring examples, the guide, the README's pipeline."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
from functools import partial
from pathlib import Path

import pytest

import headwater
from headwater.cli import OK, execute

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["lineage", "ops", "datasets", "planner", "runtime", "tuning"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> list[str]:
    """Every module of the package, found by its folders, as the checkout holds other things too."""
    found = [f"headwater.{info.name}" for info in pkgutil.iter_modules([str(ROOT)]) if not info.ispkg]
    for package in PACKAGES:
        walked = pkgutil.walk_packages([str(ROOT / package)], f"headwater.{package}.")
        found += [f"headwater.{package}", *(info.name for info in walked)]
    return ["headwater", *found]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name: str, request: pytest.FixtureRequest):
    fixtures = {"getfixture": request.getfixturevalue}
    result = doctest.testmod(importlib.import_module(name), extraglobs=fixtures, optionflags=FLAGS)
    assert result.failed == 0


def test_the_guide_runs():
    result = doctest.testfile(str(ROOT / "docs" / "guide.md"), module_relative=False, optionflags=FLAGS)
    assert result.attempted > 20
    assert result.failed == 0


def test_the_page_on_training_runs():
    result = doctest.testfile(str(ROOT / "docs" / "training.md"), module_relative=False, optionflags=FLAGS)
    assert result.attempted > 15
    assert result.failed == 0


def test_the_page_on_hyperparameter_search_runs():
    result = doctest.testfile(str(ROOT / "docs" / "search.md"), module_relative=False, optionflags=FLAGS)
    assert result.attempted > 5
    assert result.failed == 0


def test_the_readmes_pipeline_runs_and_its_plan_is_what_explain_prints(tmp_path: Path, capsys):
    readme = (ROOT / "README.md").read_text()
    source, _ = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (picture,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    file = tmp_path / "zones.py"
    file.write_text(source)
    assert execute(["run", str(file), "--scheduler", "inline", "--param", "rows=1000"]) == OK
    assert "4 rows" in capsys.readouterr().out
    assert execute(["explain", str(file)]) == OK
    assert picture.strip() in capsys.readouterr().out


def test_the_readmes_model_is_trained(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    _, source = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    file = tmp_path / "tips.py"
    file.write_text(source)
    inline = partial(headwater.Session, "inline")
    monkeypatch.setattr(headwater, "Session", inline)
    runpy.run_path(str(file), run_name="__main__")
    (quality,) = ast.literal_eval(capsys.readouterr().out)
    assert quality["auc"] > 0.8
    assert 19_000 < quality["rows"] < 20_000


def test_relative_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_public_face_is_documented():
    undocumented = [
        name
        for name in headwater.__all__
        if not name.startswith("__") and not getattr(headwater, name).__doc__
    ]
    assert undocumented == []
