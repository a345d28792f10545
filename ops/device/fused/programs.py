"""Programs: the lines that compute a row as a kernel over all rows, over the rows that a mask keeps, or of the mask.

How many rows a thread takes depends on how many bytes it reads of each: so many loads are on their way at once that
an H100 is kept busy (3.35 TB/s for some 0.8 microseconds are 2.7 MB, or 20 KB for each of 132 multiprocessors).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pyarrow as pa

from ...backend import Array
from ..arrays.compaction import TILE
from ..column import DeviceColumn, physical_type
from ..modules import THREADS, sources
from ..table import DeviceTable
from .emitter import Argument, Emitter, Term
from .types import Refused, c_name
from .words import Tables

#: pointers and numbers that a kernel takes, of 8 bytes each in 4096
_MOST = 500
#: bytes that a thread has on their way, if it can
_AHEAD = 64
#: lines of a row beyond which more rows at once would only make a kernel long
_LONG = 60
_WARPS = THREADS // 32
#: the value that a line computes, and the values that it uses
_MADE, _NAME = re.compile(r"const .*? (v\d+) = "), re.compile(r"\bv\d+\b")


class TooManyError(Refused):
    """A kernel would be given more than it can be."""


@dataclass(frozen=True)
class Program:
    """A kernel's source, and what it is given: arguments, results, where failures are told, and what its form takes.

    Attributes:
        name: of the kernel.
        code: CUDA C.
        arguments: in order.
        terms: of the results; a validity is written where it isn't "true".
        fails: whether a number is handed over that the kernel sets where the host would raise.
        each: rows that a thread takes, in a kernel over all rows.
    """

    name: str
    code: str
    arguments: tuple[Argument, ...]
    terms: tuple[Term, ...]
    fails: bool
    each: int = 1

    def given(self, table: DeviceTable, tables: Tables, xp: ModuleType) -> list[Array]:
        """Return the arguments for some rows.

        Raises:
            HeadwaterError: what the host raises of a string that a row has.
        """
        found = []
        for argument in self.arguments:
            if argument.kind == "constant":
                found.append(argument.of)
            elif argument.kind == "table":
                found.append(tables.array(*argument.of))  # type: ignore[misc]
            else:
                column = table.column(str(argument.of))
                found.append(
                    xp.ascontiguousarray(column.values if argument.kind == "values" else column.valid)
                )
        return found

    def results(
        self, types: list[pa.DataType], rows: int, tables: Tables, xp: ModuleType
    ) -> list[DeviceColumn]:
        """Return columns of so many rows to be written to."""
        columns = []
        for type, term in zip(types, self.terms):
            values = xp.empty(rows, dtype=physical_type(type))
            valid = None if term.valid == "true" else xp.empty(rows, dtype=bool)
            words = None if term.words is None else tables.words(term.words)
            columns.append(DeviceColumn(type, values, valid, words))
        return columns


def places(columns: list[DeviceColumn]) -> list[Array]:
    """Return where a kernel writes columns, in the order of its arguments."""
    return [array for c in columns for array in (c.values, c.valid) if array is not None]


def over_rows(emit: Emitter, terms: tuple[Term, ...]) -> Program:
    """Write a kernel named ``fused`` that computes all rows; the last argument is how many.

    Threads behind the last row compute that again, and write what stands there: a loop for the last block would keep
    an address for each column in registers.
    """
    results, stores = _results(terms)
    declared = _declared(emit, results)
    each = _at_once(emit, 1, 16)
    names = _names(declared)
    code = f"""{_row(emit, "void", ["const long long at", *declared], _woven(emit.lines, stores))}
extern "C" __global__ void fused({", ".join([*declared, "const long long rows"])}) {{
    const long long start = (long long)blockIdx.x * {each * THREADS};
    const int last = rows - start < {each * THREADS} ? (int)(rows - start) - 1 : {each * THREADS} - 1;
    Row in[{each}];
    #pragma unroll
    for (int k = 0; k < {each}; ++k) {{
        const int at = (int)threadIdx.x + k * {THREADS};
        in[k] = {_load(emit, "start + (at < last ? at : last)")};
    }}
    #pragma unroll
    for (int k = 0; k < {each}; ++k) {{
        const int at = (int)threadIdx.x + k * {THREADS};
        {_call("in[k]", "start + (at < last ? at : last)", *names)};
    }}
}}
"""
    return Program("fused", code, tuple(emit.arguments.values()), terms, emit.fails, each)


def mask_of(emit: Emitter, kept: str) -> Program:
    """Write a kernel named ``mask`` that packs a condition to bits, as `compaction` has them, and counts them.

    After the arguments it takes how many rows there are, the words, and the counts.
    """
    declared = _declared(emit, [])
    form = ["const long long rows", "unsigned *__restrict__ words", "int *__restrict__ counts"]
    ahead = _at_once(emit, 2, 32)
    names = _names(declared)
    code = f"""{_row(emit, "bool", declared, [*emit.lines, f"return {kept};"])}
