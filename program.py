"""@pipeline: a function with typed parameters that declares named outputs."""

from __future__ import annotations

import datetime
import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, overload

from .errors import ParameterError, TypeMismatchError, did_you_mean
from .pipeline import Dataset


class Parameter:
    """One parameter of a pipeline.

    Attributes:
        name: its name.
        annotation: its type; `str` where the function gives none and no default.
        default: its default, or ``inspect.Parameter.empty``.
    """

    def __init__(self, name: str, annotation: Any, default: Any):
        self.name = name
        self.annotation = annotation
        self.default = default

    @property
    def required(self) -> bool:
        """Whether a value has to be given."""
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        text = f"{self.name}: {_type_name(self.annotation)}"
        return text if self.required else f"{text} = {self.default!r}"

    def convert(self, value: Any) -> Any:
        """Convert a text to the parameter's type; other values pass through.

        Raises:
            ParameterError: a text that doesn't parse, with what would.
        """
        if not isinstance(value, str):
            return value
        try:
            return _parse(value, self.annotation)
        except (ValueError, TypeError) as error:
            raise ParameterError(
                f"parameter {self.name}={value!r}: {str(error).rstrip('.')}. It takes {_type_name(self.annotation)}."
            ) from None


class Pipeline:
    """A pipeline function with its parameters; calling it declares the pipeline.

    Attributes:
        name: the function's name.
        function: the function.
        parameters: by name, in order.
    """

    def __init__(self, function: Callable[..., Any]):
        if not callable(function):
            raise TypeMismatchError(
                f"@pipeline marks a function that returns datasets, not {type(function).__name__}."
            )
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        hints = _hints(function)
        self.parameters = {
            p.name: Parameter(p.name, hints.get(p.name, _type_of(p.default)), p.default)
            for p in inspect.signature(function).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"Pipeline {self.name}({', '.join(map(str, self.parameters.values()))})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def bind(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Dataset]:
        """Declare the pipeline with parameters given as texts or values.

        Args:
            values, named: parameter values by name; texts are converted by annotation.

        Returns:
            Output name to dataset. A function that returns one dataset has the output ``result``.

        Raises:
            ParameterError: an unknown, missing or unparsable parameter.
            TypeMismatchError: the function returns something else than datasets.
        """
        given = {**(values or {}), **named}
        for name in given:
            if name not in self.parameters:
                raise ParameterError(
                    f"pipeline {self.name} has no parameter {name!r}. {did_you_mean(name, self.parameters)}"
                )
        if missing := [p.name for p in self.parameters.values() if p.required and p.name not in given]:
            raise ParameterError(f"pipeline {self.name} needs a value for {', '.join(missing)}.")
        arguments = {name: self.parameters[name].convert(value) for name, value in given.items()}
        return self._outputs(self.function(**arguments))

    def _outputs(self, returned: Any) -> dict[str, Dataset]:
        if isinstance(returned, Dataset):
            return {"result": returned}
        from .model import Model

        if isinstance(returned, Model):
            returned = {"model": returned}
        if isinstance(returned, Mapping):
            returned = {n: Dataset(v.node) if isinstance(v, Model) else v for n, v in returned.items()}
        if isinstance(returned, Mapping) and returned:
            wrong = {name: type(v).__name__ for name, v in returned.items() if not isinstance(v, Dataset)}
            if not wrong:
                return {str(name): dataset for name, dataset in returned.items()}
            raise TypeMismatchError(f"pipeline {self.name}: these outputs aren't datasets: {wrong}.")
        raise TypeMismatchError(
            f"pipeline {self.name} returned {type(returned).__name__}. Return a Dataset, or a dict of name to Dataset."
        )


@overload
def pipeline(function: Callable[..., Any]) -> Pipeline: ...
@overload
def pipeline() -> Callable[[Callable[..., Any]], Pipeline]: ...
def pipeline(function: Callable[..., Any] | None = None) -> Any:
    """Mark a function as a pipeline, for ``headwater run`` and `Session.run`; with or without parentheses.

    Args:
        function: takes typed parameters and returns a Dataset or Model, or a dict of output name to these.

    Returns:
        A callable `Pipeline`.

    Example:
        >>> import headwater as hw
        >>> @hw.pipeline
        ... def evens(n: int = 10):
        ...     return {"evens": hw.range(n).filter(hw.col("id") % 2 == 0)}
        >>> list(evens.bind(n="4"))
        ['evens']
    """
    return Pipeline if function is None else Pipeline(function)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError as error:
        raise ParameterError(
            f"pipeline {function.__name__}: {error}, in a parameter's annotation. Define or import it first."
        ) from error


def _type_of(default: Any) -> Any:
    return str if default is inspect.Parameter.empty or default is None else type(default)


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    return (
        getattr(annotation, "__name__", str(annotation))
        if not typing.get_args(annotation)
        else str(annotation)
    )


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _parse(text: str, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return annotation[_parse(text, typing.Literal[tuple(annotation.__members__)])]
    if origin is typing.Literal:
        for choice in args:
            if str(choice) == text:
                return choice
        raise ValueError(did_you_mean(text, [str(choice) for choice in args]))
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.casefold() in ("none", "null", ""):
            return None
        return _first_that_parses(text, [arg for arg in args if arg is not type(None)])
    if origin in (list, tuple):
        item = args[0] if args else str
        return origin(_parse(part.strip(), item) for part in text.split(",") if part.strip())
    if annotation is bool:
        if text.casefold() in _TRUE + _FALSE:
            return text.casefold() in _TRUE
        raise ValueError("write true or false")
    if annotation in (datetime.date, datetime.datetime):
        return annotation.fromisoformat(text)
    if annotation in (int, float, Path):
        return annotation(text)
    if annotation in (str, Any):
        return text
    raise TypeError(f"a text can't be turned into {_type_name(annotation)}")


def _first_that_parses(text: str, annotations: list[Any]) -> Any:
    for annotation in annotations:
        try:
            return _parse(text, annotation)
        except (ValueError, TypeError):
            continue
    raise ValueError("none of its types takes this text")
