"""Model folders: a JSON file that says what a model is and which files belong to it, written last.

The other files are named by their content, so that a folder is overwritten by replacing one file: a reader finds the
old model or the new one, and what a writer that died has left is never looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from ..errors import CorruptFileError, SinkExistsError, SourceNotFoundError
from .commit import disk_errors
from .filesystem import open_filesystem

FORMAT, VERSION = "headwater.model", 1
MANIFEST = "model.json"
_SUFFIXES = {"arrays": ".arrow", "prep": ".json", "objective": ".pickle"}
_READ_BYTES = 16 << 20


def write_model_folder(
    url: str | os.PathLike[str],
    about: Mapping[str, Any],
    table: pa.Table,
    parts: Mapping[str, bytes],
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a model; it is there once all of it is.

    Args:
        url: the folder; a local path or any fsspec URL.
        about: what the JSON file shall say.
        table: the model's arrays.
        parts: further files by what they are: "prep", "objective".
        overwrite: whether to replace a model that is there.
        storage_options: for the file system.

    Raises:
        SinkExistsError: the folder holds a model, and isn't to be overwritten, or there is a file of that name.
        DiskFullError: the disk is full.
    """
    fs, path = open_filesystem(url, storage_options)
    path = path.rstrip("/")
    old = _manifest_text(fs, path)
    if old is not None and not overwrite:
        raise SinkExistsError(
            f"{url} holds a model already. Write another name, or save(..., overwrite=True)."
        )
    if fs.isfile(path):
        raise SinkExistsError(f"{url} is a file, and a model is saved as a folder. Write another name.")
    with disk_errors(str(url)):
        fs.makedirs(path, exist_ok=True)
        files = {"arrays": _put(fs, path, "arrays", _ipc(table))}
        files |= {name: _put(fs, path, name, data) for name, data in parts.items()}
        document = {"format": FORMAT, "version": VERSION, **about, "files": files}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        _write(fs, f"{path}/{MANIFEST}", text.encode())
    for name in _files_of(old) - {file["name"] for file in files.values()}:
        with suppress(OSError):
            fs.rm_file(f"{path}/{name}")


def read_model_folder(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], pa.Table, dict[str, bytes], str]:
    """Read what `write_model_folder` wrote.

    Args:
        url: the folder.
        storage_options: for the file system.

    Returns:
        What the JSON file says, the model's arrays, the further files, and the path of the file of arrays.

    Raises:
        SourceNotFoundError: there is no model.
        CorruptFileError: the folder isn't a model's, or not a whole one, or of a later version.
    """
    fs, path = open_filesystem(url, storage_options)
    path = path.rstrip("/")
    text = _manifest_text(fs, path)
    if text is None:
        raise SourceNotFoundError(
            f"there is no model at {url}: no file {MANIFEST} in it. Give a folder that model.save(...) wrote."
        )
    document = _document(text, url)
    data: dict[str, Any] = {}
    for name, file in document["files"].items():
        data[name] = _get(fs, path, file, url)
    try:
        table = pa.ipc.open_file(data.pop("arrays")).read_all()
    except (KeyError, pa.ArrowException) as error:
        raise CorruptFileError(f"{url}: the model's arrays can't be read ({error}).") from error
    arrays = fs.unstrip_protocol(f"{path}/{document['files']['arrays']['name']}")
    return document, table, {name: bytes(content) for name, content in data.items()}, arrays


def _document(text: bytes, url: Any) -> dict[str, Any]:
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        version = document["version"]
        files = {
            name: (file["name"], file["bytes"], file["sha256"]) for name, file in document["files"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptFileError(
            f"{url}: {MANIFEST} isn't a model's ({type(error).__name__}: {error}). Give a folder that model.save(...) "
            "wrote."
        ) from error
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise CorruptFileError(
            f"{url}: the model has the format version {version!r}, and this Headwater reads version {VERSION}. "
            + (
                "Upgrade Headwater here, or save the model with this one."
                if newer
                else "Is the file damaged?"
            )
        )
    if any("/" in str(name) for name, _, _ in files.values()) or "arrays" not in files:
        raise CorruptFileError(f"{url}: {MANIFEST} names files that no model has.")
    return document


def _manifest_text(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return fs.cat_file(f"{path}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _files_of(text: bytes | None) -> set[str]:
    """The files that a manifest names, as far as it can be read."""
    try:
        return {
            f["name"] for f in json.loads(text or b"{}").get("files", {}).values() if "/" not in f["name"]
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return set()


def _ipc(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _put(fs: fsspec.AbstractFileSystem, path: str, kind: str, data: bytes | memoryview) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    name = f"{kind}-{digest[:16]}{_SUFFIXES[kind]}"
    _write(fs, f"{path}/{name}", data)
    return {"name": name, "bytes": len(data), "sha256": digest}


def _write(fs: fsspec.AbstractFileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all."""
    if not isinstance(fs, LocalFileSystem):
        with fs.open(path, "wb") as file:  # object stores show a file once it is closed
            file.write(data)
        return
    staged = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(staged, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        with suppress(OSError):
            os.remove(staged)
        raise


def _get(fs: fsspec.AbstractFileSystem, path: str, file: Mapping[str, Any], url: Any) -> pa.Buffer:
    """The content of a file; a local one is mapped."""
    where = f"{path}/{file['name']}"
    try:
        if isinstance(fs, LocalFileSystem) and file["bytes"]:
            with pa.memory_map(where) as mapped:
                data = mapped.read_buffer()
        else:
            data = pa.py_buffer(fs.cat_file(where))
    except FileNotFoundError as error:
        raise CorruptFileError(
            f"{url}: the model isn't whole, its file {file['name']} is missing."
        ) from error
    hasher, view = hashlib.sha256(), memoryview(data)
    for start in range(0, len(view), _READ_BYTES):
        hasher.update(view[start : start + _READ_BYTES])
    if hasher.hexdigest() != file["sha256"]:
        raise CorruptFileError(
            f"{url}: the file {file['name']} was changed or cut short: it has {len(view)} bytes of "
            f"{file['bytes']}, or another SHA-256. Save the model again."
        )
    return data