extern "C" __global__ void __launch_bounds__({THREADS}) mask({", ".join([*declared, *form])}) {{
    const long long tile = (long long)blockIdx.x * {_WARPS} + threadIdx.x / 32, start = tile * {TILE};
    if (start >= rows) return;
    const int lane = threadIdx.x % 32, here = rows - start < {TILE} ? (int)(rows - start) : {TILE};
    unsigned mine = 0;
    if (here == {TILE}) {{
        #pragma unroll 1
        for (int first = 0; first < 32; first += {ahead}) {{
            Row in[{ahead}];
            bool keep[{ahead}];
            #pragma unroll
            for (int k = 0; k < {ahead}; ++k) in[k] = {_load(emit, "start + first * 32 + lane + k * 32")};
            #pragma unroll
            for (int k = 0; k < {ahead}; ++k) keep[k] = {_call("in[k]", *names)};
            #pragma unroll
            for (int k = 0; k < {ahead}; ++k) {{
                const unsigned word = __ballot_sync(0xffffffffu, keep[k]);
                if (lane == first + k) mine = word;
            }}
        }}
    }} else {{
        #pragma unroll 1
        for (int k = 0; k < 32; ++k) {{
            bool keep = false;
            if (k * 32 + lane < here) keep = {_call(_load(emit, "start + k * 32 + lane"), *names)};
            const unsigned word = __ballot_sync(0xffffffffu, keep);
            if (lane == k) mine = word;
        }}
    }}
    words[tile * 32 + lane] = mine;
    int count = __popc(mine);
    for (int step = 16; step; step /= 2) count += __shfl_xor_sync(0xffffffffu, count, step);
    if (lane == 0) counts[tile] = count;
}}
"""
    return Program("mask", code, tuple(emit.arguments.values()), (), emit.fails)


def over_kept(emit: Emitter, terms: tuple[Term, ...]) -> Program:
    """Write a kernel named ``kept`` that computes the rows of a mask, and writes them without gaps.

    A warp lists the kept rows of its tile in shared memory, and then computes these only: loads touch the sectors
    that hold kept rows, and stores are of 32 rows in a row. Lanes that have no row left take the last one again, and
    write what stands there: with a condition, the compiler would have each load wait for the store before it. After
    arguments and results the kernel takes the mask's words, where each tile's results start, and how many rows there
    are.
    """
    results, stores = _results(terms)
    declared = _declared(emit, results)
    mask = [
        "const unsigned *__restrict__ words",
        "const long long *__restrict__ starts",
        "const long long rows",
    ]
    each = _at_once(emit, 1, 16)
    # told that so few blocks of a multiprocessor will do, the compiler keeps all loads on their way
    blocks = 4 if len(emit.lines) <= _LONG else 2
    names = _names(declared)
    code = f"""{_row(emit, "void", ["const long long at", *declared], _woven(emit.lines, stores))}
