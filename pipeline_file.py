"""Pipeline files: load one by path, and find the pipeline in it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cloudpickle

from .errors import HeadwaterError, ParameterError, SourceNotFoundError, did_you_mean
from .program import Pipeline


def load_pipeline(reference: str) -> Pipeline:
    """Load a Python file and return the pipeline in it.

    The file runs as a module of its own. Its functions, and those of modules beside it, are sent to
    the workers by value, so that these need neither the file nor its folder.

    Args:
        reference: a path, as ``rides.py``, or a path and a pipeline's name, as ``rides.py:daily``.

    Returns:
        The pipeline of that name, or the only one.

    Raises:
        SourceNotFoundError: no such file.
        ParameterError: the file fails to load, or has no such pipeline, or several and none is named.
    """
    path, name = split_reference(reference)
    return find_pipeline(load_module(path), path, name)


def split_reference(reference: str) -> tuple[Path, str | None]:
    """Split ``FILE[:NAME]``.

    Example:
        >>> split_reference("rides.py:daily")
        (PosixPath('rides.py'), 'daily')
    """
    path, colon, name = reference.rpartition(":")
    if colon and path and name.isidentifier() and not Path(reference).exists():
        return Path(path), name
    return Path(reference), None


def load_module(path: Path) -> ModuleType:
    """Run a Python file as a module whose functions pickle by value.

    Raises:
        SourceNotFoundError, ParameterError: as `load_pipeline`.
    """
    if not path.is_file():
        raise SourceNotFoundError(f"there is no pipeline file {str(path)!r}.{_files_beside(path)}")
    name = f"headwater_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ParameterError(f"{path} isn't a Python file. Give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except HeadwaterError:
        raise
    except Exception as error:
        raise ParameterError(f"{path} doesn't load: {type(error).__name__}: {error}") from error
    for other in {name, *(set(sys.modules) - before)}:
        if _is_users(sys.modules.get(other), path):
            cloudpickle.register_pickle_by_value(sys.modules[other])
    return module


def find_pipeline(module: ModuleType, path: Path, name: str | None) -> Pipeline:
    """Return the named pipeline of a module, or its only one.

    Raises:
        ParameterError: none of that name, none at all, or several.
    """
    found = {key: value for key, value in vars(module).items() if isinstance(value, Pipeline)}
    if not found:
        raise ParameterError(
            f"{path} has no pipeline. Mark a function that returns datasets with @hw.pipeline."
        )
    if name is not None:
        if name not in found:
            raise ParameterError(f"{path} has no pipeline {name!r}. {did_you_mean(name, found)}")
        return found[name]
    own = {key: p for key, p in found.items() if p.function.__module__ == module.__name__} or found
    if len(own) > 1:
        listed = ", ".join(f"{path}:{key}" for key in own)
        raise ParameterError(f"{path} has {len(own)} pipelines. Name one of them: {listed}.")
    return next(iter(own.values()))


def _is_users(module: ModuleType | None, path: Path) -> bool:
    """Whether a module came with the pipeline file, rather than being installed on the workers too."""
    file = getattr(module, "__file__", None)
    if module is None or not file or module.__name__.partition(".")[0] == __name__.partition(".")[0]:
        return False
    installed = "site-packages" in Path(file).parts or "dist-packages" in Path(file).parts
    return Path(file).is_relative_to(path.resolve().parent) and not installed


def _files_beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder {str(path.parent)!r} either."
    names = sorted(file.name for file in path.parent.glob("*.py"))
    return f" {did_you_mean(path.name, names)}" if names else ""
