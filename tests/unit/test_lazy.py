"""The public names: all there, as type checkers see them, and imported no sooner than they are used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import headwater as hw
from headwater.errors import HeadwaterError

ROOT = Path(hw.__file__).parent


def declared(package):
    """Name to (module, name there) of what a package's ``if TYPE_CHECKING`` imports, as checkers read it."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    found = {}
    for node in ast.walk(blocks[0]):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                found[name.asname or name.name] = (f"{'.' * node.level}{node.module}", name.name)
    return found


@pytest.mark.parametrize("package", ["", "datasets"])
def test_names_are_those_that_type_checkers_see(package):
    module = import_module(f"headwater.{package}".rstrip("."))
    seen = declared(package)
    assert sorted(seen) == sorted(module.__all__)
    for name, (home, inside) in seen.items():
        there = import_module(home, module.__name__)
        value = getattr(there, inside, None) or import_module(f"{home}.{inside}", module.__name__)
        assert getattr(module, name) is value, name
    assert set(module.__all__) <= set(dir(module))


def test_pipeline_is_the_decorator_whatever_is_imported_first():
    code = (
        "import headwater.pipeline, headwater as hw; from headwater.pipeline import Dataset; "
        "assert hw.Dataset is Dataset; assert hw.pipeline(lambda: None).name; "
        "from headwater import pipeline; assert pipeline is hw.pipeline"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_declaring_imports_neither_dask_nor_what_runs_pipelines():
    code = (
        "import sys, headwater as hw; assert 'pyarrow' not in sys.modules; "
        "hw.range(9).filter(hw.col('id') > 3).agg(n=hw.count()); "
        "parts = ('dask', 'distributed', 'rich', 'pandas', 'headwater.runtime', 'headwater.ops.prep'); "
        "print([part for part in parts if part in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_is_not_there_is_told_with_what_was_meant():
    with pytest.raises(AttributeError, match=r"no attribute 'read_parqet'.*Did you mean 'read_parquet'"):
        hw.read_parqet  # noqa: B018
    assert not hasattr(hw, "_nothing")
    assert issubclass(hw.errors.ParameterError, HeadwaterError)  # submodules are there without an import