extern "C" __global__ void __launch_bounds__({THREADS}, {blocks}) kept({", ".join([*declared, *mask])}) {{
    __shared__ unsigned short lists[{_WARPS}][{TILE} + 2];  // the last is for rows that aren't kept
    const long long tile = (long long)blockIdx.x * {_WARPS} + threadIdx.x / 32, start = tile * {TILE};
    if (start >= rows) return;
    const int lane = threadIdx.x % 32;
    unsigned short *list = lists[threadIdx.x / 32];
    const unsigned mine = words[tile * 32 + lane], below = (1u << lane) - 1;
    const int own = __popc(mine);
    int upto = own;
    for (int step = 1; step < 32; step *= 2) {{
        const int other = __shfl_up_sync(0xffffffffu, upto, step);
        if (lane >= step) upto += other;
    }}
    #pragma unroll
    for (int k = 0; k < 32; ++k) {{
        const unsigned word = __shfl_sync(0xffffffffu, mine, k);
        const int place = __shfl_sync(0xffffffffu, upto - own, k) + __popc(word & below);
        list[word >> lane & 1 ? place : {TILE}] = (unsigned short)(k * 32 + lane);
    }}
    __syncwarp();
    const int count = __shfl_sync(0xffffffffu, upto, 31);
    const long long begin = starts[tile];
    #pragma unroll 1
    for (int first = lane; first - lane < count; first += {32 * each}) {{
        Row in[{each}];
        #pragma unroll
        for (int k = 0; k < {each}; ++k) {{
            const int at = first + k * 32 < count ? first + k * 32 : count - 1;
            in[k] = {_load(emit, "start + list[at]")};
        }}
        #pragma unroll
        for (int k = 0; k < {each}; ++k) {{
            const int at = first + k * 32 < count ? first + k * 32 : count - 1;
            {_call("in[k]", "begin + at", *names)};
        }}
    }}
}}
"""
    return Program("kept", code, tuple(emit.arguments.values()), terms, emit.fails)


def _row(emit: Emitter, returns: str, declared: list[str], lines: list[str]) -> str:
    """The functions that load what a row is computed of, and that compute it.

    They are two, so that a kernel may load several rows before it computes one: what has branches, as a division, is
    passed by no load that stands behind it.
    """
    fields = "".join(f" {ctype} {name};" for ctype, name, _ in emit.reads)
    pointers = [f"const {ctype} *__restrict__ {pointer}" for ctype, _, pointer in emit.reads]
    loads = "".join(f" in.{name} = {pointer}[i];" for _, name, pointer in emit.reads)
    body = [f"const {ctype} {name} = in.{name};" for ctype, name, _ in emit.reads]
    return f"""{sources()["expressions"]}
struct Row {{{fields} }};

static __device__ __forceinline__ Row load({", ".join(["const long long i", *pointers])}) {{
    Row in;
   {loads}
    return in;
}}

static __device__ __forceinline__ {returns} row({", ".join(["const Row &in", *declared])}) {{
    {_lines([*body, *lines])}
}}
"""


def _woven(lines: list[str], stores: list[str]) -> list[str]:
    """Lines, and after each what can be written then: values that wait to be written take registers."""
    made = {match[1]: place for place, line in enumerate(lines) if (match := _MADE.match(line))}
    after: dict[int, list[str]] = {}
    for store in stores:
        place = max((made.get(name, -1) for name in _NAME.findall(store)), default=-1)
        after.setdefault(place, []).append(store)
    woven = list(after.get(-1, []))
    for place, line in enumerate(lines):
        woven += [line, *after.get(place, [])]
    return woven


def _results(terms: tuple[Term, ...]) -> tuple[list[str], list[str]]:
    """How results are declared, and the lines that write them."""
    declared, stores = [], []
    for number, term in enumerate(terms):
        dtype = physical_type(term.type)
        assert dtype is not None
        ctype = c_name(dtype)
        declared.append(f"{ctype} *__restrict__ o{number}")
        if term.valid == "true":
            stores.append(f"o{number}[at] = {term.value};")
            continue
        declared.append(f"bool *__restrict__ n{number}")
        value = term.value if term.cleared else f"{term.valid} ? {term.value} : ({ctype})0"
        stores.append(f"o{number}[at] = {value};")
        stores.append(f"n{number}[at] = {term.valid};")
    return declared, stores


def _declared(emit: Emitter, results: list[str]) -> list[str]:
    declared = [argument.text for argument in emit.arguments.values()] + results
    if emit.fails:
        declared.append("int *__restrict__ failed")
    if len(declared) > _MOST:
        raise TooManyError("it takes more columns and constants than a kernel can")
    return declared


def _names(declared: list[str]) -> list[str]:
    return [text.split()[-1] for text in declared]


def _at_once(emit: Emitter, least: int, most: int) -> int:
    """How many rows a thread computes at once, for its loads to be on their way together."""
    read = 0
    for argument in emit.arguments.values():
        if argument.kind in ("values", "valid"):
            dtype = physical_type(emit.schema.field(str(argument.of)).type)
            read += 1 if argument.kind == "valid" else np.dtype(dtype).itemsize
    count = least
    while read and count < most and count * read < _AHEAD and len(emit.lines) <= _LONG:
        count *= 2
    return count


def _load(emit: Emitter, row: str) -> str:
    return f"load({', '.join([row, *(pointer for _, _, pointer in emit.reads)])})"


def _call(*args: str) -> str:
    return f"row({', '.join(args)})"


def _lines(lines: list[str]) -> str:
    return "\n    ".join(lines)
