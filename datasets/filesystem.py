"""The file system that a path or URL names, through fsspec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from ..errors import ParameterError, did_you_mean


def open_filesystem(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path on it.

    Args:
        path: a local path, or any fsspec URL.
        storage_options: for the file system, as credentials.

    Raises:
        ParameterError: the protocol is unknown, its package isn't installed, or the options don't fit.

    Example:
        >>> fs, path = open_filesystem("memory://rides/1.csv")
        >>> path
        '/rides/1.csv'
    """
    text = os.fspath(path)
    try:
        return url_to_fs(text, **(storage_options or {}))
    except ImportError as error:
        raise ParameterError(
            f"{text!r}: {error}. Install what is missing here and on all workers."
        ) from error
    except (ValueError, TypeError) as error:
        protocol, separator, _ = text.partition("://")
        known = did_you_mean(protocol, fsspec.available_protocols()) if separator else ""
        raise ParameterError(f"{text!r} can't be opened: {error}. {known}".rstrip()) from error
