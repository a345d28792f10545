"""Canonical encodings and function tokens: the same in every process, different for what differs."""

import datetime as dt
import functools
import importlib
import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import SerializationError
from headwater.lineage.keys import canonical, function_token, lineage_key


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


DIFFERENT = [
    None, True, False, 0, 1, -1, 10**30, 0.0, -0.0, 1.0, math.nan, "", "1", "a", b"", b"a", Decimal("1"),
    Decimal("1.0"), dt.date(2026, 1, 1), dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    dt.time(1), dt.timedelta(1), (), (1,), ((1,),), (1, 1), ("a", "bc"), ("ab", "c"), {}, {"a": 1}, {"a":
    2}, {1: "a"}, {1}, {"a"}, {1, 2}, {(1, 2)}, Color.RED, Color.BLUE, Point(1), Point(1, 1), pa.int8(),
    pa.int64(), pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.schema([("a", pa.int8())]),
    pa.schema([("b", pa.int8())]), pa.schema([]), pa.scalar(1), pa.scalar(1, pa.int8()), pa.scalar(None,
    pa.int8()), pa.array([1]), pa.array([1, None]), pa.table({"a": [1]}), pa.table({"b": [1]}),
    np.float32(1), np.arange(3), np.arange(3.0), np.arange(4).reshape(2, 2), np.arange(4), np.array(["a",
    None], object), len, print, math.sin, np.sin, int, str, Color, Point, re.compile("a"),
    re.compile("b"), range(3), Path("a"), ..., functools.partial(int, base=2), functools.partial(int,
    base=3), "a".join, "b".join, np.dtype("f4"), 1j,
]  # fmt: skip


def test_different_values_differ():
    encodings = {}
    for value in DIFFERENT:
        encoding = canonical(value)
        assert encoding not in encodings, f"{value!r} is encoded as {encodings[encoding]!r} is"
        encodings[encoding] = value


def test_order_of_dicts_and_sets_doesnt_count():
    names = [f"name{i}" for i in range(50)]
    assert canonical(dict.fromkeys(names)) == canonical(dict.fromkeys(reversed(names)))
    assert canonical(set(names)) == canonical({*names[25:], *names[:25]})


def test_arrow_data_goes_by_content():
    table = pa.table({"a": [1, 2, 3], "s": ["x", None, "z"]})
    assert canonical(table) == canonical(pa.concat_tables([table[:1], table[1:]]))
    assert canonical(table["s"]) == canonical(table["s"].combine_chunks())
    dictionary = pa.table({"a": pa.array(["x", "y"]).dictionary_encode()})
    assert canonical(dictionary) == canonical(dictionary.slice(0, 2)) != canonical(dictionary.slice(0, 1))


def test_shared_and_equal_objects_are_alike():
    one, other = Point(1), Point(1)
    assert canonical([one, one]) == canonical([one, other])


def test_lineage_key_takes_all_it_gets():
    keys = {
        lineage_key("A", (1,), ["00"]),
        lineage_key("B", (1,), ["00"]),
        lineage_key("A", (2,), ["00"]),
        lineage_key("A", (1,), ["01"]),
        lineage_key("A", (1,), ["00", "00"]),
        lineage_key("A", (1, "00"), []),
    }
    assert len(keys) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


MODULE = '''
import functools, math
import numpy as np
from dataclasses import dataclass
from enum import Enum
import tokens_helper
LIMIT = {limit}
NAMES = {{"a", "b", "c", "d"}}
class Kind(Enum):
    A = 1
@dataclass
class Config:
    rate: float = 0.5
    def scaled(self, x): return x * self.rate * {scale}
def helper(x):
    return x * {factor}
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)
def make(captured):
    def inner(x, *, default={default}):
        """{doc}"""
        kept = [helper(v) for v in x if v in NAMES or v in {{"p", "q", "r"}}]
        return kept, captured, Config().scaled(1), Kind.A
    return inner
def looks_up(x): return tokens_helper.lookup(x) + np.sin(x) + math.pi
class Scaler:
    def __init__(self, by): self.by = by
    def __call__(self, x): return x * self.by + LIMIT
    def method(self, x): return even(x)
def tokens():
    return dict(
        inner=make({captured}), lam=lambda x: x + LIMIT, rec=even, obj=Scaler(2), method=Scaler(2).method,
        part=functools.partial(helper, 3), module=looks_up, cached=functools.lru_cache(helper),
    )
'''
HELPER = "def lookup(x): return x + {helped}\n"
PLAIN = {"limit": 1, "scale": 1, "factor": 2, "default": 3, "captured": 4, "doc": "text", "helped": 5}


def tokens_of(folder, lead="", **changes):
    """Tokens of the functions of a module as written with some constants changed."""
    values = PLAIN | changes
    (folder / "tokens_module.py").write_text(lead + MODULE.format(**values))
    (folder / "tokens_helper.py").write_text(HELPER.format(**values))
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        for name in ("tokens_module", "tokens_helper"):
            sys.modules.pop(name, None)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        module = importlib.import_module("tokens_module")
        return {name: function_token(function) for name, function in module.tokens().items()}
    finally:
        sys.dont_write_bytecode = before
        sys.path.remove(str(folder))


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        ({"limit": 9}, {"lam", "obj"}),
        ({"factor": 9}, {"inner", "part", "cached"}),
        ({"scale": 9}, {"inner"}),
        ({"default": 9}, {"inner"}),
        ({"captured": 9}, {"inner"}),
        ({"helped": 9}, {"module"}),
        ({"lead": "\n\n# moved down\n"}, set()),
    ],
    ids=["limit", "factor", "scale", "default", "captured", "helped", "lead"],
)
def test_tokens_change_with_what_they_use_and_no_more(tmp_path, change, affected):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    before, after = tokens_of(one), tokens_of(two, **change)
    changed = {name for name in before if before[name] != after[name]}
    # the method carries its object, whose class holds __call__ with LIMIT
    assert changed - {"method"} == affected


def test_tokens_are_the_same_in_every_process(tmp_path):
    tokens_of(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tokens_module as m; "
        "from headwater.lineage.keys import canonical; "
        "print({k: canonical(v).hex() for k, v in m.tokens().items()})"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "inner" in outputs.pop()


def test_recursion_ends():
    def down(n):
        return down(n - 1) if n else 0

    class Node:
        def __init__(self):
            self.me = self

    assert function_token(down)
    assert canonical(Node())


def test_what_cant_be_sent_is_named_with_the_way_to_it():
    lock = threading.Lock()

    def guarded(x):
        with lock:
            return x

    with pytest.raises(
        SerializationError, match=r"variable 'lock' that .*guarded\(\) captures.*inside the function"
    ):
        function_token(guarded)
